"""Run a model again from one of its layers on, over the same text: what lies before is run once and kept.

prefix = Prefix(loaded, chunks, first, share_out)
for layer in range(prefix.n_layers):
    prefix.move_to(layer)
    ...change a weight of this layer...
    found = prefix.map(work)            # [work(batch, logits), …]
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from quantmill.models.capture import PUT_OUT, named_layers, puts_out_more
from quantmill.models.model import LoadedModel
from quantmill.models.scoring import BATCH_TOKENS, input_ids

LEAST_BATCHES = 4  # on a CPU, where threads take them

Out = TypeVar("Out")
ShareOut = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]  # map in threads, in order


class _Running(threading.local):
    """The batch that this thread runs, and what the layer that is watched has put out for it."""

    batch = 0
    output: Any = None


class Prefix:
    """A model over chunks [n_chunk, n_ctx] i32, of which the positions from `first` on but the last are wanted.

    The model's own forward does the work, so that masks, rotations and whatever else a family has are its own; layers
    that need not run hand on what they are given, and the last of them what was kept. In memory: what one layer puts
    out for the whole text. share_out: a map, perhaps in threads; each batch is computed by one torch thread, and how
    chunks are grouped follows from their number and length, so that the threads do not show in the result.
    """

    def __init__(self, loaded: LoadedModel, chunks: np.ndarray, first: int, share_out: ShareOut) -> None:
        self._loaded, self._first, self._share_out = loaded, first, share_out
        step = max(1, BATCH_TOKENS // chunks.shape[1])
        if loaded.device.type == "cpu":
            step = min(step, -(-len(chunks) // LEAST_BATCHES))
        self._batches = input_ids(loaded, chunks).split(step)
        self._path, self._layers = named_layers(loaded.model)
        self._at = 0
        self._kept: list[Any] = []  # per batch, what layer `_at - 1` puts out
        self._running = _Running()
        self._left_out: frozenset[int] = frozenset()
        self._tuples: bool | None = None  # whether layers put out tuples, once that matters

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def at(self) -> int:
        """The first layer that is run."""
        return self._at

    def position(self, name: str) -> int | None:
        """The first layer that a GGUF tensor touches: 0 for embeddings, n_layers for an output of its own.

        None for a tensor that the model does not use (layers for predicting several tokens).
        """
        users = [hf for hf, names in self._loaded.name_map.items() if name in names]
        if not users:
            return None
        inside = [hf.removeprefix(self._path + ".") for hf in users if hf.startswith(self._path + ".")]
        if inside:
            return min(int(rest.partition(".")[0]) for rest in inside)
        head = self._loaded.model.get_output_embeddings()
        names = {f"{path}.weight" for path, module in self._loaded.model.named_modules() if module is head}
        return self.n_layers if set(users) <= names else 0

    def map(self, work: Callable[[int, torch.Tensor], Out]) -> list[Out]:
        """[work(batch, logits) …] of all batches, with the weights as they are now.

        logits: [n_seq, n_ctx − 1 − first, n_vocab] f32.
        """

        def one(batch: int) -> Out:
            self._running.batch = batch
            return work(batch, self._loaded.logits(self._batches[batch], first=self._first)[:, :-1].float())

        with self._resting([*range(self._at), *self._left_out]):
            return self._share_out(one, range(len(self._batches)))

    def move_to(self, layer: int) -> None:
        """Run what lies between here and `layer` with the weights as they are now. Only forwards."""
        assert layer >= self._at
        while self._at < layer:
            # Layers behind only pass on, so the head sees something; one position of it is the least there is.
            others = [*range(self._at), *range(self._at + 1, self.n_layers)]
            with self._resting(others), self._watching(self._layers[self._at]):
                self._kept = self._share_out(self._output_of, range(len(self._batches)))
            self._at += 1

    def restart(self) -> None:
        """Back to the beginning; what was kept is forgotten."""
        self._at, self._kept = 0, []

    @contextmanager
    def without(self, layers: Collection[int]) -> Iterator[None]:
        """Inside, the model goes round these layers; none of them lies before `at`."""
        assert all(layer >= self._at for layer in layers)
        if self._tuples is None:
            with self._watching(self._layers[-1]):
                self._loaded.logits(self._batches[0][:1, :2])
            self._tuples, self._running.output = isinstance(self._running.output, tuple), None
        self._left_out = frozenset(layers)
        try:
            yield
        finally:
            self._left_out = frozenset()

    def _output_of(self, batch: int) -> Any:
        """What the layer that is watched puts out."""
        self._running.batch = batch
        ids = self._batches[batch]
        self._loaded.logits(ids, first=ids.shape[1] - 1)
        output, self._running.output = self._running.output, None
        return output

    @contextmanager
    def _resting(self, layers: Iterable[int]) -> Iterator[None]:
        with ExitStack() as stack:
            for number in layers:
                stack.enter_context(self._replaced_forward(self._layers[number], number == self._at - 1))
            yield

    @contextmanager
    def _replaced_forward(self, layer: nn.Module, gives_kept: bool) -> Iterator[None]:
        more = puts_out_more(layer)

        def forward(hidden_states: Any, *others: Any, **named: Any) -> Any:
            if gives_kept:
                return self._kept[self._running.batch]
            if more:
                return hidden_states, named[PUT_OUT]
            return (hidden_states,) if self._tuples and self._left_out else hidden_states

        layer.forward = forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            del layer.forward

    @contextmanager
    def _watching(self, layer: nn.Module) -> Iterator[None]:
        def see(module: nn.Module, inputs: Any, output: Any) -> None:
            self._running.output = output

        handle = layer.register_forward_hook(see)
        try:
            yield
        finally:
            handle.remove()
