"""Phi-3 and Phi-4, with LongRoPE."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, UINT32, Item, Key, need
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError


def _rotated(config: Config) -> int:
    partial = rope.of_full_attention(config).get("partial_rotary_factor", 1.0)
    return int(partial * config["hidden_size"]) // config["num_attention_heads"]


def _original_context(config: Config) -> int:
    original = rope.of_full_attention(config).get("original_max_position_embeddings")
    return original or need(config, "original_max_position_embeddings")


def _tables(config: Config) -> rope.Tables:
    """`rope_factors_long.weight` and `rope_factors_short.weight`."""
    settings = rope.of_full_attention(config)
    long = settings.get("long_factor")
    if not long:
        return {}
    if settings["rope_type"] not in ("longrope", "yarn"):
        raise GGUFError(
            f"config.json: rope_scaling type {settings['rope_type']!r} with long_factor; longrope and yarn are known"
        )
    short, rotated = need(settings, "short_factor"), _rotated(config)
    for key, factors in (("long_factor", long), ("short_factor", short)):
        if not (isinstance(factors, list) and all(type(x) in (int, float) for x in factors)):
            raise GGUFError(f"config.json: {key} of RoPE must be a list of numbers, not {factors!r}")
    if not len(long) == len(short) == rotated / 2:
        raise GGUFError(
            f"config.json: {len(long)} long and {len(short)} short RoPE factors; "
            f"{rotated} rotated dimensions need {rotated // 2} each"
        )
    return {
        "rope_factors_long.weight": np.array(long, np.float32),
        "rope_factors_short.weight": np.array(short, np.float32),
    }


def _attention_factor(config: Config) -> Iterable[Item]:
    if not _tables(config):
        return
    original = rope.of_full_attention(config)["original_max_position_embeddings"]
    if not original or original < 2:
        raise GGUFError(f"config.json: original_max_position_embeddings must be at least 2, not {original!r}")
    scale = need(config, "max_position_embeddings") / original
    if scale <= 1.0:
        factor = 1.0
    elif rope.of_full_attention(config)["rope_type"] == "yarn":
        factor = 0.1 * math.log(scale) + 1.0
    else:
        factor = math.sqrt(1 + math.log(scale) / math.log(original))
    yield "rope.scaling.attn_factor", FLOAT32, factor


def _read_rope(facts: Facts) -> Settings:
    original = facts.get("rope.scaling.original_context_length", facts.need("context_length"))
    parameters = rope.read(facts)
    if facts.has("rope_factors_short.weight"):
        parameters |= {
            "rope_type": "longrope",
            "short_factor": facts.read("rope_factors_short.weight").ravel().tolist(),
            "long_factor": facts.read("rope_factors_long.weight").ravel().tolist(),
            "original_max_position_embeddings": original,
            "attention_factor": facts.get("rope.scaling.attn_factor"),
        }
    return {"rope_parameters": parameters, "original_max_position_embeddings": original}


FAMILY = Family(
    classes=("Phi3ForCausalLM",),
    arch=MODEL_ARCH.PHI3,
    model_type="phi3",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.Tensors(
            {
                "blk.attn_qkv.weight": "num_attention_heads*head_dim+2*num_key_value_heads*head_dim hidden_size",
                "blk.attn_qkv.bias?": "num_attention_heads*head_dim+2*num_key_value_heads*head_dim",
                "blk.attn_output.weight": "hidden_size num_attention_heads*head_dim",
                "blk.ffn_up.weight": "2*intermediate_size hidden_size",
                "blk.ffn_down.weight": "hidden_size intermediate_size",
            }
        ),
    ),
    table_keys=(keys.Rows(_attention_factor),),
    tables=_tables,
    keys=(
        Key("max_position_embeddings", "context_length", needed=True),
        keys.written("rope.scaling.original_context_length", _original_context),
        keys.WIDTH,
        keys.INNER,
        keys.BLOCKS,
        keys.HEADS,
        keys.KV_HEADS,
        keys.RMS_NORM,
        keys.Rows(keys.written("rope.dimension_count", _rotated).write, _read_rope),
        keys.written("rope.freq_base", lambda config: rope.of_full_attention(config)["rope_theta"], FLOAT32),
        keys.FILE_TYPE,
        # 0 tells Phi-4 from Phi-3; llama.cpp has the window switched off.
        keys.written("attention.sliding_window", lambda config: config.get("sliding_window") or 0, UINT32),
    ),
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    vocabulary=tokenizer.phi3,
)
