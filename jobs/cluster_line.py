"""A jobs.worker.Worker on Ray: a carrier on each host, and slabs for whoever has the least to do.

A carrier that is lost, with its process or its host, is replaced; its slabs are done again by others, those too whose
rows it had written but not yet brought to the disk. Written twice, they are the same bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from quantmill import __version__
from quantmill.gguf_io import GGUFSink, TensorSource
from quantmill.imatrix.store import ImportanceMatrix
from quantmill.jobs.carrier import AT_ONCE, Carrier, Outcome, Task, inputs_of
from quantmill.jobs.cluster import Node, nodes
from quantmill.jobs.errors import JobError
from quantmill.jobs.line import Clock
from quantmill.jobs.quantize_request import Job
from quantmill.jobs.watcher import Watcher
from quantmill.qkernels.engines import Engine
from quantmill.qkernels.trust import DeviceFault
from quantmill.recipe.slabs import Slab

_PATIENCE = 120.0  # seconds in which a carrier must begin
_LOSSES = 50  # carriers that may be lost for each host


@dataclass(eq=False)
class _Hand:
    """A carrier on a host. busy: slabs that it has; done: that it has written since they were last on the disk."""

    node: Node
    actor: Any
    busy: int = 0
    done: list[Slab] = field(default_factory=list)
    is_lost: bool = False


class ClusterLine:
    """A context manager. sinks: opened; the source lies under the same name on all hosts."""

    def __init__(
        self,
        ray: Any,
        job: Job,
        source: TensorSource,
        sinks: Sequence[GGUFSink],
        importance: ImportanceMatrix | None,
        watcher: Watcher,
    ) -> None:
        self.clock = Clock()
        self._ray, self._watcher, self._sinks = ray, watcher, sinks
        job = _absolute(job)
        self._task = Task(
            job, inputs_of(source.paths), tuple(sink.places() for sink in sinks), importance, job.threads or 0
        )
        self._lock = threading.RLock()
        self._hands: list[_Hand] = []
        self._waiting: list[tuple[Slab, Future[None] | None]] = []  # for a hand
        self._again = 0  # slabs that are done a second time, and not yet
        self._losses = 0
        self._error: Exception | None = None
        self._inbox: SimpleQueue[Callable[[], None] | None] = (
            SimpleQueue()
        )  # what answers from elsewhere lead to
        self._reading = threading.Thread(target=self._read, daemon=True)
        self.engines: tuple[Engine, ...] = ()
        self.in_one_memory = AT_ONCE

    @property
    def at_once(self) -> int:
        return AT_ONCE * max(1, len(self._hands))

    def __enter__(self) -> ClusterLine:
        hosts = nodes(self._ray)
        if not hosts:
            raise JobError("the Ray cluster has no host with a processor to spare")
        asked = [(hand, self._ready(hand)) for hand in map(self._hand, hosts)]
        try:
            engines = [engine for hand, ref in asked for engine in self._begun(hand, ref)]
        except BaseException:
            self._kill([hand for hand, _ in asked])
            raise
        if not self._hands:
            raise JobError(
                f"no worker has begun on {len(hosts)} hosts within {_PATIENCE:.0f} s; their processors are taken "
                "(`ray status` shows by what)"
            )
        self.engines = tuple(engines)
        self._reading.start()
        names = ", ".join(sorted({hand.node.name for hand in self._hands}))
        self._watcher.note(f"{len(self._hands)} workers on Ray: {names}")
        return self

    def _begun(self, hand: _Hand, ref: Any) -> tuple[Engine, ...]:
        """The engines of a carrier that is ready; none where it cannot begin now. Raises what it complains of."""
        try:
            outcome, engines = self._ray.get(ref, timeout=_PATIENCE)
        except (self._ray.exceptions.GetTimeoutError, self._ray.exceptions.RayActorError):
            self._watcher.warn(f"{hand.node.name}: no worker begins there; the others go on without it")
            self._kill([hand])
            return ()
        except self._ray.exceptions.RayTaskError as error:
            raise JobError(f"{hand.node.name}: quantmill does not run there: {_last_line(error)}") from error
        _require_sound(outcome)
        self._hands.append(hand)
        return tuple(engines)

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._error = self._error or JobError("the run is over")
            hands, self._hands = self._hands, []
        self._kill(hands)
        self._inbox.put(None)

    def _read(self) -> None:
        while (work := self._inbox.get()) is not None:
            work()

    def _when_answered(self, answer: Future[Any], work: Callable[..., None], *given: Any) -> None:
        """work(*given, answer), not on Ray's own thread, on which nothing may wait."""
        answer.add_done_callback(lambda _: self._inbox.put(partial(work, *given, answer)))

    def _kill(self, hands: Sequence[_Hand]) -> None:
        for hand in hands:
            hand.is_lost = True
            self._ray.kill(hand.actor)

    def _hand(self, node: Node, only_there: bool = True) -> _Hand:
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            node.id, soft=not only_there
        )
        kind = self._ray.remote(Carrier).options(
            num_cpus=node.cpus,
            num_gpus=node.gpus,
            max_restarts=0,
            max_concurrency=AT_ONCE + 1,
            scheduling_strategy=strategy,
        )
        return _Hand(node, kind.remote(_threaded(self._task, node)))

    def _ready(self, hand: _Hand) -> Any:
        return hand.actor.ready.remote(__version__)

    # Slabs

    def submit(self, slab: Slab) -> Future[None]:
        done: Future[None] = Future()
        self._send(slab, done)
        return done

    def _send(self, slab: Slab, done: Future[None] | None) -> None:
        """done: None for a slab that was counted before."""
        with self._lock:
            if self._error is not None:
                _fail(done, self._error)
                return
            if not self._hands:
                self._waiting.append((slab, done))
                return
            hand = min(self._hands, key=lambda hand: hand.busy)
            hand.busy += 1
            answer = hand.actor.carry.remote(slab).future()
        self._when_answered(answer, self._answered, hand, slab, done)

    def _answered(self, hand: _Hand, slab: Slab, done: Future[None] | None, answer: Future[Outcome]) -> None:
        error = answer.exception()
        if isinstance(error, self._ray.exceptions.RayActorError):
            self._lost(hand)
            self._send(slab, done)
            return
        if error is None:
            outcome = answer.result()
            for line in outcome.warnings:
                self._watcher.warn(f"{outcome.host}: {line}")
            error = _error_of(outcome)
        else:
            error = JobError(f"{hand.node.name}: {_last_line(error)}")
        with self._lock:
            hand.busy -= 1
            if error is not None:
                self._error = self._error or error
                _fail(done, error)
                return
            hand.done.append(slab)
            if done is None:
                self._again -= 1
                return
            for sink, entry in zip(self._sinks, slab.entries, strict=True):
                sink.count_written(entry.name, slab.n_rows)
        done.set_result(None)

    # Losses

    def _lost(self, hand: _Hand) -> None:
        with self._lock:
            if hand.is_lost:
                return
            hand.is_lost = True
            self._hands = [other for other in self._hands if other is not hand]
            again, hand.done = hand.done, []
            self._again += len(again)
            self._losses += 1
            if self._losses > _LOSSES:
                self._give_up(f"workers were lost {self._losses} times")
                return
            replacement = self._hand(hand.node, only_there=False)
        self._watcher.warn(f"{hand.node.name}: a worker was lost; what it was doing is done again")
        self._when_answered(self._ready(replacement).future(), self._replaced, replacement)
        timer = threading.Timer(_PATIENCE, self._give_up_without_hands)
        timer.daemon = True
        timer.start()
        for slab in again:
            self._send(slab, None)

    def _replaced(self, hand: _Hand, answer: Future[tuple[Outcome, tuple[Engine, ...]]]) -> None:
        error = answer.exception()
        if error is not None:
            if self._error is None:
                self._lost(hand)
            return
        failed = _error_of(answer.result()[0])
        with self._lock:
            if self._error is not None or hand.is_lost:
                return
            if failed is not None:
                self._give_up(str(failed))
                return
            self._hands.append(hand)
            waiting, self._waiting = self._waiting, []
        for slab, done in waiting:
            self._send(slab, done)

    def _give_up_without_hands(self) -> None:
        with self._lock:
            if self._error is None and not self._hands:
                self._give_up("all workers were lost, and none begins in their place")

    def _give_up(self, why: str) -> None:
        self._error = self._error or JobError(why)
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            _fail(done, self._error)

    def finish(self) -> None:
        """Wait until all rows are on the disk. Raises what went wrong."""
        while True:
            with self._lock:
                if self._error is not None:
                    raise self._error
                dirty = [hand for hand in self._hands if hand.done]
                if not self._again and not dirty:
                    return
            for hand in dirty:
                self._synced(hand)
            time.sleep(0.01)

    def _synced(self, hand: _Hand) -> None:
        with self._lock:
            known = list(hand.done)
        try:
            outcome, seconds = self._ray.get(hand.actor.finish.remote())
        except self._ray.exceptions.RayActorError:
            self._lost(hand)
            return
        _require_sound(outcome)
        self.clock.add(seconds)
        with self._lock:
            hand.done = hand.done[len(known) :]


def _absolute(job: Job) -> Job:
    return replace(job, source=str(Path(job.source).absolute()))


def _threaded(task: Task, node: Node) -> Task:
    return replace(task, threads=min(task.threads or node.cpus, node.cpus))


def _error_of(outcome: Outcome) -> Exception | None:
    if outcome.error is None:
        return None
    return DeviceFault(outcome.error) if outcome.fault else JobError(outcome.error)


def _require_sound(outcome: Outcome) -> None:
    error = _error_of(outcome)
    if error is not None:
        raise error


def _fail(done: Future[None] | None, error: Exception) -> None:
    if done is not None:
        done.set_exception(error)


def _last_line(error: BaseException) -> str:
    """What a traceback from elsewhere ends with."""
    return (str(error).strip().splitlines() or ["no reason given"])[-1].strip()
