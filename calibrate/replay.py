"""What a layer computed once need not be computed again when it runs a second time for its gradient.

A layer keeps nothing but its input, and runs again when its gradient is wanted (torch.utils.checkpoint). Then its
products are taken from where they were put, in the order in which they were made; only what is cheap is done twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

KEPT_BYTES = 256 << 20  # of a step, between its forward and its backward
ALIGNED = 64

Tensors = tuple[torch.Tensor, ...]


class Replay:
    """Results in the order of their making, at most `room` bytes of them. What does not fit is computed again.

    They lie one behind the other in memory of their own, which the next step uses again: among the many tensors that
    come and go they would leave holes of 10 MB a layer of a model of 135 M weights.
    """

    def __init__(self, room: int = KEPT_BYTES) -> None:
        self._room = room
        self._used = 0
        self._memory: torch.Tensor | None = None
        self._tape: list[Tensors | None] | None = None
        self._again: Iterator[Tensors | None] | None = None

    @property
    def again(self) -> bool:
        """Whether a layer runs again."""
        return self._again is not None

    def of(self, compute: Callable[[], Tensors]) -> Tensors:
        """What `compute` gives; when a layer runs again, what it gave the first time."""
        if self._again is not None:
            return next(self._again) or compute()
        found = compute()
        if self._tape is not None:
            fits = self._used + _n_bytes(found) <= self._room
            self._tape.append(tuple(map(self._kept, found)) if fits else None)
        return found

    def _kept(self, found: torch.Tensor) -> torch.Tensor:
        if self._memory is None:
            self._memory = torch.empty(self._room, dtype=torch.uint8, device=found.device)
        place = self._memory[self._used : self._used + found.nbytes]
        self._used += _whole(found.nbytes)
        return place.view(found.dtype).view(found.shape).copy_(found)

    def contexts(self) -> tuple[Any, Any]:
        """Around a layer's run and its run again, as torch.utils.checkpoint takes them."""
        tape: list[Tensors | None] = []
        return self._recording(tape), self._replaying(tape)

    @contextlib.contextmanager
    def _recording(self, tape: list[Tensors | None]) -> Iterator[None]:
        self._tape = tape
        try:
            yield
        finally:
            self._tape = None

    @contextlib.contextmanager
    def _replaying(self, tape: list[Tensors | None]) -> Iterator[None]:
        self._again = iter(tape)
        try:
            yield
        finally:
            self._again = None
            self._used -= sum(_n_bytes(found) for found in tape if found is not None)  # layers end last first
            tape.clear()


def _n_bytes(found: Tensors) -> int:
    return sum(_whole(part.nbytes) for part in found)


def _whole(n_bytes: int) -> int:
    """With what is left free behind it, for numbers of any size to begin there."""
    return -(-n_bytes // ALIGNED) * ALIGNED
