"""Who carries slabs from a model into its outputs: the seam between a job and what its work is done by."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from quantmill.jobs.watcher import Watcher
from quantmill.recipe import PlanEntry
from quantmill.recipe.slabs import Slab, handfuls, slabs


class Worker(Protocol):
    """Does what slabs say, wherever: on threads of this process (jobs.line), on a cluster."""

    @property
    def at_once(self) -> int:
        """How many handfuls of slabs may be under way, so that nothing of it waits for work."""

    @property
    def in_one_memory(self) -> int:
        """How many of these share one memory."""

    @property
    def handful(self) -> int:
        """Bytes of the source that it takes at a time, in several slabs where these are small; 0: one slab."""

    def submit(self, slabs: Sequence[Slab]) -> Future[None]:
        """Done when the slabs' rows are in all outputs. Raises, there, what the work raises."""

    def finish(self) -> None:
        """After the last slab: all is in the outputs, and right. Raises what the work raises."""


def carry(worker: Worker, outputs: Sequence[Sequence[PlanEntry]], max_bytes: int, watcher: Watcher) -> None:
    """All rows of all entries of each output, in slabs of which `max_bytes` are in one memory.

    Raises the error of the first handful that has one; then nothing more is started.
    """
    under_way: deque[tuple[Sequence[Slab], Future[None]]] = deque()
    budget = max_bytes // worker.in_one_memory

    def finish() -> None:
        some, done = under_way.popleft()
        done.result()
        for slab in some:
            watcher.progressed(slab.source_bytes, slab.entries[0].name)

    for some in handfuls(slabs(outputs, budget), worker.handful, budget):
        under_way.append((some, worker.submit(some)))
        while len(under_way) >= worker.at_once:  # fewer than before where a worker was lost
            finish()
    while under_way:
        finish()
    worker.finish()
