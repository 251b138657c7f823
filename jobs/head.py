"""Whether the head of a Ray cluster is there. Ray itself ends this process a minute after it has lost it, where it
stands."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

EVERY = 5.0  # seconds between two questions
LOST = 30.0  # seconds without an answer


def reached(address: str, seconds: float) -> socket.socket:
    """A connection to HOST:PORT. Raises OSError, OverflowError for a port that is none."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), seconds)


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
                    self._when_lost(
                        f"the head of the Ray cluster at {self._address} has not answered for {LOST:.0f} s "
                        f"({error.strerror or error}); start the cluster again, and give the command again, with "
                        "--resume where it has that"
                    )
                    return
