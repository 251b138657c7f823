"""Carriers on the hosts of a Ray cluster, and pieces of work for whoever has the least to do.

A carrier that is lost, with its process or its host, is replaced, and what it was doing is done again by others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

from quantmill import __version__
from quantmill.errors import QuantmillError
from quantmill.jobs.cluster import Node, nodes
from quantmill.jobs.errors import JobError
from quantmill.jobs.watcher import Watcher
from quantmill.qkernels.trust import DeviceFault

_PATIENCE = 120.0  # seconds in which a carrier must begin
_LOSSES = 50  # carriers that may be lost


@dataclass(frozen=True)
class Outcome:
    """Of a piece of work: what it found, what is to be said, and what went wrong (`fault`: of a device), in words."""

    host: str
    found: Any = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    fault: bool = False


class Carrier(Protocol):
    """What runs elsewhere. It tells errors in its outcomes, and raises none."""

    def ready(self, version: str) -> Outcome:
        """Look at everything before the first piece. version: of quantmill, the head's."""

    def carry(self, piece: Any) -> Outcome: ...

    def finish(self) -> Outcome:
        """What was carried so far is safe."""


@dataclass(eq=False)
class Hand:
    """A carrier on a host. busy: pieces that it has."""

    node: Node
    actor: Any
    busy: int = 0
    is_lost: bool = False


class Crew:
    """A context manager. kind: a Carrier's class; task: gives what it is made of, for a host. at_once: pieces that a
    carrier has under way."""

    def __init__(
        self,
        ray: Any,
        kind: type,
        task: Callable[[Node], Any],
        watcher: Watcher,
        at_once: Callable[[Node], int],
    ) -> None:
        self._ray, self._kind, self._task, self._watcher, self._each = ray, kind, task, watcher, at_once
        self.lock = threading.RLock()
        self.hands: list[Hand] = []
        self.when_lost: Callable[[Hand], None] = lambda hand: None
        self.error: Exception | None = None
        self._waiting: list[tuple[Any, Future[tuple[Hand, Any]]]] = []  # for a hand
        self._losses = 0
        self._inbox: SimpleQueue[Callable[[], None] | None] = (
            SimpleQueue()
        )  # what answers from elsewhere lead to
        self._reading = threading.Thread(target=self._read, daemon=True)

    @property
    def at_once(self) -> int:
        return max(1, sum(self._each(hand.node) for hand in self.hands))

    def __enter__(self) -> Crew:
        """Raises JobError where a host cannot do the work, or none begins."""
        self._reading.start()
        hosts = nodes(self._ray)
        if not hosts:
            raise JobError("the Ray cluster has no host with a processor to spare")
        hands = [self._hand(node) for node in hosts]
        answers = [hand.actor.ready.remote(__version__) for hand in hands]
        self.found: list[Any] = []  # what the carriers said when they were ready
        try:
            for hand, answer in zip(hands, answers, strict=True):
                self._begin(hand, answer)
        except BaseException:
            self._kill(hands)
            self._inbox.put(None)
            raise
        if not self.hands:
            self._inbox.put(None)
            raise JobError(
                f"no worker has begun on {len(hosts)} hosts within {_PATIENCE:.0f} s; their processors are taken "
                "(`ray status` shows by what)"
            )
        names = ", ".join(sorted({hand.node.name for hand in self.hands}))
        self._watcher.note(f"{len(self.hands)} workers on Ray: {names}")
        return self

    def _begin(self, hand: Hand, answer: Any) -> None:
        try:
            outcome = self._ray.get(answer, timeout=_PATIENCE)
        except (self._ray.exceptions.GetTimeoutError, self._ray.exceptions.RayActorError):
            self._watcher.warn(f"{hand.node.name}: no worker begins there; the others go on without it")
            self._kill([hand])
            return
        except self._ray.exceptions.RayTaskError as error:
            raise JobError(f"{hand.node.name}: quantmill does not run there: {_last_line(error)}") from error
        self.found.append(self.sound(outcome))
        self.hands.append(hand)

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.error = self.error or JobError("the run is over")
            hands, self.hands = self.hands, []
        self._kill(hands)
        self._inbox.put(None)

    def _kill(self, hands: Sequence[Hand]) -> None:
        for hand in hands:
            hand.is_lost = True
            self._ray.kill(hand.actor)

    def _hand(self, node: Node, only_there: bool = True) -> Hand:
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            node.id, soft=not only_there
        )
        kind = self._ray.remote(self._kind).options(
            num_cpus=node.cpus,
            num_gpus=node.gpus,
            max_restarts=0,
            max_concurrency=self._each(node) + 1,
            scheduling_strategy=strategy,
        )
        return Hand(node, kind.remote(self._task(node)))

    def _read(self) -> None:
        while (work := self._inbox.get()) is not None:
            work()

    def _when_answered(self, answer: Future[Any], work: Callable[..., None], *given: Any) -> None:
        """work(*given, answer), not on Ray's own thread, on which nothing may wait."""
        answer.add_done_callback(lambda _: self._inbox.put(partial(work, *given, answer)))

    # Pieces

    def submit(self, piece: Any) -> Future[tuple[Hand, Any]]:
        """Who carried it, and what the outcome has found. Raises, there, what went wrong."""
        done: Future[tuple[Hand, Any]] = Future()
        self._send(piece, done)
        return done

    def _send(self, piece: Any, done: Future[tuple[Hand, Any]]) -> None:
        with self.lock:
            if self.error is not None:
                done.set_exception(self.error)
                return
            if not self.hands:
                self._waiting.append((piece, done))
                return
            hand = min(self.hands, key=lambda hand: hand.busy / self._each(hand.node))
            hand.busy += 1
            answer = hand.actor.carry.remote(piece).future()
        self._when_answered(answer, self._answered, hand, piece, done)

    def _answered(
        self, hand: Hand, piece: Any, done: Future[tuple[Hand, Any]], answer: Future[Outcome]
    ) -> None:
        error = answer.exception()
        if isinstance(error, self._ray.exceptions.RayActorError):
            self._lost(hand)
            self._send(piece, done)
            return
        with self.lock:
            hand.busy -= 1
        try:
            if error is not None:
                raise JobError(f"{hand.node.name}: {_last_line(error)}")
            found = self.sound(answer.result())
        except QuantmillError as wrong:
            with self.lock:
                self.error = self.error or wrong
            done.set_exception(wrong)
            return
        done.set_result((hand, found))

    def sound(self, outcome: Outcome) -> Any:
        """What it found; its warnings are passed on. Raises what went wrong."""
        for line in outcome.warnings:
            self._watcher.warn(f"{outcome.host}: {line}")
        if outcome.error is not None:
            raise DeviceFault(outcome.error) if outcome.fault else JobError(outcome.error)
        return outcome.found

    def finish(self, hand: Hand) -> Any:
        """What the carrier's `finish` finds; None where it was lost."""
        try:
            return self.sound(self._ray.get(hand.actor.finish.remote()))
        except self._ray.exceptions.RayActorError:
            self._inbox.put(partial(self._lost, hand))
            return None

    # Losses

    def _lost(self, hand: Hand) -> None:
        with self.lock:
            if hand.is_lost or self.error is not None:
                return
            hand.is_lost = True
            self.hands = [other for other in self.hands if other is not hand]
            self._losses += 1
            if self._losses > _LOSSES:
                self._give_up(f"workers were lost {self._losses} times")
                return
        self._watcher.warn(f"{hand.node.name}: a worker was lost; what it was doing is done again")
        replacement = self._hand(hand.node, only_there=False)
        self._when_answered(replacement.actor.ready.remote(__version__).future(), self._replaced, replacement)
        timer = threading.Timer(_PATIENCE, self._give_up_without_hands)
        timer.daemon = True
        timer.start()
        self.when_lost(hand)

    def _replaced(self, hand: Hand, answer: Future[Outcome]) -> None:
        if answer.exception() is not None:
            self._lost(hand)
            return
        with self.lock:
            if self.error is not None or hand.is_lost:
                return
            try:
                self.sound(answer.result())
            except QuantmillError as error:
                self._give_up(str(error))
                return
            self.hands.append(hand)
            waiting, self._waiting = self._waiting, []
        for piece, done in waiting:
            self._send(piece, done)

    def _give_up_without_hands(self) -> None:
        with self.lock:
            if self.error is None and not self.hands:
                self._give_up("all workers were lost, and none begins in their place")

    def _give_up(self, why: str) -> None:
        self.error = self.error or JobError(why)
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done.set_exception(self.error)


def _last_line(error: BaseException) -> str:
    """What a traceback from elsewhere ends with."""
    return (str(error).strip().splitlines() or ["no reason given"])[-1].strip()
