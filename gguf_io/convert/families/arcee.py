"""Arcee's AFM: Llama with a squared ReLU in place of the gate."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.family import Family

FAMILY = Family(
    classes=("ArceeForCausalLM",),
    arch=MODEL_ARCH.ARCEE,
    model_type="arcee",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(
            {
                "blk.ffn_up.weight": "intermediate_size hidden_size",
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
        keys.VOCABULARY_SIZE,
        rope.ROTATED,
        keys.Rows(read=lambda facts: {"attention_bias": facts.has("blk.0.attn_q.bias")}),
    ),
    defaults={
        "head_dim": keys.head_dim,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    rules=rules.INTERLEAVED_QK,
    vocabulary=tokenizer.llama,
    tables=rope.llama3,
)
