"""Gemma 3, its text part where it has others."""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families.gemma2 import attention_scale
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, Item, Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule, first
from quantmill.gguf_io.errors import GGUFError

# Rows behind the tokenizer's last token are padding of the embedding; llama.cpp expects none.
ONLY_KNOWN_TOKENS = (Rule(r"embed_tokens\.weight$", (Part(rows=first("tokenizer_size")),)),)


def _caps(config: Config) -> Iterable[Item]:
    if config.get("attn_logit_softcapping") is not None:
        raise GGUFError("config.json: attn_logit_softcapping is set; Gemma 3 has none")
    return FINAL_CAP.write(config)


def _window(config: Config) -> Iterable[Item]:
    return keys.WINDOW.write(config) if config.get("sliding_window_pattern") != 1 else ()


def _layers(facts: Facts) -> Settings:
    if facts.get("attention.sliding_window") is None:
        return {"layer_types": ["full_attention"] * facts.n_layers}
    return keys.WINDOW.read(facts) | {"layer_types": keys.every(facts, 6)}


FINAL_CAP = Key("final_logit_softcapping", "final_logit_softcapping", FLOAT32, nonzero=True)

FAMILY = Family(
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    arch=MODEL_ARCH.GEMMA3,
    model_type="gemma3_text",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.NORMS_AFTER,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.HEAD_NORMS,
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(
        *keys.SIZES,
        rope.rope_by_kind(local_theta=10000.0),
        keys.RMS_NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.Rows(_caps, FINAL_CAP.read),
        keys.Rows(_window, _layers),
        keys.Rows(read=attention_scale(62)),
    ),
    defaults={
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,  # left out by the published 4B
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1e6,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "vocab_size": 262208,
    },
    rules=rules.NORM_PLUS_ONE + ONLY_KNOWN_TOKENS,
    vocabulary=tokenizer.gemma3,
)
