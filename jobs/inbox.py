"""Answers from elsewhere, looked at one after the other on a thread that may wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any


class Inbox:
    """when_idle: called after each second without an answer."""

    def __init__(self, when_idle: Callable[[], None]) -> None:
        self._when_idle = when_idle
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._reading = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        self._reading.start()

    def put(self, work: Callable[..., None], *given: Any) -> None:
        self._waiting.put(partial(work, *given))

    def when_answered(self, answer: Future[Any], work: Callable[..., None], *given: Any) -> None:
        """work(*given, answer), not on Ray's own thread, on which nothing may wait."""
        answer.add_done_callback(lambda _: self.put(work, *given, answer))

    def stop(self, wait: bool) -> None:
        """What was put before is looked at. wait: until it was."""
        self._waiting.put(None)
        if wait:
            self._reading.join()

    def _read(self) -> None:
        while True:
            try:
                work = self._waiting.get(timeout=1.0)
            except Empty:
                self._when_idle()
                continue
            if work is None:
                return
            work()
