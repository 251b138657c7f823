"""Runs of large jobs on hosts that are not there, with the crew's own rules: a window of pieces in order, each to the
host that has the least to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench import tables

CORES = 16  # of each simulated host
HOSTS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Overhead:
    """Seconds. head: of the head's processor, a piece; trip: there and back; start: until a worker begins; byte: of an
    answer on its way, head_byte: of it those of the head's processor; parcel_byte: of what the head has for all."""

    head: float
    trip: float
    start: float
    byte: float = 0.0
    head_byte: float = 0.0
    parcel_byte: float = 0.0


@dataclass(frozen=True)
class Phase:
    """Seconds of each piece by itself, and how many a host does side by side, and has at hand. alone: seconds of the
    head before it; parcel: bytes that all hosts get first; answer: that each of them gives; most: hosts that take
    part."""

    pieces: Sequence[float]
    side_by_side: int
    at_hand: int
    alone: float = 0.0
    parcel: int = 0
    answer: int = 0
    most: int = 1 << 30


@dataclass(frozen=True)
class Large:
    """A job to simulate: phases, each of which waits for the one before. one_crew: of workers for all of them, which
    begin once."""

    name: str
    phases: Sequence[Phase]
    one_crew: bool = False


@dataclass(frozen=True)
class Row:
    """efficiency: the time that all work takes on all processors with nothing between, over the simulated one."""

    job: str
    hosts: int
    pieces: int
    simulated_s: float
    efficiency: float


COLUMNS = (
    tables.Column("job", "job"),
    tables.Column("hosts", "hosts", "{:d}"),
    tables.Column("pieces", "pieces", "{:d}"),
    tables.Column("simulated, s", "simulated_s", "{:.1f}"),
    tables.Column("efficiency", "efficiency", "{:.0%}"),
)


def simulated(job: Large, n_hosts: int, overhead: Overhead) -> Row:
    """One run of a job."""
    now = ideal = 0.0
    for number, phase in enumerate(job.phases):
        hosts = min(n_hosts, phase.most)
        now += phase.alone + phase.parcel * overhead.parcel_byte
        now += overhead.start if number == 0 or not job.one_crew else 0.0
        now = _end(phase, hosts, overhead, now)
        now += phase.answer * (
            overhead.byte + (hosts - 1) * overhead.head_byte
        )  # hosts send theirs side by side
        ideal += (phase.alone + sum(phase.pieces)) / (n_hosts * phase.side_by_side)
    n_pieces = sum(len(phase.pieces) for phase in job.phases)
    return Row(job.name, n_hosts, n_pieces, now, ideal / now)


def _end(phase: Phase, n_hosts: int, overhead: Overhead, began: float) -> float:
    """When the last piece was heard of."""
    slots = [[began] * phase.side_by_side for _ in range(n_hosts)]  # when each is free
    ends: list[deque[float]] = [
        deque() for _ in range(n_hosts)
    ]  # of what a host has, as the head hears of it
    heard: list[float] = []  # until when all pieces up to this one were heard of
    head, window = began, n_hosts * phase.at_hand
    for number, seconds in enumerate(phase.pieces):
        if number >= window:
            head = max(head, heard[number - window])
        head += overhead.head
        for waiting in ends:
            while waiting and waiting[0] <= head:
                waiting.popleft()
        host = min(range(n_hosts), key=lambda i: len(ends[i]))
        slot = int(np.argmin(slots[host]))
        end = max(slots[host][slot], head + overhead.trip / 2) + seconds
        slots[host][slot] = end
        answered = end + overhead.trip / 2
        ends[host] = deque(sorted((*ends[host], answered)))
        heard.append(max(answered, heard[-1] if heard else 0.0))
    return heard[-1] if heard else began
