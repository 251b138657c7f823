"""Qwen 3."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, pooling, rope, tokenizer
from quantmill.gguf_io.convert.family import Family

FAMILY = Family(
    classes=("Qwen3ForCausalLM",),
    arch=MODEL_ARCH.QWEN3,
    model_type="qwen3",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.HEAD_NORMS,
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(*keys.SIZES, rope.ROPE, keys.RMS_NORM, keys.HEAD_SIZES, keys.FILE_TYPE, pooling.POOLING),
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    vocabulary=tokenizer.sentencepiece_or_bpe,
)
