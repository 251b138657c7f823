"""Where one worker of a compensation stands in the model, and how it comes to where it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch

from quantmill.calibrate.moments import Moments
from quantmill.jobs.parcel import Parcel
from quantmill.models.memory import trim
from quantmill.models.places import Place
from quantmill.models.walk import Walk
from quantmill.models.walked_layer import Layer


@dataclass(frozen=True)
class Change:
    """Blocks u8 [n_mat, n_rows, row_bytes] that the changed stream takes for a tensor, with the factors in them."""

    name: str
    type: str
    blocks: Parcel


class Position:
    """Of a walk that has no batches yet. changes_of: what a finished layer was changed to, by tensor: type,
    blocks, factors in them; None for one that is left out."""

    def __init__(
        self,
        walk: Walk,
        changes_of: Callable[[int], Mapping[str, tuple[str, np.ndarray, np.ndarray | None]] | None],
    ) -> None:
        self._walk, self._changes_of = walk, changes_of
        self._at = 0  # layer that the walk stands before, or in
        self._inside = ExitStack()
        self._layer: Layer | None = None
        self._changed: list[str] = []  # in the layer
        self._turned: tuple[int, int, str] | None = None

    @property
    def layer(self) -> Layer:
        assert self._layer is not None
        return self._layer

    def stand(self, layer: int, batches: Sequence[int], changes: Sequence[Change]) -> None:
        """In a layer, or behind the last, with the streams of these batches at least, and so much of it changed."""
        assert layer >= self._at, "a piece of a layer that is over"
        walk = self._walk
        if layer > self._at:  # others have taken what is not asked for
            walk.own = [batch for batch in walk.own if batch in batches]
        self._pass_to(layer)
        missing = [batch for batch in batches if batch not in walk.own]
        if missing:
            self._leave()
            new = Walk(walk.loaded, walk.chunks, walk.share_out, walk.two_streams, missing)
            for index in range(layer):
                self._go_through(new, index)
            walk.adopt(new)
        if self._layer is None and layer < len(walk.modules):
            self._layer = self._inside.enter_context(walk.inside(layer))
        for change in changes[len(self._changed) :]:
            blocks, factors = change.blocks.open(torch.device("cpu"))
            self.layer.change_blocks(change.name, blocks, change.type, factors)
            self._changed.append(change.name)

    def _pass_to(self, layer: int) -> None:
        if self._at < layer and self._layer is not None:
            if self._walk.own:
                self._finish(self._layer, self._at, self._changed)
            self._leave()
            self._at += 1
        while self._at < layer and self._walk.own:
            self._go_through(self._walk, self._at)
            self._at += 1
        self._at = layer

    def _go_through(self, walk: Walk, index: int) -> None:
        with walk.inside(index) as layer:
            self._finish(layer, index, ())
        trim()

    def _finish(self, layer: Layer, index: int, done: Collection[str]) -> None:
        """Both streams pass the layer, the changed one with what was found for it."""
        changes = self._changes_of(index)
        if changes is None:
            layer.leave_out()
        elif self._walk.two_streams:
            for name, (type, blocks, factors) in changes.items():
                if name not in done:
                    layer.change_blocks(name, blocks, type, factors)
        layer.finish()

    def _leave(self) -> None:
        """Stand before the layer again."""
        self._inside.close()
        self._layer, self._changed, self._turned = None, [], None
        trim()

    def add(
        self,
        places: Sequence[Place],
        number: int,
        columns: slice | None,
        parts: Sequence[tuple[Moments, Sequence[int]]],
    ) -> None:
        """What enters places[number]. places: as the worker that has the first batch has found them."""
        layer, turned = self.layer, (number, len(self._changed), repr(columns))
        if self._turned is None:
            own = {place.takers: place for place in layer.places}
            layer.places = tuple(replace(own[place.takers], writes=place.writes) for place in places)
        if self._turned != turned:
            layer.turn_to(layer.places[number])
            self._turned = turned
        layer.add(layer.places[number], parts)

    def add_to_output(self, parts: Sequence[tuple[Moments, Sequence[int]]]) -> None:
        output = self._walk.output()
        assert output is not None
        output.add(parts)
