"""dots.llm1."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, Key

FAMILY = Family(
    classes=("Dots1ForCausalLM",),
    arch=MODEL_ARCH.DOTS1,
    model_type="dots1",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.HEAD_NORMS,
        *layout.dense_then_experts("n_routed_experts", "n_shared_experts"),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("n_routed_experts"),
        *keys.EXPERT_GROUPS,
        keys.GATE,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        Key("moe_intermediate_size", "expert_feed_forward_length"),
        Key("first_k_dense_replace", "leading_dense_block_count"),
        Key("n_shared_experts", "expert_shared_count", needed=True),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32),
        Key("norm_topk_prob", "expert_weights_norm", BOOL),
    ),
    defaults={
        "first_k_dense_replace": 0,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_routed_experts": None,
        "norm_topk_prob": False,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
    },
    rules=rules.STACKED_EXPERTS,
)
