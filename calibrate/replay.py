"""What a layer computed once need not be computed again when it runs a second time for its gradient.

A layer keeps nothing but its input, and runs again when its gradient is wanted (torch.utils.checkpoint). Then its
products are taken from where they were put, in the order in which they were made; only what is cheap is done twice.
Inputs lie there too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

KEPT_BYTES = 224 << 20  # of a step, between its forward and its backward
ALIGNED = 64

Tensors = tuple[torch.Tensor, ...]


class Replay:
    """Results in the order of their making, at most `room` bytes of them. What does not fit is computed again.

    They lie one behind the other in memory of their own, which the next step uses again: among the many tensors that
    come and go they would leave holes, of a model of 135 M weights of 10 MB a layer, its input's 2.
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

    def placed(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        """What enters a layer, in this memory if it fits, and how many bytes it takes there; with its gradient."""
        n_bytes = _whole(x.nbytes)
        if self._used + n_bytes > self._room:
            return x, 0
        return _Placed.apply(x, self), n_bytes

    def _kept(self, found: torch.Tensor) -> torch.Tensor:
        if self._memory is None:
            self._memory = torch.empty(self._room, dtype=torch.uint8, device=found.device)
        strides = [math.prod(found.shape[i + 1 :]) for i in range(found.dim())]
        first = self._used // found.itemsize
        # No view: to autograd what is written beside it later is another tensor.
        place = found.new_empty(0).set_(self._memory.untyped_storage(), first, found.shape, strides)
        self._used += _whole(found.nbytes)
        return place.copy_(found)

    def contexts(self, n_bytes: int = 0) -> tuple[Any, Any]:
        """Around a layer's run and its run again, as torch.utils.checkpoint takes them. n_bytes: of its input here."""
        tape: list[Tensors | None] = []
        return self._recording(tape), self._replaying(tape, n_bytes)

    @contextlib.contextmanager
    def _recording(self, tape: list[Tensors | None]) -> Iterator[None]:
        self._tape = tape
        try:
            yield
        finally:
            self._tape = None

    @contextlib.contextmanager
    def _replaying(self, tape: list[Tensors | None], n_bytes: int) -> Iterator[None]:
        self._again = iter(tape)
        try:
            yield
        finally:
            self._again = None
            # Layers end last first, and what lies here is used until the next step.
            self._used -= n_bytes + sum(_n_bytes(found) for found in tape if found is not None)
            tape.clear()


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, replay: Replay) -> torch.Tensor:
        return replay._kept(x)

    @staticmethod
    def backward(ctx: Any, back: torch.Tensor) -> Any:  # type: ignore[override]
        return back, None


def _n_bytes(found: Tensors) -> int:
    return sum(_whole(part.nbytes) for part in found)


def _whole(n_bytes: int) -> int:
    """With what is left free behind it, for numbers of any size to begin there."""
    return -(-n_bytes // ALIGNED) * ALIGNED
