"""Interleaved rounds: contestants take turns, so that whatever else happens on the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds a call, one entry a round. `cpu` adds up all threads of this process."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def rate(self, n: int, clock: str = "wall") -> float:
        """Millions of n things a second, median of the rounds."""
        return n / statistics.median(getattr(self, clock)) / 1e6

    def span(self, n: int, clock: str = "wall") -> tuple[float, float]:
        """The slowest and the fastest round, in millions a second."""
        seconds = getattr(self, clock)
        return n / max(seconds) / 1e6, n / min(seconds) / 1e6

    def times_faster_than(self, other: Times, clock: str = "wall") -> float:
        """How many of our calls fit into one of the other's: median of the rounds' ratios."""
        pairs = zip(getattr(other, clock), getattr(self, clock), strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def interleaved(
    contestants: Mapping[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, Times]:
    """Time every contestant once a round; a turn repeats its call for about `seconds`. All have been called once."""
    repeats = {}
    for name, call in contestants.items():
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(seconds / max(time.perf_counter() - start, 1e-6)))
    walls: dict[str, list[float]] = {name: [] for name in contestants}
    cpus: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats[name]):
                call()
            walls[name].append((time.perf_counter() - wall) / repeats[name])
            cpus[name].append((time.process_time() - cpu) / repeats[name])
    return {name: Times(tuple(walls[name]), tuple(cpus[name])) for name in contestants}
