"""Chunks of one step that run side by side, each in a strand: a thread, and what only its own run needs.

Every strand runs with what the model is at the step's beginning. Where it counts which chunk's gradient a matrix hears
first, in layers, a later strand waits until the one before it has left the layer: how many there are changes the time
and nothing else.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from quantmill.calibrate.replay import KEPT_BYTES, Replay
from quantmill.models.workers import Workers

Out = TypeVar("Out")

# Chunks of a step: a constant, for it decides the bytes. On two processors a chunk of SmolLM2 takes 2.1 s where they
# share every product, whose parts are too small for it, and 1.45 s where each has a chunk of its own.
AT_ONCE = 2


class Strands:
    """At most AT_ONCE, one where there is one thread. room: bytes of results that all of them keep (replay.py)."""

    def __init__(self, workers: Workers, room: int = KEPT_BYTES) -> None:
        self.count = min(AT_ONCE, workers.threads)
        self._workers = workers
        self._replays = [Replay(room // self.count) for _ in range(self.count)]
        self._own = _Own()
        self._turns = _Turns(self.count)

    @property
    def number(self) -> int:
        """That of the strand whose thread asks; in a thread of autograd's, as a GPU has, the only one's."""
        return self._own.number

    @property
    def replay(self) -> Replay:
        return self._replays[self.number]

    def run(self, work: Callable[[int], Out], n: int) -> list[Out]:
        """[work(number) for the first n strands], at the same time; the first error in their order is raised."""
        assert n <= self.count
        self._turns.begin()

        def one(number: int) -> Out:
            self._own.number = number
            try:
                return work(number)
            finally:
                self._own.number = 0
                self._turns.end(number)

        return self._workers.apart(one, range(n))

    def keep(self, layers: Sequence[nn.Module]) -> None:
        """Let each layer keep its input only, and run again when its gradient is wanted. The result is the same."""
        for number, layer in enumerate(layers):
            layer.forward = self._keeping(number, layer.forward)  # type: ignore[method-assign]

    def _keeping(self, layer: int, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return inner(x, *args, **kwargs)
            x, n_bytes = self.replay.placed(x)
            contexts = partial(self._contexts, layer, n_bytes)
            return checkpoint(
                inner, x, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **kwargs
            )

        return forward

    def _contexts(self, layer: int, n_bytes: int) -> tuple[Any, Any]:
        recording, replaying = self.replay.contexts(n_bytes)
        return recording, self._in_turn(layer, replaying)

    @contextlib.contextmanager
    def _in_turn(self, layer: int, replaying: Any) -> Iterator[None]:
        self._turns.enter(self.number, layer)
        with replaying:
            yield


class _Own(threading.local):
    number = 0


class _Turns:
    """Where strands are on their way back, by the last layer that each has entered: one that is left is entered by the
    next strand."""

    def __init__(self, n_strands: int) -> None:
        self._at: list[float] = [math.inf] * n_strands
        self._moved = threading.Condition()

    def begin(self) -> None:
        self._at = [math.inf] * len(self._at)

    def enter(self, strand: int, layer: int) -> None:
        with self._moved:
            self._at[strand] = layer
            self._moved.notify_all()
            if strand:
                self._moved.wait_for(lambda: self._at[strand - 1] < layer)

    def end(self, strand: int) -> None:
        """It is through, or came to an error."""
        with self._moved:
            self._at[strand] = -1
            self._moved.notify_all()
