"""Whoever watches a squeeze, for the jobs that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quantmill.jobs.watcher import Unit, Watcher
from quantmill.recipe import Plan


class Unplanned:
    """Watches a quantization whose plan is nobody's business; its stage is called `label`."""

    def __init__(self, watcher: Watcher, label: str) -> None:
        self.note, self.warn, self.progressed = watcher.note, watcher.warn, watcher.progressed
        self._watcher, self._label = watcher, label

    def began(self, what: str, total: int, unit: Unit) -> None:
        self._watcher.began(self._label, total, unit)

    def planned(self, plan: Plan) -> None:
        pass


@contextmanager
def stage_bar(watcher: Watcher, what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """The bar that jobs.allocate asks for."""
    watcher.began(what, total, "chunks")
    yield watcher.progressed
