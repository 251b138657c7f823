"""OLMoE."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules
from quantmill.gguf_io.convert.family import Family

FAMILY = Family(
    classes=("OlmoeForCausalLM",),
    arch=MODEL_ARCH.OLMOE,
    model_type="olmoe",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(
            {
                "blk.attn_q_norm.weight": "hidden_size",
                "blk.attn_k_norm.weight": "hidden_size",  # llama.cpp knows no grouped heads here
            }
        ),
        layout.Tensors(layout.expert_tensors("num_experts", "intermediate_size")),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
    ),
    defaults={
        "max_position_embeddings": 4096,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    rules=rules.STACKED_EXPERTS,
    fixed={"norm_topk_prob": False},
)
