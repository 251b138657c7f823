"""Seed-OSS."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope
from quantmill.gguf_io.convert.family import Family

FAMILY = Family(
    classes=("SeedOssForCausalLM",),
    arch=MODEL_ARCH.SEED_OSS,
    model_type="seed_oss",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.Tensors(
            {"blk.attn_norm.weight": "hidden_size", "blk.post_attention_norm.weight": "hidden_size"}
        ),
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.Rows(read=lambda facts: {"attention_bias": facts.has("blk.0.attn_q.bias")}),
    ),
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
)
