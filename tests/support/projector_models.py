"""Tiny multimodal models: the part that sees, beside what config.json must say of the text part. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.convert_models import DATA, README, write_shards

MODELS: dict[str, dict[str, Any]] = json.loads((DATA / "projectors.json").read_text(encoding="utf-8"))
TYPES = ("auto", "f32", "f16", "q8_0")
_PREPARED = {"image_mean": [0.5, 0.5, 0.25], "image_std": [0.5, 0.25, 0.5]}


def tensors(name: str) -> dict[str, tuple[str, np.ndarray]]:
    """name -> (safetensors dtype, values), in stored form; what transformers writes, under the hub's names."""
    random = np.random.RandomState(sum(name.encode()))
    found = {}
    for tensor, shape in MODELS[name]["tensors"].items():
        values = random.standard_normal(shape).astype(np.float32) * 0.05
        found[tensor] = "BF16", (values.view(np.uint32) >> 16).astype(np.uint16)
    return found


def write_projector(name: str, directory: Path) -> Path:
    model = MODELS[name]
    directory.mkdir(parents=True)
    config = {**model["config"], "bos_token_id": 1, "eos_token_id": 2}
    files = {"config.json": config, "preprocessor_config.json": {**_PREPARED, **model["prepared"]}}
    for file, value in files.items():
        (directory / file).write_text(json.dumps(value), encoding="utf-8")
    (directory / "README.md").write_text(README, encoding="utf-8")
    write_shards(directory, tensors(name))
    return directory
