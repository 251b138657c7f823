"""Falcon-H1: Mamba 2 and attention side by side in every layer; its multipliers end up in the matrices."""

from __future__ import annotations

import numpy as np
from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, mamba2, rope
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key
from quantmill.gguf_io.convert.rules import Config, Factors, Part, Rule


def _by(*names: str, which: int | None = None) -> Factors:
    """Settings that all rows are multiplied with; which: of a list."""

    def factors(config: Config, n_rows: int) -> list[float | np.ndarray] | None:
        found = [config.get(name) for name in names]
        return [one if which is None else one[which] for one in found if one is not None] or None

    return factors


def _into(config: Config, n_rows: int) -> list[float | np.ndarray] | None:
    """Gate, channels, B, C and time steps have a factor each."""
    if config.get("ssm_multipliers") is None:
        return None
    inner, states = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    sizes = [inner, inner, states, states, n_rows - 2 * inner - 2 * states]
    if sizes[-1] < 0:
        return None
    of_rows = np.repeat(np.array(config["ssm_multipliers"], np.float32), sizes)
    return [config.get("ssm_in_multiplier") or 1.0, of_rows]


def _multiplied(pattern: str, factors: Factors) -> Rule:
    return Rule(pattern, (Part(factors=factors),))


RULES = (
    *mamba2.rules("group_size", _into, _by("ssm_out_multiplier")),
    _multiplied(r"[qv]_proj\.weight$", _by("attention_in_multiplier")),
    _multiplied(r"k_proj\.weight$", _by("key_multiplier", "attention_in_multiplier")),
    _multiplied(r"o_proj\.weight$", _by("attention_out_multiplier")),
    _multiplied(r"gate_proj\.weight$", _by("mlp_multipliers", which=0)),
    _multiplied(r"down_proj\.weight$", _by("mlp_multipliers", which=1)),
    _multiplied(r"lm_head\.weight$", _by("lm_head_multiplier")),
    _multiplied(r"embed_tokens\.weight$", _by("embedding_multiplier")),
)


def _parts(facts: Facts) -> Settings:
    return {
        "mamba_d_head": facts.need("ssm.inner_size") // facts.need("ssm.time_step_rank"),
        "mamba_rms_norm": facts.has("blk.0.ssm_norm.weight"),
        "mamba_conv_bias": facts.has("blk.0.ssm_conv1d.bias"),
        "mamba_norm_before_gate": False,
    }


FAMILY = Family(
    classes=("FalconH1ForCausalLM",),
    arch=MODEL_ARCH.FALCON_H1,
    model_type="falcon_h1",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        # llama.cpp's name of the second has no suffix
        layout.Tensors({"blk.attn_norm.weight": "hidden_size", "blk.ffn_norm": "hidden_size"}),
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        *mamba2.parts(
            mamba2.tensors(
                "mamba_d_ssm",
                "mamba_n_heads",
                "mamba_n_groups",
                "mamba_d_state",
                "mamba_d_conv",
                "group_size",
                normed="?",
            ),
            "mamba_conv_bias",
        ),
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(
        keys.CONTEXT,
        keys.WIDTH,
        keys.INNER,
        keys.HEADS,
        keys.BLOCKS,
        Key("mamba_d_conv", "ssm.conv_kernel"),
        Key("mamba_d_ssm", "ssm.inner_size"),
        Key("mamba_d_state", "ssm.state_size"),
        Key("mamba_n_heads", "ssm.time_step_rank"),
        Key("mamba_n_groups", "ssm.group_count"),
        keys.RMS_NORM,
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        keys.KV_HEADS,
        keys.HEAD_SIZES,
        rope.ROPE,
        keys.Rows(read=_parts),
    ),
    defaults={
        "head_dim": keys.head_dim,
        "mamba_d_conv": 4,
        "mamba_d_ssm": 1024,
        "mamba_d_state": 256,
        "mamba_n_groups": 1,
        "mamba_n_heads": 128,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "group_size": mamba2.group_size("mamba_d_ssm", "mamba_n_groups"),
    },
    rules=RULES,
)
