"""Granite 4: Mamba 2, attention in some layers, with experts or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, mamba2, rope, rules, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import granite, granite_moe
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key
from quantmill.gguf_io.convert.rules import Config

CLASSES = ("GraniteMoeHybridForCausalLM",)


def attends(config: Config, layer: int) -> bool:
    return "attention" in config["layer_types"][layer] and config["layer_types"][layer] != "linear_attention"


def _scans(config: Config, layer: int) -> bool:
    return not attends(config, layer)


def only_attends(raw: Mapping[str, Any]) -> bool:
    """What is a Granite without Mamba under the class of those with it."""
    kinds = raw.get("layer_types") or raw.get("layers_block_type") or []
    return bool(kinds) and all(attends({"layer_types": kinds}, layer) for layer in range(len(kinds)))


def _kinds(facts: Facts, heads: list[int]) -> Settings:
    n_experts = facts.get("expert_count", 0)
    shared = facts.get("expert_shared_feed_forward_length") or facts.need("feed_forward_length")
    return {
        "layer_types": ["full_attention" if n else "linear_attention" for n in heads],
        "num_local_experts": n_experts,
        "num_experts_per_tok": facts.get("expert_used_count", 0),
        "shared_intermediate_size": shared,
        "mamba_d_head": facts.need("ssm.inner_size") // facts.need("ssm.time_step_rank"),
        "mamba_conv_bias": facts.has(*(f"blk.{layer}.ssm_conv1d.bias" for layer in range(facts.n_layers))),
    }


KEYS = (
    *keys.SIZES[:-1],
    mamba2.kv_heads(attends, _kinds),
    keys.Rows(rope.write),
    keys.RMS_NORM,
    *keys.experts("num_local_experts"),
    keys.FILE_TYPE,
    keys.VOCABULARY_SIZE,
    granite.ROTATED,
    *granite.MULTIPLIERS,
    Key("shared_intermediate_size", "expert_shared_feed_forward_length", nonzero=True),
    Key("mamba_d_conv", "ssm.conv_kernel"),
    Key("mamba_d_state", "ssm.state_size"),
    Key("mamba_n_groups", "ssm.group_count"),
    keys.written("ssm.inner_size", lambda config: config["inner_size"]),
    Key("mamba_n_heads", "ssm.time_step_rank"),
)
DEFAULTS = {
    **granite.DEFAULTS,
    "inner_size": lambda config: config["mamba_expand"] * config["hidden_size"],
    "layer_types": lambda config: config.get("layers_block_type") or ["mamba"] * config["num_hidden_layers"],
    "mamba_d_conv": 4,
    "mamba_d_state": 256,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 128,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "shared_intermediate_size": 1024,
    "group_size": mamba2.group_size("inner_size", "mamba_n_groups"),
}

FAMILY = Family(
    classes=CLASSES,
    arch=MODEL_ARCH.GRANITE_HYBRID,
    model_type="granitemoehybrid",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.Tensors(layout.ATTENTION.shapes, attends),
        layout.Tensors(layout.BIASES_OF_QKV.shapes, attends),
        *mamba2.parts(
            mamba2.tensors(
                "inner_size",
                "mamba_n_heads",
                "mamba_n_groups",
                "mamba_d_state",
                "mamba_d_conv",
                "group_size",
            ),
            "mamba_conv_bias",
            _scans,
        ),
        *granite_moe.FEED_FORWARD,
    ),
    keys=(
        *KEYS,
        keys.written("rope.scaling.finetuned", lambda config: False, keys.BOOL),
        mamba2.LONG_CONTEXT,
    ),
    defaults=DEFAULTS,
    rules=(*rules.INTERLEAVED_QK, *granite_moe.EXPERTS, *mamba2.rules("group_size")),
    vocabulary=tokenizer.sentencepiece_or_bpe,
    takes=lambda raw: not only_attends(raw),
)
