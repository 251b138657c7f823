"""Cohere Command R7B and A."""

from __future__ import annotations

from gguf import MODEL_ARCH, RopeScalingType

from quantmill.gguf_io.convert import keys, layout, rope, rules
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, STRING, Key
from quantmill.gguf_io.convert.rules import Config, Rule


def _rotated(config: Config) -> int:
    size = config["hidden_size"] // config["num_attention_heads"]
    return int(keys.checked("rotary_pct", config.get("rotary_pct", 1.0), FLOAT32) * size)


# Cohere's runtime knows no biases.
ZERO_BIAS_LEFT_OUT = (Rule(r"\.bias$", zero=True),)

FAMILY = Family(
    classes=("Cohere2ForCausalLM",),
    arch=MODEL_ARCH.COHERE2,
    model_type="cohere2",
    tensors=(
        layout.EMBEDDING,
        layout.Tensors({"blk.attn_norm.weight": "hidden_size"}),
        layout.ATTENTION,
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        Key("layer_norm_eps", "attention.layer_norm_epsilon", FLOAT32),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        Key("logit_scale", "logit_scale", FLOAT32, needed=True),
        keys.WINDOW,
        keys.VOCABULARY_SIZE,
        keys.written("rope.dimension_count", _rotated),
        keys.written("rope.scaling.type", lambda config: RopeScalingType.NONE.value, STRING),
        keys.layers_every(4),
    ),
    defaults={
        "head_dim": keys.head_dim,
        "layer_norm_eps": 1e-5,
        "layer_types": keys.alternating(4),
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "rotary_pct": 1.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    rules=ZERO_BIAS_LEFT_OUT + rules.tied_head_left_out(True),
)
