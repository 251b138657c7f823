"""config.json as the Hugging Face configuration classes would complete it, without running them.

Checkpoints leave out what their class supplies. Only the keys the conversion reads are completed, from the
family's `defaults`; a number that makes the model what it is (hidden_size, …) is required, hardly ever supplied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.filesystem import read_regular

# Required numbers and what is believed of them: a hostile file must not make us count to a trillion.
REQUIRED = {
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**16,
    "vocab_size": 2**24,
}
SCALED_ROPE = ("llama3", "yarn", "longrope")
# Numbers that not every model has. 0 is a way to say none.
COUNTS = (
    *(
        "num_key_value_heads",
        "head_dim",
        "sliding_window",
        "max_position_embeddings",
        "shared_intermediate_size",
    ),
    *("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok", "n_shared_experts"),
    *("moe_intermediate_size", "shared_expert_intermediate_size", "n_group", "topk_group"),
    *(
        "kv_lora_rank",
        "q_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "first_k_dense_replace",
    ),
    *("original_max_position_embeddings",),
)
# The number of experts as the classes call it; to transformers they are one setting (attribute_map).
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
ATTENTION_KINDS = ("full_attention", "sliding_attention")
# Names that configuration classes have given the same setting of RoPE, in llama.cpp's order of preference.
ROPE_NAMES = {
    "rope_theta": (
        "global_rope_theta",
        "rope_global_theta",
        "rope_theta_global",
        "rope_theta",
        "rotary_emb_base",
    ),
    "partial_rotary_factor": ("partial_rotary_factor", "rope_pct", "rope_percent"),
}
ROPE_NUMBERS = (
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
)
LOCAL_THETA = (
    "local_rope_theta",
    "rope_local_theta",
    "rope_theta_local",
    "swa_rope_theta",
    "rope_local_base_freq",
)


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises GGUFError when it is not one, OSError when it cannot be read."""
    try:
        value = json.loads(read_regular(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise GGUFError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise GGUFError(f"{path}: not a JSON object")
    return value


def load_optional_json(path: Path) -> dict[str, Any]:
    return load_json(path) if path.is_file() else {}


def configuration(directory: Path) -> dict[str, Any]:
    """config.json; ModelOpt may say in a file beside it how it has quantized."""
    raw = load_json(directory / "config.json")
    beside = load_optional_json(directory / "hf_quant_config.json")
    settings, producer = beside.get("quantization"), beside.get("producer")
    own = raw.get("quantization_config") or {}
    if not isinstance(settings, Mapping) or not isinstance(own, Mapping):
        return raw
    method = producer.get("name") if isinstance(producer, Mapping) else None
    return {**raw, "quantization_config": {"quant_method": method or "modelopt", **settings, **own}}


def negative_ids(directory: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Ids of no token, which some exporters write for a special token that there is not."""
    for key, value in config.items():
        if key.endswith("_token_id") and type(value) is int and value < 0:
            yield f"{directory / 'config.json'}: {key} is {value}, which is no token; left out"


def complete(defaults: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the conversion works with: text_config lifted, defaults in, one form of RoPE settings.

    defaults: config key → value or function of the config, filled in where the key is missing. Raises GGUFError when
    a required key is missing or is no positive number.
    """
    config = _lifted(raw)
    theta = config.get("rope_theta")
    if (
        isinstance(theta, list) and len(theta) > 1
    ):  # a number for each layer, of which these two kinds are the first
        config |= {"rope_theta": theta[0], "local_rope_theta": theta[1]}
    n_experts = _named(config, EXPERT_COUNTS)
    if n_experts is not None:
        config |= {key: n_experts for key in EXPERT_COUNTS if key in defaults}
    for key, default in defaults.items():
        if not callable(default) and key != "rope_theta":
            config.setdefault(key, default)
    for key in REQUIRED:
        if config.get(key) is None and callable(defaults.get(key)):
            config[key] = defaults[key](config)
    for key in (*REQUIRED, *COUNTS):
        number = config.get(key)
        if isinstance(number, list) and number and number.count(number[0]) == len(number):
            config[key] = number[0]  # said of each layer
    for key, limit in REQUIRED.items():
        number = config.get(key)
        if number is None and defaults.get(key, key) is None:  # the family has no such number
            continue
        if type(number) is not int or not 1 <= number <= limit:
            raise GGUFError(
                f"config.json: key {key!r} must be a positive number up to {limit}, not {number!r}"
            )
    for key in COUNTS:
        number = config.get(key)
        if number is not None and (type(number) is not int or not 0 <= number < 2**31):
            raise GGUFError(f"config.json: key {key!r} must be a number from 0 on, not {number!r}")
    _check_layer_types(config)
    flat = _rope_object(config, "rope_parameters")[0] | _rope_object(config, "rope_scaling")[0]
    thetas = (flat.get("rope_theta"), _named(config, ROPE_NAMES["rope_theta"]), defaults.get("rope_theta"))
    config["rope_theta"] = next((theta for theta in thetas if theta is not None), None)
    for key, default in defaults.items():
        if callable(default) and config.get(key) is None:  # computed by the class, also for null
            config[key] = default(config)
    if config.get("num_key_value_heads") is None:  # attention without grouping
        config["num_key_value_heads"] = config["num_attention_heads"]
    config["rope_parameters"] = _rope_parameters(config)
    return config


def _check_layer_types(config: Mapping[str, Any]) -> None:
    kinds, n_layers = config.get("layer_types"), config["num_hidden_layers"]
    if kinds and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise GGUFError(f"config.json: layer_types must be a list of names, not {kinds!r}")
    if kinds and len(kinds) < n_layers:
        raise GGUFError(
            f"config.json: layer_types names {len(kinds)} layers, num_hidden_layers is {n_layers}"
        )
    pattern = config.get("sliding_window_pattern")
    if pattern is not None and (type(pattern) not in (int, str) or pattern in ("", 0)):
        raise GGUFError(
            f"config.json: sliding_window_pattern must be a number from 1 on or letters, not {pattern!r}"
        )


def _lifted(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The text model's settings at the top; a null there hides no value of the whole model's."""
    inner = raw.get("text_config") or {}
    if not isinstance(inner, Mapping):
        raise GGUFError(f"config.json: text_config must be an object, not {inner!r}")
    return {
        **raw,
        **{key: value for key, value in inner.items() if value is not None or raw.get(key) is None},
    }


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """One dict; where kinds of attention differ, one for each: `full_attention`, `sliding_attention`.

    Settings may stand at the top level, in rope_scaling (older, about full attention) and in rope_parameters (newer),
    there also under the kinds. What stands closer to a kind wins, and a null is no setting.
    """
    flat, kinds = _rope_object(config, "rope_parameters")
    scaling, kinds_of_scaling = _rope_object(config, "rope_scaling")
    flat |= scaling
    local_theta = _named(config, LOCAL_THETA)
    if not kinds and not kinds_of_scaling and local_theta is None:
        return _completed_rope(config, flat)
    full = flat | kinds.get("full_attention", {}) | scaling | kinds_of_scaling.get("full_attention", {})
    full = _completed_rope(config, full)
    sliding = kinds.get("sliding_attention", {}) | kinds_of_scaling.get("sliding_attention", {})
    sliding.setdefault("rope_theta", full.get("rope_theta") if local_theta is None else local_theta)
    sliding.setdefault("rope_type", "default")
    return {"full_attention": full, "sliding_attention": _completed_rope(config, sliding)}


def _rope_object(config: Mapping[str, Any], key: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """config[key] in two parts: what holds for all layers, and what for a kind of attention."""
    given = config.get(key) or {}
    parts = (
        {kind: part for kind, part in given.items() if kind in ATTENTION_KINDS} if _is_object(given) else {}
    )
    for name, value in ((key, given), *((f"{key}.{kind}", part) for kind, part in parts.items())):
        if value is not None and not _is_object(value):
            raise GGUFError(f"config.json: {name} must be an object, not {value!r}")
    flat = {name: value for name, value in given.items() if name not in ATTENTION_KINDS}
    return _settings(flat), {kind: _settings(part) for kind, part in parts.items() if part}


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls, the type under its newer name and in small letters."""
    rope = {name: value for name, value in given.items() if value is not None}
    kind = rope.get("rope_type", rope.get("type"))
    if kind is not None:
        if not isinstance(kind, str):
            raise GGUFError(f"config.json: the type of RoPE must be a text, not {kind!r}")
        # Phi-3's first name for it
        rope["rope_type"] = "longrope" if kind.lower() == "su" else kind.lower()
    return rope


def _completed_rope(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", **given}
    for key in ("rope_theta", "partial_rotary_factor"):
        outside = _named(config, ROPE_NAMES[key])
        if key not in rope and outside is not None:
            rope[key] = outside
    if rope["rope_type"] in SCALED_ROPE:
        outside = config.get("original_max_position_embeddings")
        rope["original_max_position_embeddings"] = outside or rope.get(
            "original_max_position_embeddings", config.get("max_position_embeddings")
        )
    for key in ROPE_NUMBERS:
        number = rope.get(key)
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, float))):
            raise GGUFError(f"config.json: {key} of RoPE must be a number, not {number!r}")
    return rope


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _named(config: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)
