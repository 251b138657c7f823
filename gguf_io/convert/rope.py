"""RoPE, both ways: settings as GGUF keys, and the tables that llama.cpp stores as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from gguf import RopeScalingType

from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.keys import ARRAY, FLOAT32, STRING, UINT32, Item, Rows, head_dim, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError

Tables = dict[str, np.ndarray]  # GGUF name -> f32 [rotated dimensions / 2]

# What llama.cpp can do for some architectures, by keys or by tensors.
SCALINGS = ("linear", "yarn", "longrope", "llama3")
# Keys of config.json in order of preference -> GGUF
YARN = {
    ("extrapolation_factor",): "rope.scaling.yarn_ext_factor",
    ("attention_factor", "attn_factor"): "rope.scaling.yarn_attn_factor",
    ("beta_fast",): "rope.scaling.yarn_beta_fast",
    ("beta_slow",): "rope.scaling.yarn_beta_slow",
}


def of_full_attention(config: Config) -> Mapping[str, Any]:
    """The settings of full attention layers."""
    rope = config["rope_parameters"]
    return rope.get("full_attention", rope)


def write(config: Config) -> Iterable[Item]:
    rope, both = of_full_attention(config), config["rope_parameters"]
    kind, factor = rope["rope_type"], rope.get("factor")
    if kind in ("linear", "yarn") and factor is not None:
        yield "rope.scaling.type", STRING, RopeScalingType(kind).value
        yield "rope.scaling.factor", FLOAT32, factor
    if kind == "yarn" and factor is not None:
        yield "rope.scaling.original_context_length", UINT32, rope["original_max_position_embeddings"]
        for names, key in YARN.items():
            found = [rope[name] for name in names if rope.get(name) is not None]
            if found:
                yield key, FLOAT32, found[0]
    if kind == "longrope":
        yield "rope.scaling.type", STRING, RopeScalingType.LONGROPE.value
    sections = both.get("mrope_section")
    if sections is not None:
        if not (isinstance(sections, list) and all(type(n) is int for n in sections)):
            raise GGUFError(f"config.json: mrope_section must be a list of numbers, not {sections!r}")
        yield "rope.dimension_sections", ARRAY, [*sections, 0, 0, 0, 0][:4]
    if rope.get("rope_theta") is not None:
        yield "rope.freq_base", FLOAT32, rope["rope_theta"]
    local_theta = both.get("sliding_attention", {}).get("rope_theta")
    if local_theta is not None:
        yield "rope.freq_base_swa", FLOAT32, local_theta


def read(facts: Facts) -> Settings:
    """Rotary parameters in transformers' words; Llama 3's frequency factors are a tensor, applied later."""
    out: Settings = {"rope_type": "default", "rope_theta": facts.get("rope.freq_base", 10000.0)}
    rotated = facts.get("rope.dimension_count", facts.head_size)
    if rotated != facts.head_size:
        out["partial_rotary_factor"] = rotated / facts.head_size
    return out | read_scaling(facts)


def read_scaling(facts: Facts) -> Settings:
    kind = facts.get("rope.scaling.type", "none")
    if kind not in ("linear", "yarn"):
        return {}
    out: Settings = {"rope_type": kind, "factor": facts.need("rope.scaling.factor")}
    if kind == "yarn":
        keys = {names[0]: key for names, key in YARN.items() if names != ("extrapolation_factor",)}
        keys["original_max_position_embeddings"] = "rope.scaling.original_context_length"
        out |= {name: facts.get(key) for name, key in keys.items() if facts.get(key) is not None}
    return out


def _read_kinds(local_theta: float | None) -> Callable[[Facts], Settings]:
    def read_both(facts: Facts) -> Settings:
        full = read(facts)
        theta = facts.get("rope.freq_base_swa", full["rope_theta"] if local_theta is None else local_theta)
        sliding = {"rope_type": "default", "rope_theta": theta}
        return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}

    return read_both


ROPE = Rows(write, lambda facts: {"rope_parameters": read(facts)})


def rope_by_kind(local_theta: float | None = None) -> Rows:
    """Layers with a window rotate unscaled; local_theta: theirs where the file has none (None: that of all)."""
    return Rows(write, _read_kinds(local_theta))


def rope_known(also: Callable[[Facts], Settings]) -> Rows:
    """also: parameters that GGUF has no key for, or keeps elsewhere."""
    return Rows(write, lambda facts: {"rope_parameters": read(facts) | also(facts)})


# Read by rope.read
ROTATED = written("rope.dimension_count", head_dim)


def no_tables(config: Config) -> Tables:
    return {}


def llama3(config: Config) -> Tables:
    """`rope_freqs.weight`: what each frequency is divided by, when rope_type is llama3.

    Rounded to float32 step by step as llama.cpp's converter does it in torch, where number / tensor is
    number × (1 / tensor). Torch's own power may be one unit in the last place away from the correctly rounded one
    here, differently on different processors; then one value of the table differs by as much.
    """
    rope = of_full_attention(config)
    if rope["rope_type"] != "llama3":
        return {}
    factor, low, high = (
        rope.get(key, default)
        for key, default in (("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
    )
    context = rope.get("original_max_position_embeddings", 8192)
    if 0 in (factor, low, high):
        raise GGUFError(
            f"config.json: RoPE's factor {factor}, low_freq_factor {low} and high_freq_factor {high} must not be 0"
        )
    f32, one = np.float32, np.float32(1)
    exponent = np.arange(0, head_dim(config), 2, dtype=f32) / f32(head_dim(config))
    power = (float(rope.get("rope_theta", 10000.0)) ** exponent.astype(np.float64)).astype(f32)
    wavelengths = one / (one / power) * f32(2 * math.pi)
    with np.errstate(all="ignore"):  # where the two are equal (Llama 4) no frequency lies between them
        smooth = (one / wavelengths * f32(context) - f32(low)) / f32(high - low)
        between = one / ((one - smooth) / f32(factor) + smooth)
    factors = np.where(wavelengths < context / high, one, between)
    return {"rope_freqs.weight": np.where(wavelengths > context / low, f32(factor), factors)}


def ignored(config: Config, tables: Tables, scaling: str | None) -> list[str]:
    """What config.json asks of RoPE and llama.cpp does not do; one line each.

    tables: those the family has made. scaling: what it has written as rope.scaling.type.
    """
    rope = of_full_attention(config)
    kind = rope["rope_type"]
    lines = []
    if kind == "dynamic" and scaling is None:
        lines.append("llama.cpp has no dynamic scaling; it rotates unscaled, beyond the trained context too")
    elif kind in ("linear", "yarn") and rope.get("factor") is None and not tables:
        lines.append(f"type {kind} without a factor is written as no scaling")
    elif kind in SCALINGS and not tables and not kind == scaling != "longrope":
        lines.append(f"llama.cpp knows no {kind} for this architecture; it rotates unscaled")
    elif kind not in (*SCALINGS, "default", "mrope", "dynamic") and not tables:
        lines.append(f"llama.cpp has no scaling of type {kind!r}; it rotates unscaled")
    sliding = config["rope_parameters"].get("sliding_attention", {}).get("rope_type", "default")
    if sliding != "default":
        lines.append(f"llama.cpp rotates unscaled in layers with a window; {sliding} there is left out")
    return [f"config.json: RoPE: {line}" for line in lines]
