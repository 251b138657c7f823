"""GLM-4."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, tokenizer
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.rules import Config


def _rotated(config: Config) -> int:
    return int(keys.head_dim(config) * rope.of_full_attention(config).get("partial_rotary_factor", 0.5))


FAMILY = Family(
    classes=("Glm4ForCausalLM",),
    arch=MODEL_ARCH.GLM4,
    model_type="glm4",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.NORMS_AFTER,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(
            {
                "blk.ffn_up.weight": "2*intermediate_size hidden_size",
                "blk.ffn_down.weight": "hidden_size intermediate_size",
            }
        ),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.written("rope.dimension_count", _rotated),
        keys.Rows(read=lambda facts: {"attention_bias": facts.has("blk.0.attn_q.bias")}),
    ),
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-07,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    vocabulary=tokenizer.glm4,
)
