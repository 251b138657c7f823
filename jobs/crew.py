"""Carriers on the hosts of a Ray cluster, and pieces of work for whoever has the least to do.

A carrier that is lost, with its process or its host, is replaced, and what it was doing is done again by others. A
piece that takes far longer than others of its kind is given to a second carrier as well, and the first answer counts:
whoever does a piece does the same.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from quantmill import __version__
from quantmill.errors import QuantmillError, counted, last_line
from quantmill.jobs.cluster import Node, able, actors, got, head_of
from quantmill.jobs.errors import ClusterError, HeadLost
from quantmill.jobs.head import HeadWatch, require_head, told_by_head
from quantmill.jobs.hosts import living, place_of
from quantmill.jobs.inbox import Inbox
from quantmill.jobs.pieces import PYTHON, USUAL, Hand, Outcome, Patience, Took, Work, sound
from quantmill.jobs.watcher import Watcher

_LOSSES = 50  # carriers that may be lost


class Crew:
    """A context manager. kind: a Carrier's class; task: gives what it is made of, for a host. at_once: pieces that a
    carrier has under way. memory: bytes of its own that it takes."""

    def __init__(
        self,
        ray: Any,
        kind: type,
        task: Callable[[Node], Any],
        watcher: Watcher,
        at_once: Callable[[Node], int],
        patience: Patience = USUAL,
        memory: int = PYTHON,
    ) -> None:
        self._ray, self._kind, self._task, self._watcher, self._each = ray, kind, task, watcher, at_once
        self.lock = threading.RLock()
        self.hands: list[Hand] = []  # that are there now
        self.begun: tuple[Hand, ...] = ()  # when the crew began, lost by now or not
        self.when_given: Callable[[Hand, Any], None] = lambda hand, piece: None
        self.when_lost: Callable[[Hand], None] = lambda hand: None
        self.error: Exception | None = None
        self._patience, self._memory = patience, memory
        self._waiting: deque[Work] = deque()  # for a hand
        self._under_way: dict[Work, None] = {}  # in the order in which it was sent
        self._took, self._losses = Took(), 0
        self._why = f"none in {patience.begin:.0f} s, as processors are taken (`ray status` shows by what)"
        self._coming: list[Hand] = []  # in place of lost ones; for the thread that reads
        self._inbox = Inbox(when_idle=self._double_slow)
        self._address = head_of(ray)
        self._head = HeadWatch(self._address, self._without_head)

    @property
    def at_once(self) -> int:
        return max(1, sum(self._each(hand.node) for hand in self.hands))

    def __enter__(self) -> Crew:
        """Raises ClusterError where a host cannot do the work, or none begins; HeadLost."""
        hosts = able(living(self._ray), self._memory, self._watcher.warn)
        self._inbox.start()
        self._head.start()
        hands, self.found = list[Hand](), list[Any]()  # the latter: what carriers said when they were ready
        try:
            hands = told_by_head(self._address, lambda: [self._hand(node) for node in hosts])
            for hand, answer in [(hand, hand.actor.ready.remote(__version__)) for hand in hands]:
                self._begin(hand, answer)
            if not self.hands:
                raise ClusterError(f"no worker has begun on {counted(len(hosts), 'host')}: {self._why}")
        except BaseException:
            self._kill([hand for hand in hands if not hand.is_lost])
            self._stop()
            raise
        self.begun = tuple(self.hands)
        names = ", ".join(sorted({hand.node.name for hand in self.begun}))
        self._watcher.note(f"{counted(len(self.begun), 'worker')} on Ray: {names}")
        return self

    def _begin(self, hand: Hand, answer: Any) -> None:
        try:
            outcome = got(self._ray, answer, self._patience.begin, lambda: self.error)
        except (self._ray.exceptions.GetTimeoutError, self._ray.exceptions.RayActorError) as error:
            require_head(self._address)  # else it is the head that is to be blamed
            if isinstance(error, self._ray.exceptions.RayActorError):
                self._why = last_line(error)
            self._watcher.warn(f"{hand.node.name}: no worker begins there; the others go on without it")
            self._kill([hand])
            return
        except self._ray.exceptions.RayTaskError as error:
            why = f"{hand.node.name}: quantmill does not run there: {last_line(error)}"
            raise ClusterError(why) from error
        self.found.append(sound(outcome, self._watcher.warn))
        self.hands.append(hand)

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self._give_up("the run is over")
            hands, self.hands = self.hands, []
        self._kill(hands)
        self._stop()
        self._kill(self._coming)
        self._settle()

    def _stop(self) -> None:
        self._head.stop()
        self._inbox.stop(wait=not isinstance(self.error, HeadLost))

    def _kill(self, hands: Sequence[Hand]) -> None:
        for hand in hands:
            hand.is_lost = True
            self._ray.kill(hand.actor)

    def _hand(self, node: Node, only_there: bool = True) -> Hand:
        kind = actors(self._ray, self._kind, node, self._memory, self._each(node) + 1, only_there)
        return Hand(node, kind.remote(self._task(node)))

    # Pieces

    def submit(self, piece: Any, hand: Hand | None = None) -> Future[tuple[Hand, Any]]:
        """Who carried it, and what the outcome has found. Raises, there, what went wrong.

        hand: who is to have it, if it is still there; else whoever has the least to do.
        """
        work = Work(piece, hand)
        self._send(work)
        return work.done

    def _send(self, work: Work) -> None:
        with self.lock:
            if self.error is not None:
                work.done.set_exception(self.error)
                return
            if work.hand in self.hands:
                hand = work.hand
            else:
                free = [hand for hand in self.hands if hand.busy < self._each(hand.node)]
                if not free:
                    self._waiting.append(work)
                    return
                hand = min(free, key=lambda hand: hand.busy / self._each(hand.node))
            assert hand is not None
            self._give(work, hand)

    def _give(self, work: Work, hand: Hand) -> None:
        with self.lock:
            hand.busy += 1
            work.sent[hand] = time.monotonic()
            self._under_way[work] = None
            self.when_given(hand, work.piece)
            answer = hand.actor.carry.remote(work.piece).future()
        self._inbox.when_answered(answer, self._answered, hand, work)

    def _send_waiting(self) -> None:
        with self.lock:
            waiting, self._waiting = self._waiting, deque()
        for work in waiting:
            self._send(work)

    def _answered(self, hand: Hand, work: Work, answer: Future[Outcome]) -> None:
        error = answer.exception()
        with self.lock:
            hand.busy -= 1
            began = work.sent.pop(hand)
        if isinstance(error, self._ray.exceptions.RayActorError):
            self._lost(hand)
        if work.done.done():  # another one was faster
            self._send_waiting()
            return
        lost = self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError
        if isinstance(error, lost):  # the latter: it was found, and lost with the host
            if not work.sent:
                self._send(work)
            return
        with self.lock:
            self._under_way.pop(work, None)
        try:
            if error is not None:
                raise ClusterError(f"{hand.node.name}: {last_line(error)}")
            found = sound(answer.result(), self._watcher.warn)
        except QuantmillError as wrong:
            with self.lock:
                self.error = self.error or wrong
            with suppress(InvalidStateError):  # the head was lost meanwhile
                work.done.set_exception(wrong)
            return
        with self.lock:
            self._took.add(work.piece, time.monotonic() - began)
        self._send_waiting()
        with suppress(InvalidStateError):
            work.done.set_result((hand, found))
        self._double_slow()

    def _double_slow(self) -> None:
        """Give what takes too long to a second hand that has nothing better to do."""
        now = time.monotonic()
        with self.lock:
            for work in list(self._under_way):
                if len(work.sent) != 1 or self.error is not None:
                    continue
                slow, began = next(iter(work.sent.items()))
                usual = self._took.usual(work.piece) if now - began > self._patience.slow else None
                free = [hand for hand in self.hands if hand is not slow and hand.busy < self._each(hand.node)]
                if usual is not None and now - began > self._patience.times * usual and free:
                    hand = min(free, key=lambda hand: hand.busy)
                    self._watcher.warn(
                        f"{slow.node.name}: takes {now - began:.0f} s for what usually takes {usual:.1f} s; "
                        f"{hand.node.name} does it too"
                    )
                    self._give(work, hand)

    def finish(self, hand: Hand) -> Any:
        """What the carrier's `finish` finds; None where it was lost."""
        try:
            answer = hand.actor.finish.remote()
            outcome = got(self._ray, answer, self._patience.finish, lambda: self.error)
            return sound(outcome, self._watcher.warn)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.GetTimeoutError):
            self._ray.kill(hand.actor)  # one that does not answer must not write any more
            self._inbox.put(self._lost, hand)
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
            self._give_up_for(f"workers were lost {self._losses} times")
            return
        self._watcher.warn(f"{hand.node.name}: a worker was lost; what it was doing is done again")
        replacement = self._hand(hand.node, only_there=False)
        self._coming.append(replacement)
        self._inbox.when_answered(
            replacement.actor.ready.remote(__version__).future(), self._replaced, replacement
        )
        timer = threading.Timer(self._patience.begin, self._give_up_without_hands)
        timer.daemon = True
        timer.start()
        self.when_lost(hand)

    def _replaced(self, hand: Hand, answer: Future[Outcome]) -> None:
        if answer.exception() is not None:
            self._coming.remove(hand)
            self._lost(hand)
            return
        hand.node = place_of(self._ray, hand.node, answer.result().host)
        with self.lock:
            if self.error is not None or hand.is_lost:
                return
            try:
                sound(answer.result(), self._watcher.warn)
            except QuantmillError as error:
                self._give_up(str(error))
                return
            self._coming.remove(hand)
            self.hands.append(hand)
        self._send_waiting()

    def _give_up_without_hands(self) -> None:
        if self.error is None and not self.hands:
            self._give_up_for("all workers were lost, and none begins in their place")

    def _without_head(self, why: str) -> None:
        """Nothing is waited for: Ray tells nobody any more who is lost, and does not answer the thread that reads."""
        with self.lock:
            self._give_up(why, HeadLost)
        self._settle()

    def _settle(self) -> None:
        with self.lock:
            under_way = list(self._under_way)
        for work in under_way:
            with suppress(InvalidStateError):
                work.done.set_exception(self.error)

    def _give_up_for(self, losses: str) -> None:
        """Or for the head's, where that is lost: then nobody tells who is."""
        try:
            require_head(self._address)
        except HeadLost as error:
            self._without_head(str(error))
        with self.lock:
            self._give_up(losses)

    def _give_up(self, why: str, kind: type[ClusterError] = ClusterError) -> None:
        self.error = self.error or kind(why)
        while self._waiting:
            self._waiting.popleft().done.set_exception(self.error)
