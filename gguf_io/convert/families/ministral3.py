"""Ministral 3: Llama with YaRN and an attention scale that grows with the position."""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, rope
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import llama
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, Item, Row
from quantmill.gguf_io.convert.rules import INTERLEAVED_QK, Config
from quantmill.gguf_io.convert.tokenizer import llama as llama_vocabulary
from quantmill.gguf_io.errors import GGUFError


def _has_scales(config: Config) -> bool:
    """The vision class holds older text models too, which have none."""
    return config.get("model_type", "ministral3") == "ministral3"


def _scales(config: Config) -> Iterable[Item]:
    if not _has_scales(config):
        return
    settings = rope.of_full_attention(config)
    if settings["rope_type"] != "yarn":
        raise GGUFError(f"config.json: RoPE of type {settings['rope_type']!r}; Ministral 3 has yarn")
    yield "rope.scaling.yarn_log_multiplier", FLOAT32, keys.need(settings, "mscale_all_dim")
    yield "attention.temperature_scale", FLOAT32, keys.need(settings, "llama_4_scaling_beta")


def _read(facts: Facts) -> Settings:
    return {
        "mscale": 1.0,
        "mscale_all_dim": facts.get("rope.scaling.yarn_log_multiplier", 1.0),
        "llama_4_scaling_beta": facts.need("attention.temperature_scale"),
    }


def _rope_of_class(config: Config) -> Settings | None:
    return dict(YARN) if _has_scales(config) and not config.get("rope_scaling") else None


def with_rope(row: Row) -> tuple[Row, ...]:
    return (
        *keys.SIZES,
        row,
        keys.RMS_NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        rope.ROTATED,
        keys.Rows(_scales),
    )


YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

FAMILY = Family(
    classes=("Ministral3ForCausalLM",),
    arch=MODEL_ARCH.MISTRAL3,
    model_type="ministral3",
    tensors=llama.DENSE,
    keys=with_rope(rope.rope_known(_read)),
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _rope_of_class,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    rules=INTERLEAVED_QK,
    vocabulary=llama_vocabulary,
    is_this=lambda facts: facts.get("attention.temperature_scale") is not None,
)
