"""OLMo 2."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope
from quantmill.gguf_io.convert.family import Family

TENSORS = (
    layout.EMBEDDING,
    *layout.HEAD,
    layout.NORMS_AFTER,
    layout.ATTENTION,
    layout.BIASES_OF_QKV,
    layout.Tensors(
        {
            "blk.attn_q_norm.weight": "num_attention_heads*head_dim",
            "blk.attn_k_norm.weight": "num_key_value_heads*head_dim",
        }
    ),
    layout.Tensors(layout.FEED_FORWARD),
)

FAMILY = Family(
    classes=("Olmo2ForCausalLM",),
    arch=MODEL_ARCH.OLMO2,
    model_type="olmo2",
    tensors=TENSORS,
    keys=(*keys.SIZES, rope.ROPE, keys.RMS_NORM, keys.HEAD_SIZES, keys.FILE_TYPE),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    is_this=lambda facts: facts.get("attention.sliding_window") is None,
)
