"""Qwen3-VL, the text part: a Qwen 3 whose positions have three parts, which are equal in text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys
from quantmill.gguf_io.convert.families import qwen3
from quantmill.gguf_io.convert.rules import Config


def _deep_layers(config: Config) -> int:
    """How many layers take something of the image beside the first."""
    vision = config.get("vision_config")
    indexes = vision.get("deepstack_visual_indexes") if isinstance(vision, Mapping) else None
    return len(indexes) if isinstance(indexes, list) else 3


DEEPSTACK = keys.written("n_deepstack_layers", _deep_layers)

FAMILY = replace(
    qwen3.FAMILY,
    classes=("Qwen3VLForConditionalGeneration",),
    arch=MODEL_ARCH.QWEN3VL,
    keys=(*qwen3.FAMILY.keys, DEEPSTACK),
    defaults={**qwen3.FAMILY.defaults, "max_position_embeddings": 128000, "rope_theta": 500000.0},
)
