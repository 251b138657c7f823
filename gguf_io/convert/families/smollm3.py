"""SmolLM3: every fourth layer goes without rotary embedding, which llama.cpp has in code (src/models/smollm3.cpp)."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import llama
from quantmill.gguf_io.convert.family import Family


def _rotating(facts: Facts) -> Settings:
    return {"no_rope_layers": [int((i + 1) % 4 != 0) for i in range(facts.n_layers)]}


FAMILY = Family(
    classes=("SmolLM3ForCausalLM",),
    arch=MODEL_ARCH.SMOLLM3,
    model_type="smollm3",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(*llama.KEYS, keys.Rows(read=_rotating)),
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
    },
    rules=rules.INTERLEAVED_QK,
    vocabulary=tokenizer.llama,
    tables=rope.llama3,
)
