"""Ling 3: delta attention by channel as in Kimi-Linear, its decay bounded, and gated latent attention at the end of
each group of layers; experts chosen by sigmoid in groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, nextn, rope, rules
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import deepseek2, kimi_linear
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, BOOL, FLOAT32, Item, Key, need
from quantmill.gguf_io.convert.rules import Config, Part, Rule, Values
from quantmill.gguf_io.errors import GGUFError

# What llama.cpp computes, where config.json may say that a model is otherwise.
_ONLY = {
    "no_kda_lora": (True, "low-rank gates of delta attention"),
    "kda_safe_gate": (True, "a decay without a bound"),
    "gated_attention_proj_granularity_type": ("head_wise", "gates other than one for each head"),
}


def _layer_types(config: Config) -> list[str]:
    """The last layer of each group attends to everything, and what is left behind the last whole group."""
    n_layers, size = config["num_hidden_layers"], need(config, "layer_group_size")
    if not isinstance(size, int) or size < 1:
        raise GGUFError(f"config.json: layer_group_size must be a number from 1 on, not {size!r}")
    whole = n_layers // size * size
    full = [(layer + 1) % size == 0 or layer >= whole for layer in range(n_layers)]
    return ["full_attention" if one else "linear_attention" for one in full]


def _write_only(config: Config) -> Iterable[Item]:
    for key, (wanted, otherwise) in _ONLY.items():
        found = config.get(key)
        if found is not None and found != wanted:
            raise GGUFError(f"config.json: {key} is {found!r}; llama.cpp's model has no {otherwise}")
    return ()


def _exp(logarithms: Any) -> Any:
    """exp(A_log), correctly rounded."""
    if isinstance(logarithms, np.ndarray):
        return np.exp(logarithms.astype(np.float64)).astype(np.float32)
    return logarithms.double().exp().float()


def _log(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return np.log(values.astype(np.float64)).astype(np.float32)
    return values.double().log().float()


def _limits(key: str, gguf: str) -> keys.Rows:
    """Of each layer, those that predict further tokens included; 0 where there is none."""

    def write(config: Config) -> Iterable[Item]:
        found = config.get(key)
        if found is None:
            return
        n_layers = config["num_hidden_layers"] + config.get("nextn", 0)
        limits = [float(limit or 0) for limit in found[:n_layers]]
        yield gguf, ARRAY, limits + [0.0] * (n_layers - len(limits))

    return keys.Rows(write)


def _read(facts: Facts) -> Settings:
    rotated = facts.need("rope.dimension_count")
    return {
        "head_dim": facts.need("kda.head_dim"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": facts.need("attention.key_length_mla") - rotated,
        "num_key_value_heads": facts.need("attention.head_count"),
        "q_lora_rank": facts.get("attention.q_lora_rank"),
        "rope_parameters": {"rope_type": "default", "rope_theta": facts.get("rope.freq_base", 10000.0)}
        | rope.read_scaling(facts),
        **keys.read_dense(facts),
    }


_WHERE = r"^model\.layers\.(\d+)\.(?:attention|self_attn)\."
_INNER = "num_attention_heads*linear_head_dim"
DELTA_ATTENTION = {
    **{
        name: shape.replace("linear_num_heads", "num_attention_heads")
        for name, shape in kimi_linear.DELTA_ATTENTION.items()
        if not name.startswith(("blk.ssm_f_", "blk.ssm_g_"))
    },
    "blk.ssm_f_a.weight": f"{_INNER} hidden_size",
    "blk.ssm_g_a.weight": f"{_INNER} hidden_size",
}
GATED = {**deepseek2.KEYS_AND_VALUES, "blk.attn_gate.weight": "num_attention_heads hidden_size"}
EXPERTS = {
    **layout.expert_tensors("num_experts", "moe_intermediate_size"),
    **layout.shared_expert("shared_size"),
    "blk.exp_probs_b.bias": "num_experts",
}


def _is_delta(config: Config, match: Any) -> bool:
    layer = int(match[1])
    return layer < config["num_hidden_layers"] and kimi_linear.is_linear(config, layer)


RULES = (
    rules.LATER_LAYERS_LEFT_OUT,
    Rule(r"^model\.word_embeddings\.weight$", (Part("token_embd.weight"),)),
    *kimi_linear.delta_rules("attention"),
    Rule(
        rf"{_WHERE}(?:forget_gate\.)?A_log$",
        (Part(r"blk.\1.ssm_a", values=Values(_exp, _log), columns_of=1),),
    ),
    Rule(rf"{_WHERE}(?:forget_gate\.)?f_proj\.weight$", (Part(r"blk.\1.ssm_f_a.weight"),)),
    Rule(rf"{_WHERE}g_proj\.weight$", (Part(r"blk.\1.ssm_g_a.weight"),), when=_is_delta),
    Rule(rf"{_WHERE}g_proj\.weight$", (Part(r"blk.\1.attn_gate.weight"),)),
    Rule(rf"{_WHERE}dense\.weight$", (Part(r"blk.\1.attn_output.weight"),)),
    Rule(
        rf"{_WHERE}kv_b_proj\.weight$",
        tuple(
            replace(part, name=rf"blk.\1.attn_{which}_b.weight")
            for part, which in zip(deepseek2.LATENT_KEYS.parts, "kv", strict=True)
        ),
    ),
    Rule(r"^model\.layers\.(\d+)\.attention\.", (Part(r"model.layers.\1.self_attn."),)),
    Rule(r"^model\.layers\.(\d+)\.mlp\.gate\.expert_bias$", (Part(r"blk.\1.exp_probs_b.bias"),)),
    *rules.ordered_experts("down", "gate", "up"),
)

FAMILY = Family(
    classes=("BailingMoeV3ForCausalLM", "BailingHybridForCausalLM"),
    arch="bailingmoe3",
    model_type="bailing_hybrid",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.Tensors(DELTA_ATTENTION, kimi_linear.is_linear),
        layout.Tensors(GATED, kimi_linear.attends),
        *kimi_linear.QUERIES,
        layout.Tensors(layout.FEED_FORWARD, layout.is_dense),
        layout.Tensors(EXPERTS, layout.is_sparse),
    ),
    keys=(
        keys.Rows(_write_only),
        *kimi_linear.FIRST_KEYS,
        Key("short_conv_kernel_size", "ssm.conv_kernel"),
        keys.Rows(Key("linear_head_dim", "kda.head_dim").write),
        keys.written("kda.safe_gate", lambda config: True, BOOL),
        Key("kda_lower_bound", "kda.gate_lower_bound", FLOAT32, needed=True),
        Key("q_lora_rank", "attention.q_lora_rank"),
        deepseek2.RANK,
        keys.written("rope.dimension_count", lambda config: need(config, "qk_rope_head_dim")),
        keys.written("attention.key_length", kimi_linear.absorbed),
        keys.written("attention.key_length_mla", deepseek2.long_keys),
        Key("v_head_dim", "attention.value_length_mla"),
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        keys.Rows(Key("shared_size", "expert_shared_feed_forward_length").write),
        Key("num_shared_experts", "expert_shared_count"),
        keys.Rows(keys.LEADING_DENSE.write),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32, needed=True),
        Key("norm_topk_prob", "expert_weights_norm", BOOL, needed=True),
        _limits("expert_swiglu_limit_list", "swiglu_clamp_exp"),
        _limits("share_expert_swiglu_limit_list", "swiglu_clamp_shexp"),
        nextn.LAYERS,
        keys.Rows(read=_read),
    ),
    # Where a setting has two names, the second is transformers', which saves it so.
    defaults={
        "first_k_dense_replace": 2,
        "head_dim": 128,
        "kda_lower_bound": -5.0,
        "kv_lora_rank": 512,
        "layer_group_size": 6,
        "layer_types": _layer_types,
        "linear_conv_kernel_dim": lambda config: config["short_conv_kernel_size"],
        "linear_head_dim": lambda config: config["head_dim"],
        "mlp_layer_types": layout.dense_first("first_k_dense_replace"),
        "max_position_embeddings": lambda config: config.get("model_max_length") or 262144,
        "moe_intermediate_size": 768,
        "n_group": lambda config: config.get("num_expert_group") or 8,
        "num_experts": 512,
        "num_experts_per_tok": lambda config: config.get("num_experts_per_token") or 8,
        "num_key_value_heads": 32,
        "topk_group": 4,
        "norm_topk_prob": lambda config: config.get("moe_renormalize", True),
        "num_shared_experts": 1,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 6000000.0,
        "routed_scaling_factor": 2.5,
        "scoring_func": lambda config: config.get("score_function") or "sigmoid",
        "shared_size": lambda config: (
            config.get("moe_shared_expert_intermediate_size")
            or need(config, "moe_intermediate_size") * config["num_shared_experts"]
        ),
        "short_conv_kernel_size": 4,
        "tie_word_embeddings": False,
        "v_head_dim": 128,
    },
    rules=RULES,
    names=MODEL_ARCH.KIMI_LINEAR,
    nextn=nextn.Nextn(
        "num_nextn_predict_layers",
        {
            **layout.NORMS_BEFORE.shapes,
            **GATED,
            **layout.optional(kimi_linear.QUERY),
            **layout.optional(deepseek2.QUERIES),
            **EXPERTS,
        },
        final="layer_output_norm",
    ),
)
