"""What a GGUF says about its model, without its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantmill.models.errors import ModelError

Settings = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What a GGUF says about its model: metadata without the architecture prefix, tensor shapes (ggml order)
    and small tensors by name. read(name) -> f32 array."""

    architecture: str
    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]

    def get(self, key: str, default: Any = None) -> Any:
        entry = self.metadata.get(f"{self.architecture}.{key}")
        return default if entry is None else entry.value

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ModelError(
                f"metadata key {self.architecture}.{key} is missing; the model cannot be built without it"
            )
        return value

    @property
    def n_layers(self) -> int:
        return self.need("block_count") - self.get("nextn_predict_layers", 0)

    def has(self, *names: str) -> bool:
        return any(name in self.shapes for name in names)


def rope(facts: Facts) -> Settings:
    """Rotary parameters in transformers' words; Llama 3's frequency factors are a tensor, applied later."""
    head = facts.get("attention.key_length") or facts.need("embedding_length") // facts.need(
        "attention.head_count"
    )
    out: Settings = {"rope_type": "default", "rope_theta": facts.get("rope.freq_base", 10000.0)}
    rotated = facts.get("rope.dimension_count", head)
    if rotated != head and facts.architecture != "deepseek2":
        out["partial_rotary_factor"] = rotated / head
    kind = facts.get("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        out |= {"rope_type": kind, "factor": facts.need("rope.scaling.factor")}
    if kind == "yarn":
        named = {
            "original_max_position_embeddings": "original_context_length",
            "attention_factor": "yarn_attn_factor",
            "beta_fast": "yarn_beta_fast",
            "beta_slow": "yarn_beta_slow",
        }
        out |= {
            ours: facts.get(f"rope.scaling.{key}")
            for ours, key in named.items()
            if facts.get(f"rope.scaling.{key}") is not None
        }
    return out
