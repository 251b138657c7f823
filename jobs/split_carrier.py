"""What a worker elsewhere does for an output that nobody shares: it makes whole splits of it on its own disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

from quantmill.gguf_io import GGUFSink, commit_all
from quantmill.gguf_io.leftovers import Mark
from quantmill.imatrix.matrix import ImportanceMatrix
from quantmill.jobs.carrier import Input, require_like_head, told
from quantmill.jobs.edits import open_model
from quantmill.jobs.errors import JobError
from quantmill.jobs.line import line_of
from quantmill.jobs.pieces import Outcome
from quantmill.jobs.quantize_request import Job
from quantmill.jobs.watcher import Silent
from quantmill.jobs.worker import carry
from quantmill.qkernels.engines import Engine, choose_engines
from quantmill.recipe import Plan

DYING = 10.0  # seconds in which a lost worker must have ended, and given up its locks


@dataclass(frozen=True)
class Task:
    """outputs: of each plan, before they are split. In all plans a tensor has the same shard."""

    job: Job
    inputs: tuple[Input, ...]
    importance: ImportanceMatrix | None
    outputs: tuple[Path, ...]
    plans: tuple[Plan, ...]


@dataclass(frozen=True)
class Make:
    """Finds Made. What was made lies under temporary names."""

    number: int

    def done_by(self, carrier: SplitCarrier) -> Any:
        return carrier.make(self.number)


@dataclass(frozen=True)
class Made:
    """seconds: of each step; marks: of the split's file of each output."""

    seconds: Mapping[str, float]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Name:
    """Gives what was made its final names. Finds whether it has them: not where another one had made it."""

    number: int

    def done_by(self, carrier: SplitCarrier) -> Any:
        return carrier.name(self.number)


@dataclass(frozen=True)
class Forget:
    """The last piece: what has no name yet goes, and what is being made; also_named: what has one, too."""

    also_named: bool

    def done_by(self, carrier: SplitCarrier) -> Any:
        return carrier.forget(self.also_named)


class SplitCarrier(Silent):
    """A crew's Carrier, and the watcher of what it makes."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._opened = ExitStack()
        self._warnings: list[str] = []
        self._made: dict[int, list[GGUFSink]] = {}
        self._named: dict[int, list[Path]] = {}
        self._making, self._counting = Lock(), Lock()
        self._done, self._is_over = 0, False

    def ready(self, version: str) -> Outcome:
        """Finds the engines."""
        return told(lambda: self._begin(version), self._warnings, abroad=True)

    def _begin(self, version: str) -> Sequence[Engine]:
        job = self._task.job
        require_like_head(version, self._task.inputs)
        self._source = open_model(job.source, job.edits, job.later)
        self._engines = choose_engines(job.device)
        self._sinks(0)
        return self._engines

    def carry(self, piece: Make | Name | Forget) -> Outcome:
        return told(lambda: piece.done_by(self), self._warnings)

    def finish(self) -> Outcome:
        """Finds the bytes of the source that are done since this was asked last."""
        with self._counting:
            done, self._done = self._done, 0
        return told(lambda: done, [])

    def progressed(self, amount: int, what: str = "") -> None:
        with self._counting:
            self._done += amount
        if self._is_over:
            raise JobError("the run is over")

    def make(self, number: int) -> Made:
        task = self._task
        with self._making, ExitStack() as opened:
            self._drop(number)
            sinks = self._sinks(number)
            for sink in sinks:
                self._warnings.extend(sink.warnings)
                opened.enter_context(sink)
            entries = [[entry for entry in plan.entries if entry.shard == number] for plan in task.plans]
            with line_of(
                task.job, self._source, sinks, task.importance, self._engines, self._warnings.append
            ) as line:
                carry(line, entries, task.job.max_buffer_bytes, self)
            for sink in sinks:
                sink.complete()
            made = Made(line.clock.taken(), tuple(mark for sink in sinks for mark in sink.marks()))
            self._made[number] = sinks
            opened.pop_all()
            return made

    def name(self, number: int) -> bool:
        with self._making:
            if number in self._made:
                sinks = self._made[number]
                commit_all(sinks)
                self._named[number] = [final for sink in sinks for final in sink.finals]
                del self._made[number]
            return number in self._named

    def forget(self, also_named: bool) -> None:
        self._is_over = True
        with self._making:
            for number in list(self._made):
                self._drop(number)
            for path in chain(*self._named.values()) if also_named else ():
                path.unlink(missing_ok=True)

    def _drop(self, number: int) -> None:
        for sink in self._made.pop(number, ()):
            sink.__exit__()

    def _sinks(self, number: int) -> list[GGUFSink]:
        """Not opened yet. Raises GGUFError for a place that cannot be written."""
        task = self._task
        return [
            GGUFSink(
                output,
                plan.metadata,
                plan.output_tensors(),
                keep_split=True,
                inputs=[one.path for one in task.inputs],
                force=task.job.force,
                only=number,
                patience=DYING,
            )
            for output, plan in zip(task.outputs, task.plans, strict=True)
        ]


def split(plans: Sequence[Plan], count: int) -> tuple[Plan, ...]:
    """Plans of the same tensors, cut behind the same ones, into so many parts of about as many weights, or fewer."""
    entries = plans[0].entries
    total = sum(entry.n_weights for entry in entries)
    shards: list[int] = []
    before = 0
    for entry in entries:
        shards.append((before + entry.n_weights // 2) * count // total)
        before += entry.n_weights
    numbers = {shard: number for number, shard in enumerate(dict.fromkeys(shards))}
    return tuple(
        replace(
            plan,
            entries=tuple(
                replace(entry, shard=numbers[shard])
                for entry, shard in zip(plan.entries, shards, strict=True)
            ),
        )
        for plan in plans
    )
