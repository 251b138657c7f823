"""Qwen 1.5 and 2 with experts and a shared one behind a gate."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key

FAMILY = Family(
    classes=("Qwen2MoeForCausalLM",),
    arch=MODEL_ARCH.QWEN2MOE,
    model_type="qwen2_moe",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(layout.expert_tensors("num_experts", "moe_intermediate_size")),
        layout.Tensors(layout.shared_expert("shared_expert_intermediate_size")),
        layout.Tensors({"blk.ffn_gate_inp_shexp.weight": "1 hidden_size"}),
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
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "shared_expert_intermediate_size": 5632,
        "tie_word_embeddings": False,
    },
    rules=rules.STACKED_EXPERTS,
    fixed={"norm_topk_prob": False},
)
