"""config.json as the Hugging Face configuration classes would complete it, without running them.

Checkpoints leave out what their class supplies. Only the keys the conversion reads are completed, from the
family's `defaults`; a number that makes the model what it is (hidden_size, …) is required, hardly ever supplied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantmill.gguf_io.errors import GGUFError

if TYPE_CHECKING:
    from quantmill.gguf_io.convert.families import Family

# Required numbers and what is believed of them: a hostile file must not make us count to a trillion.
REQUIRED = {
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**16,
    "vocab_size": 2**24,
}
SCALED_ROPE = ("llama3", "yarn", "longrope")


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises GGUFError when it is not one, OSError when it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise GGUFError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise GGUFError(f"{path}: not a JSON object")
    return value


def load_optional_json(path: Path) -> dict[str, Any]:
    return load_json(path) if path.is_file() else {}


def complete(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the conversion works with: text_config lifted, defaults in, one form of RoPE settings.

    Raises GGUFError when a required key is missing or is no positive number.
    """
    config = {**raw, **(raw.get("text_config") or {})}
    for key, default in family.defaults.items():
        if not callable(default):
            config.setdefault(key, default)
    for key, limit in REQUIRED.items():
        number = config.get(key)
        if type(number) is not int or not 1 <= number <= limit:
            raise GGUFError(
                f"config.json: key {key!r} must be a positive number up to {limit}, not {number!r}"
            )
    for key, default in family.defaults.items():
        if callable(default) and config.get(key) is None:  # computed by the class, also for null
            config[key] = default(config)
    if config.get("num_key_value_heads") is None:  # attention without grouping
        config["num_key_value_heads"] = config["num_attention_heads"]
    config["rope_parameters"] = _rope_parameters(config)
    return config


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """One dict; where kinds of attention differ, one for each: `full_attention`, `sliding_attention`."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise GGUFError(f"config.json: rope_scaling must be an object, not {given!r}")
    if any(isinstance(value, Mapping) for value in given.values()):
        return {kind: _completed_rope(config, settings or {}) for kind, settings in given.items()}
    rope = _completed_rope(config, given)
    local_theta = config.get("rope_local_base_freq")
    if local_theta is None:
        return rope
    return {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": local_theta}}


def _completed_rope(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    rope = dict(given)
    rope.setdefault("rope_type", rope.get("type", "default"))
    if rope["rope_type"] == "su":  # Phi-3's first name for it
        rope["rope_type"] = "longrope"
    for key in ("rope_theta", "partial_rotary_factor"):
        if key not in rope and config.get(key) is not None:
            rope[key] = config[key]
    if rope["rope_type"] in SCALED_ROPE:
        outside = config.get("original_max_position_embeddings")
        rope["original_max_position_embeddings"] = outside or rope.get(
            "original_max_position_embeddings", config.get("max_position_embeddings")
        )
    return rope
