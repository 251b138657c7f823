"""StarCoder 2."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, Key

FAMILY = Family(
    classes=("Starcoder2ForCausalLM",),
    arch=MODEL_ARCH.STARCODER2,
    model_type="starcoder2",
    tensors=(
        layout.EMBEDDING,
        layout.Tensors({"output.weight?": "vocab_size hidden_size", "output_norm.bias": "hidden_size"}),
        layout.NORMS_BEFORE,
        layout.Tensors({"blk.attn_norm.bias": "hidden_size", "blk.ffn_norm.bias": "hidden_size"}),
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(
            {
                "blk.attn_output.bias": "hidden_size",
                "blk.ffn_up.weight": "intermediate_size hidden_size",
                "blk.ffn_up.bias": "intermediate_size",
                "blk.ffn_down.weight": "hidden_size intermediate_size",
                "blk.ffn_down.bias": "hidden_size",
            }
        ),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        Key("norm_epsilon", "attention.layer_norm_epsilon", FLOAT32),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
    ),
    defaults={
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
)
