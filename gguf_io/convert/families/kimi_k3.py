"""Kimi K3, its text part: delta and latent attention as in Kimi-Linear, each with a gate of full rank behind it,
attention over the states of earlier blocks of layers (residual attention), experts in a space of fewer dimensions.

transformers has no model of this class; so it is converted and quantized, not run.
"""

from __future__ import annotations

import re

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rules, tokenizer
from quantmill.gguf_io.convert.families import deepseek2, kimi_linear
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, UINT32, Key, need
from quantmill.gguf_io.convert.mamba2 import DECAY
from quantmill.gguf_io.convert.rules import Config, Part, Rule
from quantmill.gguf_io.errors import GGUFError

# What llama.cpp computes, where config.json may say that a model is otherwise.
_ONLY = {"hidden_act": "situ", "mla_use_nope": True, "moe_router_activation_func": "sigmoid"}


def _check(config: Config) -> None:
    keys.only(config, _ONLY)
    if config["linear_num_heads"] != config["num_attention_heads"]:
        raise GGUFError(
            f"config.json: delta attention has {config['linear_num_heads']} heads, num_attention_heads is "
            f"{config['num_attention_heads']}; llama.cpp has one number for both"
        )


def _attends(config: Config, match: re.Match[str]) -> bool:
    return kimi_linear.attends(config, int(match[1]))


def _is_latent(config: Config, layer: int) -> bool:
    return layout.is_sparse(config, layer) and bool(config.get("routed_expert_hidden_size"))


_WHERE = r"^model\.layers\.(\d+)\."
_HEADS = "linear_num_heads*linear_head_dim"
_OF_LINEAR = ("blk.ssm_g_a.weight", "blk.ssm_g_b.weight")
DELTA_ATTENTION = {
    **{name: shape for name, shape in kimi_linear.DELTA_ATTENTION.items() if name not in _OF_LINEAR},
    "blk.ssm_a": "linear_num_heads",
    "blk.ssm_g.weight": f"{_HEADS} hidden_size",
}
LATENT_ATTENTION = {
    **deepseek2.KEYS_AND_VALUES,
    "blk.attn_gate.weight?": "num_attention_heads*v_head_dim hidden_size",
}
EXPERTS = {
    name: shape.replace("hidden_size", "expert_width")
    for name, shape in layout.expert_tensors("num_experts", "moe_intermediate_size").items()
    if name != "blk.ffn_gate_inp.weight"
}
RULES = (
    Rule(r"^mm_projector\."),
    *rules.tied_head_left_out(by_default=False),
    *kimi_linear.delta_rules("self_attn"),
    Rule(
        rf"{_WHERE}self_attn\.A_log$",
        (Part(r"blk.\1.ssm_a", values=DECAY, squeeze=True, rows=rules.first("num_attention_heads")),),
    ),
    Rule(rf"{_WHERE}self_attn\.g_proj\.weight$", (Part(r"blk.\1.attn_gate.weight"),), when=_attends),
    Rule(rf"{_WHERE}self_attn\.g_proj\.weight$", (Part(r"blk.\1.ssm_g.weight"),)),
    Rule(
        rf"{_WHERE}self_attention_res_(?:norm|proj)\.weight$",
        (Part(r"blk.\1.attn_res_score.weight", squeeze=True, product=True),),
    ),
    Rule(
        rf"{_WHERE}mlp_res_(?:norm|proj)\.weight$",
        (Part(r"blk.\1.ffn_res_score.weight", squeeze=True, product=True),),
    ),
    Rule(
        r"^model\.output_attn_res_(?:norm|proj)\.weight$",
        (Part("output_res_score.weight", squeeze=True, product=True),),
    ),
    Rule(
        rf"{_WHERE}block_sparse_moe\.routed_expert_(down|up)_proj\.weight$",
        (Part(r"blk.\1.ffn_routed_\2.weight"),),
    ),
    Rule(
        rf"{_WHERE}block_sparse_moe\.routed_expert_norm\.weight$",
        (Part(r"blk.\1.ffn_routed_norm.weight"),),
    ),
    *kimi_linear.RULES,
)

FAMILY = Family(
    classes=("KimiK3ForConditionalGeneration",),
    arch="kimi-k3",
    model_type="kimi_k3",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.Tensors(
            {
                "output_res_score.weight": "hidden_size",
                "blk.attn_res_score.weight": "hidden_size",
                "blk.ffn_res_score.weight": "hidden_size",
            },
            lambda config, layer: bool(config["attn_res_block_size"]),
        ),
        layout.Tensors(DELTA_ATTENTION, kimi_linear.is_linear),
        layout.Tensors(LATENT_ATTENTION, kimi_linear.attends),
        *kimi_linear.QUERIES,
        layout.Tensors(layout.FEED_FORWARD, layout.is_dense),
        layout.Tensors(
            {
                **EXPERTS,
                **layout.shared_expert("num_shared_experts*moe_intermediate_size"),
                "blk.ffn_gate_inp.weight": "num_experts hidden_size",
                "blk.exp_probs_b.bias": "num_experts",
            },
            layout.is_sparse,
        ),
        layout.Tensors(
            {
                "blk.ffn_routed_down.weight": "expert_width hidden_size",
                "blk.ffn_routed_up.weight": "hidden_size expert_width",
                "blk.ffn_routed_norm.weight?": "expert_width",
            },
            _is_latent,
        ),
    ),
    keys=(
        *kimi_linear.FIRST_KEYS,
        Key("linear_conv_kernel_dim", "ssm.conv_kernel"),
        Key("linear_head_dim", "kda.head_dim"),
        Key("linear_lower_bound", "kda.gate_lower_bound", FLOAT32),
        Key("q_lora_rank", "attention.q_lora_rank"),
        deepseek2.RANK,
        keys.written("rope.dimension_count", lambda config: need(config, "qk_rope_head_dim")),
        deepseek2.ABSORBED,
        keys.written("attention.key_length_mla", deepseek2.long_keys),
        Key("v_head_dim", "attention.value_length_mla", needed=True),
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        Key("num_shared_experts", "expert_shared_count", needed=True),
        keys.Rows(keys.LEADING_DENSE.write),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32, needed=True),
        Key("moe_renormalize", "expert_weights_norm", BOOL, needed=True),
        Key("routed_expert_hidden_size", "expert_latent_length"),
        Key("activation_situ_beta", "activation.situ_beta", FLOAT32, needed=True),
        Key("activation_situ_linear_beta", "activation.situ_linear_beta", FLOAT32, needed=True),
        Key("attn_res_block_size", "attn_res.block_size", UINT32),
    ),
    defaults={
        **kimi_linear.FAMILY.defaults,
        "expert_width": lambda config: config.get("routed_expert_hidden_size") or need(config, "hidden_size"),
        "linear_lower_bound": lambda config: kimi_linear.linear(config).get("gate_lower_bound"),
        "linear_num_heads": lambda config: (
            kimi_linear.linear(config).get("num_heads") or need(config, "num_attention_heads")
        ),
        "moe_renormalize": True,
    },
    rules=RULES,
    vocabulary=tokenizer.kimi_k3,
    names=MODEL_ARCH.KIMI_LINEAR,
    check=_check,
    runs=False,
)
