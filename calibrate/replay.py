"""What a layer computed once need not be computed again when it runs a second time for its gradient.

A layer keeps nothing but its input, and runs again when its gradient is wanted (torch.utils.checkpoint). Then its
products are taken from where they were put, in the order in which they were made; only what is cheap is done twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from quantmill.models.memory import trim

KEPT_BYTES = 256 << 20  # of a step, between its forward and its backward
# Layers of a forward after which freed memory goes back to the system: what each of them keeps lies between its many
# tensors that come and go, and leaves holes of 10 MB a layer of a model of 135 M weights.
TRIMMED = 10

Tensors = tuple[torch.Tensor, ...]


class Replay:
    """Results in the order of their making, at most `room` bytes of them. What does not fit is computed again."""

    def __init__(self, room: int = KEPT_BYTES) -> None:
        self._room = room
        self._tape: list[Tensors | None] | None = None
        self._again: Iterator[Tensors | None] | None = None

    def of(self, compute: Callable[[], Tensors]) -> Tensors:
        """What `compute` gives; when a layer runs again, what it gave the first time."""
        if self._again is not None:
            return next(self._again) or compute()
        found = compute()
        if self._tape is not None:
            fits = _n_bytes(found) <= self._room
            self._room -= _n_bytes(found) if fits else 0
            self._tape.append(found if fits else None)
        return found

    def keep(self, layers: Sequence[nn.Module]) -> None:
        """Let each layer keep its input only, and run again when its gradient is wanted. The result is the same."""
        for number, layer in enumerate(layers, 1):
            inner = layer.forward
            last = number % TRIMMED == 0

            def again(
                *args: Any, _inner: Callable[..., Any] = inner, _last: bool = last, **kwargs: Any
            ) -> Any:
                if not torch.is_grad_enabled():
                    return _inner(*args, **kwargs)
                found = checkpoint(
                    _inner,
                    *args,
                    use_reentrant=False,
                    preserve_rng_state=False,
                    context_fn=self._contexts,
                    **kwargs,
                )
                if _last:
                    trim()
                return found

            layer.forward = again  # type: ignore[method-assign]

    def _contexts(self) -> tuple[Any, Any]:
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
            self._room += sum(_n_bytes(found) for found in tape if found is not None)
            tape.clear()


def _n_bytes(found: Tensors) -> int:
    return sum(part.nbytes for part in found)
