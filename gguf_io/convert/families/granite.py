"""Granite 3: Llama with multipliers."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, rope, rules, tokenizer
from quantmill.gguf_io.convert.families import llama
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, Key

# The head size always follows from the hidden size.
ROTATED = keys.written(
    "rope.dimension_count", lambda config: config["hidden_size"] // config["num_attention_heads"]
)
MULTIPLIERS = (
    Key("attention_multiplier", "attention.scale", FLOAT32, nonzero=True),
    Key("embedding_multiplier", "embedding_scale", FLOAT32, nonzero=True),
    Key("residual_multiplier", "residual_scale", FLOAT32, nonzero=True),
    Key("logits_scaling", "logit_scale", FLOAT32, nonzero=True),
)
DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
FAMILY = Family(
    classes=("GraniteForCausalLM",),
    arch=MODEL_ARCH.GRANITE,
    model_type="granite",
    tensors=llama.DENSE,
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        ROTATED,
        *MULTIPLIERS,
        keys.Rows(read=llama.biases),
    ),
    defaults=DEFAULTS,
    rules=rules.INTERLEAVED_QK,
    vocabulary=tokenizer.llama,
    tables=rope.llama3,
)
