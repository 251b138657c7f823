"""Arrays of the torch engine: what a lane program loads from and stores to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Index = int | np.ndarray


def _at(index: Index) -> Any:
    """What selects the elements of a lane index: a number, a slice (a view, no copy), or a list."""
    if isinstance(index, int):
        return index
    distance = np.diff(index)
    if distance.size and distance[0] > 0 and (distance == distance[0]).all():
        return slice(int(index[0]), int(index[-1]) + 1, int(distance[0]))
    return index.tolist()


class Array:
    """An array within one phase; what `ld` gave keeps its value whatever is stored later.

    Most arrays of a search are only read, so `ld` lends views. The first store after that goes to a copy of the
    array, and from then on `ld` copies.
    """

    def __init__(self, whole: torch.Tensor, part: Any = ...) -> None:
        self.whole = whole
        self._part = part
        self._now = whole[part]
        self._lent = self._stored = False

    def load(self, index: Index) -> torch.Tensor:
        self._lent = True
        value = self._now[_at(index)]
        return value.clone() if self._stored else value

    def store(self, index: Index, value: torch.Tensor | int) -> None:
        if self._lent and not self._stored:
            self.whole = self.whole.clone()
            self._now = self.whole[self._part]
        self._stored = True
        self._now[_at(index)] = value
