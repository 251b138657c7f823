"""ERNIE 4.5, dense."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, tokenizer
from quantmill.gguf_io.convert.family import Family

FAMILY = Family(
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    arch=MODEL_ARCH.ERNIE4_5,
    model_type="ernie4_5",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors({"blk.attn_output.bias?": "hidden_size"}),
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(*keys.SIZES, rope.ROPE, keys.RMS_NORM, keys.HEAD_SIZES, keys.FILE_TYPE),
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    vocabulary=tokenizer.ernie,
)
