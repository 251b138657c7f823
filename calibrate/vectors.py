"""The F32 vectors of a model, norms and biases, moved by a relative change of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from quantmill.gguf_io.convert.names import TensorTable
from quantmill.gguf_io.convert.rules import Values


@dataclass
class Vector:
    """A Hugging Face vector and its change: value = start + change · unit, where unit is the GGUF's stored value
    (Gemma's norms are stored as weight + 1)."""

    name: str
    parameter: nn.Parameter
    start: torch.Tensor
    unit: torch.Tensor
    change: torch.Tensor
    found: dict[int, torch.Tensor | None] = field(default_factory=dict)  # by strand: dL/dvalue

    def gradient(self, strand: int) -> torch.Tensor:
        found = self.found[strand]
        return torch.zeros_like(self.change) if found is None else found * self.unit

    def apply(self) -> None:
        """Put the changed value into the model."""
        self.parameter.data = self.start + self.change * self.unit


def vectors_of(model: nn.Module, table: TensorTable, is_f32: Callable[[str], bool]) -> list[Vector]:
    """The vectors that are parameters of the model and F32 tensors of the file, each made a leaf of gradients."""
    found = []
    for name, parameter in model.named_parameters():
        uses = table.uses.get(name, ())
        if parameter.dim() != 1 or not uses or not all(is_f32(use.name) for use in uses):
            continue
        start = parameter.detach().clone()
        unit = _stored(start, [table.views[use.name].values for use in uses])
        if unit is None:
            continue
        parameter.requires_grad_(True)
        found.append(Vector(name, parameter, start, unit, torch.zeros_like(start)))
    return found


def _stored(start: torch.Tensor, changes: list[Values | None]) -> torch.Tensor | None:
    """The values as the file has them, where they are those of the model plus a constant; else None."""
    kinds = {id(change): change for change in changes}
    if len(kinds) != 1:
        return None
    (change,) = kinds.values()
    if change is None:
        return start.clone()
    stored = change.there(start)
    return stored if torch.allclose(change.there(start + 1), stored + 1) else None


def stored_vectors(vectors: Mapping[str, torch.Tensor], table: TensorTable) -> dict[str, torch.Tensor]:
    """The GGUF tensors of changed Hugging Face vectors, f32, where all their sources are among them."""
    out = {}
    for name, view in table.views.items():
        if all(source in vectors for source in view.sources):
            out[name] = table.to_gguf(name, lambda source: vectors[source])
    return out
