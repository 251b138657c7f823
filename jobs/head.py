"""Whether the head of a Ray cluster is there. Ray itself waits for it without end, in calls that cannot be given up, or
ends this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import TypeVar

from quantmill.jobs.errors import HeadLost

EVERY = 5.0  # seconds between two questions
LOST = 30.0  # seconds without an answer

Found = TypeVar("Found")


def reached(address: str, seconds: float) -> socket.socket:
    """A connection to HOST:PORT. Raises OSError, OverflowError for a port that is none."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), seconds)


def require_head(address: str) -> None:
    """Raises HeadLost where it does not answer now."""
    try:
        reached(address, EVERY).close()
    except OSError as error:
        raise HeadLost(_line(address, "does not answer", error)) from error


def _line(address: str, what: str, error: OSError) -> str:
    return (
        f"the head of the Ray cluster at {address} {what} ({error.strerror or error}); start the cluster again, and "
        "give the command again, with --resume where it has that"
    )


def told_by_head(address: str, ask: Callable[[], Found]) -> Found:
    """What is asked of Ray that only the head knows. Raises HeadLost, before or meanwhile."""
    require_head(address)
    answer: futures.Future[Found] = futures.Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - for whoever waits
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    while not futures.wait([answer], EVERY).done:
        require_head(address)
    return answer.result()


class HeadWatch:
    """when_lost is told why, once, on a thread of its own."""

    def __init__(self, address: str, when_lost: Callable[[str], None]) -> None:
        self._address, self._when_lost = address, when_lost
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._watching.start()

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        answered = time.monotonic()
        while not self._over.wait(EVERY):
            try:
                reached(self._address, EVERY).close()
                answered = time.monotonic()
            except OSError as error:
                if time.monotonic() - answered >= LOST:
                    self._when_lost(_line(self._address, f"has not answered for {LOST:.0f} s", error))
                    return
