"""Pieces of work that are carried elsewhere, who carries them, and what comes back; nothing here knows Ray."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from quantmill.jobs.cluster import Node
from quantmill.jobs.errors import ClusterError, JobError
from quantmill.qkernels.types import DeviceFault

_KNOWN = 3  # pieces of a kind that must be done before one is called slow
PYTHON = 512 << 20  # bytes that a carrier takes for itself: Python, torch
_LATEST = 99  # of a kind, by which it is judged what is usual


@dataclass(frozen=True)
class Patience:
    """Seconds in which a carrier must begin, or finish; and what makes a piece a slow one: so many seconds at least,
    and so many times what is usual."""

    begin: float = 120.0
    finish: float = 120.0
    slow: float = 30.0
    times: float = 4.0


USUAL = Patience()


@dataclass(frozen=True)
class Outcome:
    """Of a piece of work: what it found, what is to be said, and what went wrong, in words. fault: of a device;
    of_host: of the host, which says nothing of the work."""

    host: str
    found: Any = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    fault: bool = False
    of_host: bool = False


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


@dataclass(eq=False)
class Work:
    """A piece on its way. hand: who is wished to have it; sent: who has it, since when (time.monotonic)."""

    piece: Any
    hand: Hand | None
    done: Future[tuple[Hand, Any]] = field(default_factory=Future)
    sent: dict[Hand, float] = field(default_factory=dict)


class Took:
    """Seconds that pieces took, by their kind."""

    def __init__(self) -> None:
        self._seconds: dict[type, deque[float]] = {}

    def add(self, piece: Any, seconds: float) -> None:
        self._seconds.setdefault(type(piece), deque(maxlen=_LATEST)).append(seconds)

    def usual(self, piece: Any) -> float | None:
        """Of the latest of this kind; None while there are too few."""
        seconds = self._seconds.get(type(piece), ())
        return statistics.median(seconds) if len(seconds) >= _KNOWN else None


def sound(outcome: Outcome, warn: Callable[[str], None]) -> Any:
    """What it found; its warnings are passed on. Raises what went wrong."""
    for line in outcome.warnings:
        warn(f"{outcome.host}: {line}")
    if outcome.error is not None:
        if outcome.fault:
            raise DeviceFault(outcome.error)
        raise (ClusterError if outcome.of_host else JobError)(outcome.error)
    return outcome.found
