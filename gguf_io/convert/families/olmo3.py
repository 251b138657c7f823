"""OLMo 3: OLMo 2 with windows; layers with a window rotate unscaled (src/models/olmo2.cpp)."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, rope
from quantmill.gguf_io.convert.families.olmo2 import TENSORS
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key

FAMILY = Family(
    classes=("Olmo3ForCausalLM",),
    arch=MODEL_ARCH.OLMO2,
    model_type="olmo3",
    tensors=TENSORS,
    keys=(
        *keys.SIZES,
        rope.rope_by_kind(),
        keys.RMS_NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        Key("sliding_window", "attention.sliding_window"),
        keys.Rows(keys.write_pattern, keys.layers_every(4).read),
    ),
    defaults={
        "layer_types": keys.alternating(4),
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_local_base_freq": lambda config: config["rope_theta"],
        "rope_theta": 500000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    is_this=lambda facts: facts.get("attention.sliding_window") is not None,
)
