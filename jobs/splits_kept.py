"""What workers have of splits on their disks, and what lost ones have left there: it goes, as far as it is reached."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantmill.gguf_io.leftovers import Found, Mark, remove_leftover
from quantmill.gguf_io.partial import partial_path
from quantmill.jobs.carrier import told
from quantmill.jobs.cluster import Node, head_of
from quantmill.jobs.errors import HeadLost
from quantmill.jobs.head import told_by_head
from quantmill.jobs.hosts import errand, living
from quantmill.jobs.pieces import Hand, Outcome
from quantmill.jobs.split_carrier import DYING, Forget, Made, Make
from quantmill.jobs.watcher import Watcher

_LAST_WORD = 10.0  # seconds in which a worker must have removed what it has made
_ERRAND = 30.0  # the same, of another one for what lost workers have left: a process begins for it


@dataclass(frozen=True)
class Leftover:
    """A file of an output, before its host's links are followed; mark: where it was complete."""

    path: Path
    mark: Mark | None = None


@dataclass
class _Split:
    """Of one hand. marks: of each of its files, once it is complete; is_named: surely."""

    marks: Sequence[Mark | None]
    is_named: bool = False


@dataclass
class _Place:
    """A lost worker's host, and what may still be there."""

    node: Node
    left: list[Leftover] = field(default_factory=list)


class SweepCarrier:
    """An actor, which no crew has. Finds Found of each leftover."""

    def __init__(self, task: None) -> None:
        pass

    def carry(self, piece: tuple[Leftover, ...]) -> Outcome:
        return told(lambda: [remove_leftover(one.path, one.mark, DYING) for one in piece], [])


class Kept:
    """Says which worker has files of which split. paths: of a split, its file of each output."""

    def __init__(self, ray: Any, paths: Sequence[Sequence[Path]], watcher: Watcher) -> None:
        self._ray, self._paths, self._watcher = ray, paths, watcher
        self._splits: dict[Hand, dict[int, _Split]] = defaultdict(dict)

    def given(self, hand: Hand, piece: Any) -> None:
        """A crew's when_given."""
        if isinstance(piece, Make):
            self._splits[hand][piece.number] = _Split([None] * len(self._paths[piece.number]))

    def made(self, hand: Hand, number: int, made: Made) -> None:
        self._splits[hand][number] = _Split(made.marks)

    def named(self, hand: Hand, number: int) -> None:
        self._splits[hand][number].is_named = True

    def forget(self, hands: Sequence[Hand], also_named: bool) -> None:
        """Workers remove what has no name yet; also_named: all. Of those that answer nothing is left."""
        ray = self._ray
        for hand, answer in [(hand, hand.actor.carry.remote(Forget(also_named))) for hand in hands]:
            try:
                outcome = ray.get(answer, timeout=_LAST_WORD)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                continue
            if outcome.error is None:
                self._splits.pop(hand, None)

    def sweep(self, also_named: bool) -> None:
        """The same of workers that could not do it, when none is at work any more. A file that may still be there is
        said with its host."""
        lost: dict[str, _Place] = {}
        for hand, splits in self._splits.items():
            for number, split in splits.items():
                if also_named or not split.is_named:
                    place = lost.setdefault(hand.node.id, _Place(hand.node))
                    place.left += map(Leftover, self._paths[number], split.marks)
        if not lost:
            return
        with suppress(HeadLost, self._ray.exceptions.RayError):  # what follows says what it means
            self._sweep_with(living(self._ray), list(lost.values()))
        for place in lost.values():
            for one in place.left:
                self._watcher.warn(
                    f"{place.node.name}: {_described(one)} may be left there; remove it by hand"
                )

    def _sweep_with(self, nodes: Sequence[Node], places: Sequence[_Place]) -> None:
        """On the hosts themselves, even by another node there; then, for a disk that hosts share, on all others."""
        asked: dict[str, list[_Place]] = defaultdict(list)
        for place in places:
            there = [node for node in nodes if node.id == place.node.id]
            for node in (there or [node for node in nodes if node.name == place.node.name])[:1]:
                asked[node.id].append(place)
        self._ask([node for node in nodes if node.id in asked], asked, (Found.NOTHING, Found.REMOVED))
        left = [place for place in places if place.left]
        others = {node.id: [place for place in left if place not in asked[node.id]] for node in nodes if left}
        self._ask([node for node in nodes if others.get(node.id)], others, (Found.REMOVED,))

    def _ask(
        self, nodes: Iterable[Node], asked: Mapping[str, Sequence[_Place]], done: Sequence[Found]
    ) -> None:
        """What is found to be one of `done` is left no more."""
        ray = self._ray
        actors = told_by_head(
            head_of(ray), lambda: {node.id: errand(ray, SweepCarrier, node) for node in nodes}
        )
        given = {id: [(place, one) for place in asked[id] for one in place.left] for id in actors}
        until = time.monotonic() + _ERRAND
        try:
            for id, answer in [
                (id, actor.carry.remote(tuple(one for _, one in given[id]))) for id, actor in actors.items()
            ]:
                try:
                    outcome = ray.get(answer, timeout=max(0.0, until - time.monotonic()))
                except ray.exceptions.RayError:
                    continue
                for (place, one), found in zip(given[id], outcome.found or (), strict=False):
                    if found in done and one in place.left:
                        place.left.remove(one)
        finally:
            for actor in actors.values():
                ray.kill(actor)


def _described(one: Leftover) -> str:
    partial = partial_path(one.path) if one.mark is None else one.mark.path
    return f"{partial}" if one.mark is None else f"{partial} or {one.path}"
