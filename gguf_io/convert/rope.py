"""RoPE tables that llama.cpp stores as tensors: Llama 3's frequency factors, Phi-3's long and short factors."""

from __future__ import annotations

import math

import numpy as np
from gguf import GGUFWriter

from quantmill.gguf_io.convert.hyperparameters import global_rope, head_dim, need
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError

Tables = dict[str, np.ndarray]  # GGUF name -> f32 [rotated dimensions / 2]


def no_tables(writer: GGUFWriter, config: Config) -> Tables:
    return {}


def llama3(writer: GGUFWriter, config: Config) -> Tables:
    """`rope_freqs.weight`: what each frequency is divided by, when rope_type is llama3.

    Rounded to float32 step by step as llama.cpp's converter does it in torch, where number / tensor is
    number × (1 / tensor). Torch's own power may be one unit in the last place away from the correctly rounded one
    here, differently on different processors; then one value of the table differs by as much.
    """
    rope = global_rope(config)
    if str(rope.get("rope_type")).lower() != "llama3":
        return {}
    factor, low, high = (
        rope.get(key, default)
        for key, default in (("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
    )
    if low == high:
        raise GGUFError("config.json: rope_scaling low_freq_factor and high_freq_factor are equal")
    context = rope.get("original_max_position_embeddings", 8192)
    f32, one = np.float32, np.float32(1)
    exponent = np.arange(0, head_dim(config), 2, dtype=f32) / f32(head_dim(config))
    power = (float(rope.get("rope_theta", 10000.0)) ** exponent.astype(np.float64)).astype(f32)
    wavelengths = one / (one / power) * f32(2 * math.pi)
    smooth = (one / wavelengths * f32(context) - f32(low)) / f32(high - low)
    between = one / ((one - smooth) / f32(factor) + smooth)
    factors = np.where(wavelengths < context / high, one, between)
    return {"rope_freqs.weight": np.where(wavelengths > context / low, f32(factor), factors)}


def phi3(writer: GGUFWriter, config: Config) -> Tables:
    """`rope_factors_long.weight`, `rope_factors_short.weight` and the attention factor of LongRoPE."""
    rope = global_rope(config)
    long = rope.get("long_factor")
    if not long:
        return {}
    if rope["rope_type"] != "longrope":
        raise GGUFError(
            f"config.json: rope_scaling type {rope['rope_type']!r} with long_factor; longrope is known"
        )
    short = need(rope, "short_factor")
    rotated = (
        int(rope.get("partial_rotary_factor", 1.0) * config["hidden_size"]) // config["num_attention_heads"]
    )
    if not len(long) == len(short) == rotated / 2:
        raise GGUFError(
            f"config.json: {len(long)} long and {len(short)} short RoPE factors; "
            f"{rotated} rotated dimensions need {rotated // 2} each"
        )
    original = rope["original_max_position_embeddings"]
    scale = need(config, "max_position_embeddings") / original
    writer.add_rope_scaling_attn_factors(
        math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1.0 else 1.0
    )
    return {
        "rope_factors_long.weight": np.array(long, np.float32),
        "rope_factors_short.weight": np.array(short, np.float32),
    }


def ignored(config: Config, tables: Tables) -> list[str]:
    """What config.json asks of RoPE and llama.cpp does not do; one line each. tables: those the family has made."""
    rope, kind = global_rope(config), global_rope(config)["rope_type"]
    lines = []
    if kind in ("linear", "yarn") and rope.get("factor") is None:
        lines.append(f"type {kind} without a factor is written as no scaling")
    if kind == "dynamic":
        lines.append("llama.cpp has no dynamic scaling; it rotates unscaled, beyond the trained context too")
    if (kind == "llama3" and "rope_freqs.weight" not in tables) or (
        kind == "longrope" and "rope_factors_long.weight" not in tables
    ):
        lines.append(f"llama.cpp knows no {kind} for this architecture; it rotates unscaled")
    sliding = config["rope_parameters"].get("sliding_attention", {}).get("rope_type", "default")
    if sliding != "default":
        lines.append(f"llama.cpp rotates unscaled in layers with a window; {sliding} there is left out")
    return [f"config.json: RoPE: {line}" for line in lines]
