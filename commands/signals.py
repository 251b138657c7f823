"""Ctrl-C and its relatives: whatever asks a run to end lets it clean up behind itself."""

from __future__ import annotations

import _thread
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Ctrl-C; `kill`; a terminal that is closed; Ctrl-Break on Windows.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
_PATIENCE = 3.0  # seconds in which more signals do not disturb the cleaning up
_AGAIN = 0.05  # seconds until an interrupt that was lost, or has to wait, comes again
_IMPORTS = "<frozen importlib._bootstrap>"


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, these signals raise KeyboardInterrupt. What was ignored before, as `nohup` has SIGHUP, stays ignored.

    An interrupt that comes where Python can only print and forget it (in a destructor) is sent once more. One that
    comes while a module is imported waits for that, but not for ever: modules of C code take it for a broken
    installation or lose it, and what they have of other modules by then is half of them.
    """
    if threading.current_thread() is not threading.main_thread():  # only there Python takes signals
        yield
        return
    stop = _Stop()
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    hook = sys.unraisablehook
    try:
        sys.unraisablehook = stop.unraisable
        for number in numbers:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    finally:
        stop.end()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported there."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False


@contextmanager
def undisguised() -> Iterator[None]:
    """An interrupt that comes out as the cause of another error is one again: what is raised while a class is being
    made (in __set_name__) Python up to 3.11 hands on as a RuntimeError, what is raised in a codec as that codec's."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__
        if cause is None:
            raise
        raise KeyboardInterrupt(*cause.args) from error


class _Stop:
    """The handler."""

    def __init__(self) -> None:
        self._raised_at = -_PATIENCE
        self._waits_since = math.inf
        self._number = int(signal.SIGINT)
        self._hook = sys.unraisablehook
        self._lock, self._ended = threading.Lock(), False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._raised_at < _PATIENCE:
            return
        self._number = number  # another may be ignored
        self._waits_since = min(self._waits_since, now)
        if _imports(frame) and now - self._waits_since < _PATIENCE:
            self._send_again()
            return
        self._raised_at, self._waits_since = now, math.inf
        raise KeyboardInterrupt

    def unraisable(self, found: Any) -> None:
        if not issubclass(found.exc_type, KeyboardInterrupt):
            self._hook(found)
            return
        self._raised_at = -_PATIENCE
        self._send_again()

    def _send_again(self) -> None:
        # whom this interrupts may be about to start a thread, with the lock of `threading` in its hands
        _thread.start_new_thread(self._send, ())

    def _send(self) -> None:
        time.sleep(_AGAIN)
        with self._lock:
            if not self._ended:
                os.kill(os.getpid(), self._number)

    def end(self) -> None:
        """From now on nothing is sent again: who answers then would end the process in the middle of its last words."""
        self._raised_at = math.inf
        with self._lock:
            self._ended = True
