"""What a GGUF says about its model, without its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.sensible import sensible

Settings = dict[str, Any]  # of transformers' configuration


@dataclass(frozen=True)
class Facts:
    """What a GGUF says about its model: metadata without the architecture prefix, tensor shapes (ggml order)
    and small tensors by name. read(name) -> f32 array."""

    architecture: str
    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]

    def get(self, key: str, default: Any = None) -> Any:
        """Raises GGUFError for a number that no model has under such a key."""
        name = f"{self.architecture}.{key}"
        entry = self.metadata.get(name)
        return default if entry is None else sensible(name, entry.value)

    def need(self, key: str) -> Any:
        """Raises GGUFError when the key is missing."""
        value = self.get(key)
        if value is None:
            raise GGUFError(
                f"metadata key {self.architecture}.{key} is missing; the model cannot be built without it"
            )
        return value

    @property
    def n_layers(self) -> int:
        return self.need("block_count") - self.get("nextn_predict_layers", 0)

    @property
    def head_size(self) -> int:
        return self.get("attention.key_length") or self.need("embedding_length") // self.need(
            "attention.head_count"
        )

    def has(self, *names: str) -> bool:
        return any(name in self.shapes for name in names)
