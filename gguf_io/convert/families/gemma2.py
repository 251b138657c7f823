"""Gemma 2."""

from __future__ import annotations

from collections.abc import Callable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, UINT32, Key


def attention_scale(wide_layers: int) -> Callable[[Facts], Settings]:
    """By head size, but by embedding size in the 27B model, which llama.cpp knows by its number of layers."""

    def scale(facts: Facts) -> Settings:
        if facts.n_layers == wide_layers:
            return {
                "query_pre_attn_scalar": facts.need("embedding_length") // facts.need("attention.head_count")
            }
        return {"query_pre_attn_scalar": facts.need("attention.key_length")}

    return scale


FAMILY = Family(
    classes=("Gemma2ForCausalLM",),
    arch=MODEL_ARCH.GEMMA2,
    model_type="gemma2",
    tensors=(
        layout.EMBEDDING,
        layout.NORMS_BEFORE,
        layout.NORMS_AFTER,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(
        Key("max_position_embeddings", "context_length", needed=True),
        keys.WIDTH,
        keys.BLOCKS,
        keys.INNER,
        keys.HEADS,
        keys.KV_HEADS,
        keys.RMS_NORM,
        Key("head_dim", "attention.key_length", needed=True),
        keys.written("attention.value_length", lambda config: config["head_dim"], UINT32),
        keys.FILE_TYPE,
        Key("attn_logit_softcapping", "attn_logit_softcapping", FLOAT32, needed=True),
        Key("final_logit_softcapping", "final_logit_softcapping", FLOAT32, needed=True),
        keys.WINDOW,
        keys.layers_every(2),
        keys.Rows(read=rope.ROPE.read),
        keys.Rows(read=attention_scale(46)),
    ),
    defaults={
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    rules=rules.NORM_PLUS_ONE + rules.tied_head_left_out(True),
    vocabulary=tokenizer.gemma2,
)
