"""A compensation's walk whose streams are on the workers of a Ray cluster: models.walk's interface, as far as it goes.

The batches of the text are cut into shares, one worker has those of some shares, and gives what enters a place as sums.
These are put together here in the order in which one process adds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from quantmill.calibrate.moments import Moments, MomentsOf
from quantmill.jobs.compensate_carrier import Enter, Part, Share, Solve, Visit
from quantmill.jobs.crew import Crew
from quantmill.jobs.far_position import Change
from quantmill.jobs.parcel import Parcel, packed, unpacked
from quantmill.jobs.pieces import Hand
from quantmill.models.capture import named_layers
from quantmill.models.model import LoadedModel
from quantmill.models.places import Place, weight_of
from quantmill.models.summing import MOST_GROUPS, groups_of
from quantmill.models.walk import batches_of
from quantmill.models.walked_output import output_names
from quantmill.models.workers import Workers


class FarWalk:
    """loaded: the same model here, of which nothing is run."""

    def __init__(self, ray: Any, crew: Crew, loaded: LoadedModel, chunks: np.ndarray) -> None:
        self.ray, self.crew, self.loaded = ray, crew, loaded
        self.modules = named_layers(loaded.model)[1]
        self.batches = batches_of(loaded, chunks)
        n = len(self.batches)
        n_shares = min(MOST_GROUPS, n)
        self._shares = [range(n * i // n_shares, n * (i + 1) // n_shares) for i in range(n_shares)]
        first = crew.begun[:n_shares]  # whoever takes what a lost one was asked for owns it then
        self._owners: list[Hand] = [first[i * len(first) // n_shares] for i in range(n_shares)]

    def layers(self) -> Iterator[FarLayer]:
        for index in range(len(self.modules)):
            yield FarLayer(self, index)

    def output(self) -> FarOutput | None:
        names = output_names(self.loaded)
        return None if names is None else FarOutput(self, *names)

    def places(self, layer: int) -> tuple[Place, ...]:
        """All workers enter the layer; those of the first batch."""
        asked = [
            (hand, self.crew.submit(Enter(self._share(hand, layer, ())), hand)) for hand in self._hands()
        ]
        found = [self._answer(hand, answer) for hand, answer in asked]
        return tuple(found[0])

    def with_norms(self, layer: int) -> tuple[Place, ...]:
        """The same of a layer that was entered, with the norms before them; one worker tries."""
        first = self._hands()[0]
        answer = self.crew.submit(Enter(self._share(first, layer, ()), norms=True), first)
        return tuple(self._answer(first, answer))

    def sums(
        self, layer: int, changes: Sequence[Change], places: tuple[Place, ...], place: int, make: MomentsOf
    ) -> Moments:
        """As Layer.visit has them of all batches."""
        groups = groups_of(len(self.batches), make.n_mat, make.n_cols, self.loaded.device.type)
        pieces = _pieces(self._shares, groups)

        def visit(hand: Hand, some: Sequence[Part]) -> Future[tuple[Hand, Any]]:
            share = self._share(hand, layer, changes)
            return self.crew.submit(Visit(share, places, place, make, tuple(some)), hand)

        asked = []
        for hand in self._hands():
            own = [piece for piece in pieces if piece.is_first and self._owners[piece.share] is hand]
            if own:
                asked.append((hand, own, visit(hand, [Part(piece.batches) for piece in own])))
        found: dict[_Piece, Moments] = {}
        total: Moments | None = None
        for piece in pieces:
            if piece.is_first:
                for hand, own, answer in asked:
                    if piece in own and piece not in found:
                        found |= dict(zip(own, self._answer(hand, answer), strict=True))
                sums = found.pop(piece)
            else:
                hand = self._owners[piece.share]
                sums = self._answer(hand, visit(hand, [Part(piece.batches, Parcel(self.ray, sums))]))[0]
            if piece.is_last:
                if total is None:
                    total = sums
                else:
                    total.join(sums)
        assert total is not None
        return total

    def _hands(self) -> list[Hand]:
        """Those that have shares, in the order of the text."""
        return list(dict.fromkeys(self._owners))

    def _share(self, hand: Hand, layer: int, changes: Sequence[Change]) -> Share:
        shares = [share for share, owner in zip(self._shares, self._owners, strict=True) if owner is hand]
        return Share(layer, tuple(batch for share in shares for batch in share), tuple(changes))

    def _answer(self, asked: Hand, answer: Future[tuple[Hand, Any]]) -> Any:
        """What was found; whoever has found it has the shares of the one that was asked."""
        hand, found = answer.result()
        if hand is not asked:
            self._owners = [hand if owner is asked else owner for owner in self._owners]
        return unpacked(found, self.loaded.device)


@dataclass(frozen=True)
class _Piece:
    """Batches of one group and one share. is_first, is_last: of the group."""

    share: int
    batches: range
    is_first: bool
    is_last: bool


def _pieces(shares: Sequence[range], groups: Sequence[range]) -> list[_Piece]:
    """In the order of the text."""
    found = []
    for group in groups:
        for number, share in enumerate(shares):
            both = range(max(group.start, share.start), min(group.stop, share.stop))
            if both:
                found.append(_Piece(number, both, both.start == group.start, both.stop == group.stop))
    return found


class FarLayer:
    """calibrate.layer's SeenLayer. Its changes are told to the workers when they visit the next place."""

    def __init__(self, walk: FarWalk, index: int) -> None:
        self.walk, self.index = walk, index
        self._changes: list[Change] = []

    @cached_property
    def places(self) -> tuple[Place, ...]:
        return self.walk.places(self.index)

    def weight(self, name: str) -> torch.Tensor:
        return weight_of(self.walk.loaded, name)

    def visit(self, place: Place, make: MomentsOf) -> Moments:
        number = next(i for i, one in enumerate(self.places) if one is place)
        return self.walk.sums(self.index, self._changes, self.places, number, make)

    def with_norms(self) -> tuple[Place, ...]:
        self.places = self.walk.with_norms(self.index)
        return self.places

    def change_blocks(
        self, name: str, blocks: np.ndarray, type: str, factors: np.ndarray | None = None
    ) -> None:
        self._changes.append(Change(name, type, Parcel(self.walk.ray, (blocks, factors))))

    def leave_out(self) -> None:
        """The workers know it from the job."""


class FarOutput:
    """calibrate.layer's SeenOutput."""

    def __init__(self, walk: FarWalk, gguf_name: str, hf_name: str) -> None:
        self.walk = walk
        n_cols = walk.loaded.table.views[gguf_name].shape[-1]
        self.place = Place(((gguf_name, hf_name),), torch.nn.Identity(), n_cols)

    def visit(self, make: MomentsOf) -> Moments:
        return self.walk.sums(len(self.walk.modules), (), (), 0, make)


class FarSolving(Workers):
    """Maps work of calibrate.solver over a crew; a single piece is done here."""

    def __init__(self, ray: Any, crew: Crew, device: torch.device) -> None:
        super().__init__(1)
        self._ray, self._crew, self._device = ray, crew, device

    def map(self, work: Any, items: Any) -> list[Any]:
        if len(items) == 1:
            return super().map(work, items)
        parcel = Parcel(self._ray, work)
        answers = [self._crew.submit(Solve(parcel, packed(item))) for item in items]
        return [unpacked(answer.result()[1], self._device) for answer in answers]
