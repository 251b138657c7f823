"""Qwen 3.5 and later with experts and a shared one behind a gate, the text part."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rules
from quantmill.gguf_io.convert.families import qwen3_5
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key

EXPERTS = {
    **layout.expert_tensors("num_experts", "moe_intermediate_size"),
    **layout.shared_expert("shared_expert_intermediate_size"),
    "blk.ffn_gate_inp_shexp.weight": "1 hidden_size",
}

FAMILY = Family(
    classes=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    arch=MODEL_ARCH.QWEN35MOE,
    model_type="qwen3_5_moe_text",
    tensors=(
        *qwen3_5.MIXERS,
        layout.Tensors(EXPERTS),
    ),
    keys=(
        *keys.SIZES,
        qwen3_5.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        Key("moe_intermediate_size", "expert_feed_forward_length"),
        Key("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        *qwen3_5.MIXER_KEYS,
        qwen3_5.SECTIONS,
    ),
    defaults={
        **qwen3_5.DEFAULTS,
        "intermediate_size": None,
        "moe_intermediate_size": 512,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 2,
        "shared_expert_intermediate_size": 512,
    },
    rules=(*qwen3_5.RULES, *rules.STACKED_EXPERTS),
    nextn=qwen3_5.later(EXPERTS),
)
