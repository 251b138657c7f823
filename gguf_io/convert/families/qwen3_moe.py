"""Qwen 3 with experts."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key

FAMILY = Family(
    classes=("Qwen3MoeForCausalLM",),
    arch=MODEL_ARCH.QWEN3MOE,
    model_type="qwen3_moe",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.HEAD_NORMS,
        layout.Tensors(layout.expert_tensors("num_experts", "moe_intermediate_size")),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        Key("moe_intermediate_size", "expert_feed_forward_length"),
        Key("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ),
    defaults={
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    rules=rules.STACKED_EXPERTS,
    fixed={"norm_topk_prob": True},
)
