"""Llama, and what is Llama by class: Falcon 3, SmolLM2, Yi and many more."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family


def biases(facts: Facts) -> Settings:
    return {"attention_bias": facts.has("blk.0.attn_q.bias"), "mlp_bias": facts.has("blk.0.ffn_gate.bias")}


DENSE = (
    layout.EMBEDDING,
    *layout.HEAD,
    layout.NORMS_BEFORE,
    layout.ATTENTION,
    layout.BIASES_OF_QKV,
    layout.Tensors({"blk.attn_output.bias?": "hidden_size"}),
    layout.Tensors(layout.FEED_FORWARD),
    layout.Tensors(
        {
            "blk.ffn_gate.bias?": "intermediate_size",
            "blk.ffn_up.bias?": "intermediate_size",
            "blk.ffn_down.bias?": "hidden_size",
        }
    ),
)
KEYS = (
    *keys.SIZES,
    rope.ROPE,
    keys.RMS_NORM,
    keys.HEAD_SIZES,
    keys.FILE_TYPE,
    keys.VOCABULARY_SIZE,
    rope.ROTATED,
    keys.Rows(read=biases),
)

FAMILY = Family(
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    arch=MODEL_ARCH.LLAMA,
    model_type="llama",
    tensors=DENSE,
    keys=KEYS,
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "head_dim": keys.head_dim,
        "tie_word_embeddings": False,
    },
    rules=rules.INTERLEAVED_QK,
    vocabulary=tokenizer.llama,
    tables=rope.llama3,
    is_this=lambda facts: not facts.get("expert_count", 0),
)
