"""EXAONE 4."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key


def _layers(facts: Facts) -> Settings:
    # src/models/exaone4.cpp: only the model of 64 layers slides; the others rotate and see everything
    if facts.get("attention.sliding_window") is None:
        return {"sliding_window": None, "layer_types": ["full_attention"] * facts.n_layers}
    return {"layer_types": keys.every(facts, 4)}


FAMILY = Family(
    classes=("Exaone4ForCausalLM",),
    arch=MODEL_ARCH.EXAONE4,
    model_type="exaone4",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_AFTER,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.HEAD_NORMS,
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        Key("sliding_window", "attention.sliding_window"),
        keys.Rows(keys.write_pattern, _layers),
    ),
    defaults={
        "layer_types": keys.alternating(4),
        "max_position_embeddings": 2048,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "tie_word_embeddings": False,
    },
    tables=rope.llama3,
)
