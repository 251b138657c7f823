"""Who carries slabs from a model into its outputs: the seam between a job and what its work is done by."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from quantmill.jobs.watcher import Watcher
from quantmill.recipe import PlanEntry
from quantmill.recipe.slabs import Slab, slabs


class Worker(Protocol):
    """Does what slabs say, wherever: on threads of this process (jobs.line), on a cluster."""

    @property
    def at_once(self) -> int:
        """How many slabs may be under way, so that nothing of it waits for work."""

    @property
    def in_one_memory(self) -> int:
        """How many of them share one memory."""

    def submit(self, slab: Slab) -> Future[None]:
        """Done when the slab's rows are in all outputs. Raises, there, what the work raises."""

    def finish(self) -> None:
        """After the last slab: all is in the outputs, and right. Raises what the work raises."""


def carry(worker: Worker, outputs: Sequence[Sequence[PlanEntry]], max_bytes: int, watcher: Watcher) -> None:
    """All rows of all entries of each output, in slabs of which `max_bytes` are in one memory.

    Raises the first error, in the order of the slabs; then nothing more is started.
    """
    under_way: deque[tuple[Slab, Future[None]]] = deque()

    def finish() -> None:
        slab, done = under_way.popleft()
        done.result()
        watcher.progressed(slab.source_bytes, slab.entries[0].name)

    for slab in slabs(outputs, max_bytes // worker.in_one_memory):
        under_way.append((slab, worker.submit(slab)))
        while len(under_way) >= worker.at_once:  # fewer than before where a worker was lost
            finish()
    while under_way:
        finish()
    worker.finish()
