"""Run a model again from one of its layers on, over the same text: what lies before is run once and kept.

prefix = Prefix(loaded, chunks, first)
for layer in range(prefix.n_layers):
    prefix.move_to(layer)
    ...change a weight of this layer...
    for logits in prefix.logits(): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from quantmill.models.capture import named_layers
from quantmill.models.model import LoadedModel
from quantmill.models.scoring import BATCH_TOKENS, input_ids


class Prefix:
    """A model over chunks [n_chunk, n_ctx] i32, of which the positions from `first` on but the last are wanted.

    The model's own forward does the work, so that masks, rotations and whatever else a family has are its own; layers
    that need not run hand on what they are given, and the last of them what was kept. In memory: what one layer puts
    out for the whole text.
    """

    def __init__(self, loaded: LoadedModel, chunks: np.ndarray, first: int) -> None:
        self._loaded, self._first = loaded, first
        step = max(1, BATCH_TOKENS // chunks.shape[1])
        self._batches = input_ids(loaded, chunks).split(step)
        self._path, self._layers = named_layers(loaded.model)
        self._at = 0
        self._kept: list[Any] = []  # per batch, what layer `_at - 1` puts out
        self._tuples = False  # whether layers put out tuples

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

    def logits(self) -> Iterator[torch.Tensor]:
        """Batch by batch [n_seq, n_ctx − 1 − first, n_vocab] f32, with the weights as they are now."""
        for i, ids in enumerate(self._batches):
            with self._resting(range(self._at), i):
                yield self._loaded.logits(ids, first=self._first)[:, :-1].float()

    @torch.inference_mode()
    def move_to(self, layer: int) -> None:
        """Run what lies between here and `layer` with the weights as they are now. Only forwards."""
        assert layer >= self._at
        while self._at < layer:
            self._kept = [self._output_of(self._at, i) for i in range(len(self._batches))]
            self._at += 1

    def restart(self) -> None:
        """Back to the beginning; what was kept is forgotten."""
        self._at, self._kept = 0, []

    def _output_of(self, layer: int, i: int) -> Any:
        found: list[Any] = []
        # Layers behind only pass on, so the head sees something; one position of it is the least there is.
        others = [*range(self._at), *range(layer + 1, self.n_layers)]
        with self._resting(others, i), _watching(self._layers[layer], found):
            self._loaded.logits(self._batches[i], first=self._batches[i].shape[1] - 1)
        return found[0]

    @contextmanager
    def _resting(self, layers: Any, i: int) -> Iterator[None]:
        with ExitStack() as stack:
            for number in layers:
                kept = self._kept[i] if number == self._at - 1 else None
                stack.enter_context(_replaced_forward(self._layers[number], kept))
            yield


@contextmanager
def _replaced_forward(layer: nn.Module, kept: Any) -> Iterator[None]:
    def forward(hidden_states: Any, *others: Any, **named: Any) -> Any:
        return hidden_states if kept is None else kept

    layer.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def _watching(layer: nn.Module, found: list[Any]) -> Iterator[None]:
    handle = layer.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        yield
    finally:
        handle.remove()
