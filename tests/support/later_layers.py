"""Layers that predict further tokens (NextN, MTP), as checkpoints hold them behind those of a small model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tests.support.convert_models import Model

Stored = dict[str, tuple[str, np.ndarray]]
OF_MIMO = ("mimo_v2_flash", "mimo_v2")
OF_NEMOTRON = {"mtp.layers.0": "*", "mtp.layers.1": "E"}  # their letters in hybrid_override_pattern


def later_layers(random: np.random.RandomState, model: Model, found: Stored) -> Stored:
    if model.model_type == "nemotron_h":
        return _of_nemotron(random, model, found)
    later = _of_last(random, model, found)
    if model.model_type in OF_MIMO:  # of which there are three
        for i in (1, 2):
            later |= {name.replace("layers.0.", f"layers.{i}."): value for name, value in later.items()}
    return later


def floats(dtype: str, values: np.ndarray) -> tuple[str, np.ndarray]:
    if dtype == "BF16":
        return dtype, (values.view(np.uint32) >> 16).astype(np.uint16)
    return dtype, values.astype({"F16": np.float16, "F32": np.float32}[dtype])


def _made(random: np.random.RandomState, dtype: str, shapes: Mapping[str, tuple[int, ...]]) -> Stored:
    return {
        name: floats(dtype, random.standard_normal(shape).astype(np.float32) * 0.05)
        for name, shape in shapes.items()
    }


def _of_nemotron(random: np.random.RandomState, model: Model, found: Stored) -> Stored:
    """One in two parts: an attention, and experts behind it; each with the tensors of a layer of its kind."""
    width, pattern = model.config["hidden_size"], model.config["hybrid_override_pattern"]
    shapes: dict[str, tuple[int, ...]] = {
        "mtp.layers.0.eh_proj.weight": (width, 2 * width),
        "mtp.layers.0.enorm.weight": (width,),
        "mtp.layers.0.hnorm.weight": (width,),
        "mtp.layers.1.final_layernorm.weight": (width,),
    }
    for part, letter in OF_NEMOTRON.items():
        like = f"backbone.layers.{pattern.index(letter)}."
        shapes |= {
            f"{part}.{name.removeprefix(like)}": values.shape
            for name, (_, values) in found.items()
            if name.startswith(like)
        }
    return _made(random, model.dtype, shapes)


def _of_last(random: np.random.RandomState, model: Model, found: Stored) -> Stored:
    """A layer that predicts further tokens: the tensors of the last anew, of K-EXAONE those of the first, which has no
    experts, of MiMo V2 the first's feed-forward behind a layer that slides; and what it has beside them. GLM-5.3-Flash
    has one stream of states there."""
    config = model.config.get("text_config", model.config)
    root = "model.language_model." if model.whole else "model."
    last, width = config["num_hidden_layers"] - 1, config["hidden_size"]
    apart, of_mimo = model.architecture.startswith(("Qwen", "Exaone")), model.model_type in OF_MIMO
    first, own = ("mtp.", "mtp.layers.0.") if apart else (f"{root}layers.{last + 1}.",) * 2
    first, own = ("model.mtp.layers.0.",) * 2 if of_mimo else (first, own)

    def prefix(tensor: str) -> str:
        dense = model.model_type == "exaone_moe" or (of_mimo and ".mlp." in tensor)
        return f"{root}layers.{0 if dense else 1 if of_mimo else last}."

    shapes = {
        own + tensor.removeprefix(prefix(tensor)): values.shape
        for tensor, (_, values) in found.items()
        if tensor.startswith(prefix(tensor)) and not (model.whole and ".hc_" in tensor)
    }
    beside = {"eh_proj": (width, 2 * width), "enorm": (width,), "hnorm": (width,)}
    norms = {
        "hy_v3": "final_layernorm",
        "bailing_hybrid": "final_layernorm",
        "bailing_moe_v2": "final_layernorm",
        **dict.fromkeys(OF_MIMO, "final_layernorm"),
        "step3p5": "transformer.shared_head.norm",
    }
    beside[norms.get(model.model_type, "shared_head.norm")] = (width,)
    mtp = dict(zip(beside, ("fc", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"), strict=True))
    if model.model_type == "step3p5":
        beside["transformer.shared_head.output"] = (config["vocab_size"], width)
    shapes |= {f"{first}{mtp[part] if apart else part}.weight": shape for part, shape in beside.items()}
    return _made(random, model.dtype, shapes)
