"""A jobs.worker.Worker on Ray: carriers write into outputs in a file system that all hosts see.

What a lost carrier had written but not yet brought to the disk is done again too. Written twice, it is the same bytes.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from quantmill.errors import QuantmillError
from quantmill.gguf_io import GGUFSink, TensorSource
from quantmill.imatrix.store import ImportanceMatrix
from quantmill.jobs.carrier import AT_ONCE, SlabCarrier, Task, as_workers_see
from quantmill.jobs.cluster import Node
from quantmill.jobs.crew import Crew
from quantmill.jobs.finished_rows import FinishedRows, where
from quantmill.jobs.line import Clock
from quantmill.jobs.pieces import PYTHON, Hand
from quantmill.jobs.quantize_request import Job
from quantmill.jobs.watcher import Watcher
from quantmill.qkernels.engines import Engine
from quantmill.recipe.slabs import Slab

EVERY = 10.0  # seconds between two savings


class ClusterLine:
    """A context manager. sinks: opened; the source lies under the same name on all hosts, or where the job says."""

    def __init__(
        self,
        ray: Any,
        job: Job,
        source: TensorSource,
        sinks: Sequence[GGUFSink],
        importance: ImportanceMatrix | None,
        rows: FinishedRows,
        watcher: Watcher,
    ) -> None:
        self.clock = Clock()
        self.in_one_memory, self.handful = AT_ONCE, 0  # each slab is noted by itself
        self._sinks = sinks
        job, inputs = as_workers_see(job, source)
        places = tuple(sink.places() for sink in sinks)
        task = Task(job, inputs, places, importance, job.threads or 0)

        def for_host(node: Node) -> Task:
            return replace(task, threads=min(task.threads or node.cpus, node.cpus))

        memory = PYTHON + job.max_buffer_bytes
        self._crew = Crew(ray, SlabCarrier, for_host, watcher, lambda node: AT_ONCE, memory=memory)
        self._crew.when_lost = self._lost
        self._written: dict[Hand, list[Slab]] = defaultdict(list)  # and perhaps not on the disk
        self._again = 0  # slabs that are done a second time, and not yet
        self._rows = rows
        self._syncing, self._over = threading.Lock(), threading.Event()
        self._saving = threading.Thread(target=self._keep_saving, daemon=True)

    @property
    def at_once(self) -> int:
        return self._crew.at_once

    @property
    def engines(self) -> tuple[Engine, ...]:
        return tuple(engine for engines in self._crew.found for engine in engines)

    def __enter__(self) -> ClusterLine:
        self._crew.__enter__()
        self._saving.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._crew.__exit__(*exception)
        self._saving.join()  # it must not note rows when they are forgotten

    def submit(self, slabs: Sequence[Slab]) -> Future[None]:
        (slab,) = slabs
        done: Future[None] = Future()
        if where(slab) in self._rows.found:
            self._count(slab)
            done.set_result(None)
            return done
        self._crew.submit(slab).add_done_callback(partial(self._carried, slab, done))
        return done

    def _carried(self, slab: Slab, done: Future[None], answer: Future[tuple[Hand, None]]) -> None:
        error = answer.exception()
        if error is not None:
            done.set_exception(error)
            return
        self._note(slab, answer.result()[0])
        self._count(slab)
        done.set_result(None)

    def _count(self, slab: Slab) -> None:
        for sink, entry in zip(self._sinks, slab.entries, strict=True):
            sink.count_written(entry.name, slab.n_rows)

    def _note(self, slab: Slab, hand: Hand) -> None:
        with self._crew.lock:
            is_lost = hand.is_lost
            if not is_lost:
                self._written[hand].append(slab)
        if is_lost:  # between its answer and now
            self._carry_again([slab])

    def _lost(self, hand: Hand) -> None:
        with self._crew.lock:
            slabs = self._written.pop(hand, [])
        self._carry_again(slabs)

    def _carry_again(self, slabs: Sequence[Slab]) -> None:
        with self._crew.lock:
            self._again += len(slabs)
        for slab in slabs:
            self._crew.submit(slab).add_done_callback(partial(self._carried_again, slab))

    def _carried_again(self, slab: Slab, answer: Future[tuple[Hand, None]]) -> None:
        if answer.exception() is None:  # else the crew has the error
            self._note(slab, answer.result()[0])
            with self._crew.lock:
                self._again -= 1

    def finish(self) -> None:
        """Wait until all rows are on the disk. Raises what went wrong."""
        crew = self._crew
        while True:
            with crew.lock:
                if crew.error is not None:
                    raise crew.error
                if not any(self._written.values()) and not self._again:
                    return
            self._sync()
            time.sleep(0.01)

    def _sync(self) -> None:
        """What was written until now is on the disk, and noted, but for that of workers which are lost."""
        crew = self._crew
        with self._syncing:
            with crew.lock:
                written = {hand: list(slabs) for hand, slabs in self._written.items() if slabs}
            for hand, slabs in written.items():
                seconds = crew.finish(hand)
                if seconds is None:  # lost: what it wrote comes again
                    continue
                self.clock.add(seconds)
                with crew.lock:
                    if hand in self._written:
                        self._written[hand] = self._written[hand][len(slabs) :]
                self._rows.add(slabs)

    def _keep_saving(self) -> None:
        """So that a head that is killed loses little."""
        while not self._over.wait(EVERY):
            try:
                self._sync()
            except (QuantmillError, OSError) as error:  # the latter: of the notes
                with self._crew.lock:
                    self._crew.error = self._crew.error or error
                return
