"""What enters a model's output matrix, behind the layers of a walk, in both streams."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from quantmill.models.capture import handing_on, named_layers, puts_out_more
from quantmill.models.model import LoadedModel
from quantmill.models.places import Place
from quantmill.models.summing import Seen, Sum, added, require_finite, summed_up

if TYPE_CHECKING:
    from quantmill.models.walk import Walk


class _Reached(Exception):
    """The pass has come to the output matrix."""


class _Running(threading.local):
    """What this thread's pass takes for the output of the last layer, and what has entered the output matrix."""

    hidden: torch.Tensor
    entered: torch.Tensor


def output_names(loaded: LoadedModel) -> tuple[str, str] | None:
    """GGUF and Hugging Face name of an output matrix of its own; None where it is the embeddings' (tied)."""
    head = loaded.model.get_output_embeddings()
    found = [f"{name}.weight" for name, module in loaded.model.named_modules() if module is head]
    uses = loaded.table.uses.get(found[0], ()) if found else ()
    if len(uses) != 1 or loaded.table.views[uses[0].name].matrices != 1:
        return None
    return uses[0].name, found[0]


class Output:
    """The output matrix of a walk that has passed all layers.

    What lies between the last layer and the matrix is done by the model's own forward: its layers hand on what they
    are told to.
    """

    def __init__(self, walk: Walk, gguf_name: str, hf_name: str) -> None:
        self.walk = walk
        self._head = walk.loaded.model.get_output_embeddings()
        self._running = _Running()
        n_cols = walk.loaded.table.views[gguf_name].shape[-1]
        self.place = Place(((gguf_name, hf_name),), self._head, n_cols)

    def visit(self, make: Callable[[], Sum]) -> Sum:
        """Sums of what enters the matrix in all batches, see Layer.visit."""
        with self._layers_handing_on():
            return summed_up(self.walk, self.place, make, self._see)

    @torch.inference_mode()
    def add(self, parts: Sequence[tuple[Sum, Sequence[int]]]) -> None:
        """See Layer.add."""
        with self._layers_handing_on():
            self.walk.share_out(lambda part: added(part[0], part[1], self._see), parts)

    def _see(self, batch: int) -> Iterator[Seen]:
        walk = self.walk
        x = y = self._entering(batch, walk.original[batch])
        if walk.two_streams:
            y = self._entering(batch, walk.changed[batch])
        for rows in (x, y):
            require_finite(walk, batch, rows, self.place.takers[0][0], "behind the last layer")
        x, y = (rows.flatten(0, -2).float()[None] for rows in (x, y))
        yield Seen(x, y, (0,), (x.shape[1],))

    def _entering(self, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: what the last layer puts out, [n_seq, n_ctx, n_hidden]."""
        self._running.hidden = hidden
        try:
            self.walk.loaded.model(input_ids=self.walk.batches[batch], use_cache=False)
        except _Reached:
            return self._running.entered
        raise AssertionError("the output matrix was not reached")

    @contextmanager
    def _layers_handing_on(self) -> Iterator[None]:
        more = puts_out_more(self.walk.modules[0])

        def hidden() -> Any:
            given = self._running.hidden
            return (given, None) if more else (given,) if self.walk.layers_give_tuples else given

        def enter(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            self._running.entered = inputs[0]
            raise _Reached

        handle = self._head.register_forward_pre_hook(enter)
        try:
            with handing_on(named_layers(self.walk.loaded.model)[1], hidden):
                yield
        finally:
            handle.remove()
