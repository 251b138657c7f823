"""Whoever watches a squeeze: its stages, its candidates; and as such for the jobs that it is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from quantmill.jobs.watcher import Silent, Unit, Watcher
from quantmill.recipe import Plan

State = Literal["waiting", "running", "done", "found"]


@dataclass(frozen=True)
class StageRow:
    """A stage and how it stands; found: done by an earlier run. seconds: that it took, None: not known (yet)."""

    label: str
    state: State
    seconds: float | None = None


@dataclass(frozen=True)
class CandidateRow:
    """A candidate that was measured. wish: the file that it may become. kld: mean and its error, nats a token."""

    wish: str
    label: str
    n_bytes: int
    kld: float
    kld_error: float
    ppl: float


class SqueezeWatcher(Watcher, Protocol):
    def stages(self, rows: Sequence[StageRow]) -> None:
        """All stages that are known of, in order; whenever one of them has changed."""

    def measured(self, row: CandidateRow) -> None:
        """One more candidate is measured."""

    def chosen(self, wish: str, label: str, reason: str) -> None:
        """Which candidate becomes the file of a wish, and why."""


class SilentSqueeze(Silent):
    """A watcher that says nothing."""

    def stages(self, rows: Sequence[StageRow]) -> None:
        pass

    def measured(self, row: CandidateRow) -> None:
        pass

    def chosen(self, wish: str, label: str, reason: str) -> None:
        pass


class Inside:
    """Watches a job inside a squeeze: its plan is nobody's business, and its parts are called `label`."""

    def __init__(self, watcher: Watcher, label: str) -> None:
        self.note, self.warn = watcher.note, watcher.warn
        self.progressed = watcher.progressed
        self._watcher, self._label = watcher, label

    def began(self, what: str, total: int, unit: Unit) -> None:
        self._watcher.began(
            self._label if unit in ("bytes", "tokens", "models") else f"{self._label}, {what}", total, unit
        )

    def planned(self, plan: Plan) -> None:
        pass


class InsideLayers(Inside):
    """Watches a compensation: layers are what is counted."""

    def __init__(self, watcher: Watcher, label: str) -> None:
        super().__init__(watcher, label)
        self.progressed = self._ignored
        self._n_layers = 0

    def _ignored(self, amount: int, what: str = "") -> None:
        pass

    def began(self, what: str, total: int, unit: Unit) -> None:
        pass

    def layer_done(self, done: int, n_layers: int) -> None:
        if self._n_layers != n_layers:
            self._watcher.began(self._label, n_layers, "layers")
            self._n_layers = n_layers
        self._watcher.progressed(1, f"layer {done}")


class Clocked(Inside):
    """Also tells how fast the work goes: units a second, without what a resumed run finds done."""

    def __init__(self, watcher: Watcher, label: str) -> None:
        super().__init__(watcher, label)
        self.progressed = self._timed
        self._begun: float | None = None
        self._last = 0.0
        self._amount = 0

    def _timed(self, amount: int, what: str = "") -> None:
        now = time.perf_counter()
        if self._begun is None:  # what was done before is told at once
            self._begun = now
        else:
            self._amount += amount
            self._last = now
        self._watcher.progressed(amount, what)

    @property
    def rate(self) -> float | None:
        if self._begun is None or not self._amount or self._last <= self._begun:
            return None
        return self._amount / (self._last - self._begun)


@contextmanager
def stage_bar(watcher: Watcher, what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """The bar that jobs.allocate asks for."""
    watcher.began(what, total, "chunks")
    yield watcher.progressed
