"""Work that threads do side by side, and work that none of them may be beside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Doors:
    """`among_others()` for many at a time, `alone()` for one with nobody inside. Neither within the other."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_alone = False
        self._asking = 0  # to be alone: nobody else comes in meanwhile

    @contextmanager
    def among_others(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_alone or self._asking))
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._asking += 1
            try:
                self._changed.wait_for(lambda: not (self._is_alone or self._inside))
            finally:  # an interrupt must not keep the others out
                self._asking -= 1
                self._changed.notify_all()
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()
