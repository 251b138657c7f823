"""Threads that share out work without a trace in the result.

torch splits a long sum by the number of its threads, and a sum split otherwise rounds otherwise. Here every piece of
work is computed by one thread, pieces are cut by the model's shapes alone, and their results are put together in
order: how many threads there are then changes the time and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Out = TypeVar("Out")


class Workers:
    """`map` over pieces of work, in `threads` threads of one torch thread each."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, initializer=_alone) if threads > 1 else None

    def map(self, work: Callable[[Item], Out], items: Sequence[Item]) -> list[Out]:
        """[work(item) for item in items], without gradients; the first error is raised."""
        if self._pool is None or len(items) == 1:
            with torch.no_grad():
                return [work(item) for item in items]
        return list(self._pool.map(_without_gradients(work), items))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _alone() -> None:
    torch.set_num_threads(1)


def _without_gradients(work: Callable[[Item], Out]) -> Callable[[Item], Out]:
    def run(item: Item) -> Out:
        with torch.no_grad():
            return work(item)

    return run


@contextlib.contextmanager
def working(threads: int) -> Iterator[Workers]:
    """Workers, with torch's own threads reduced to one for the caller too until the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    workers = Workers(threads)
    try:
        yield workers
    finally:
        workers.close()
        torch.set_num_threads(before)


def tiles(n: int, most: int, least: int = 96) -> list[slice]:
    """0 … n in equal slices: four, or as many more as keep each at `most`; fewer when they would be under `least`."""
    count = max(min(4, n // least), -(-n // most), 1)
    step = -(-n // count)
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]


def shares(n: int, workers: Workers) -> list[slice]:
    """0 … n in one slice a thread: for work where each element has a result of its own, however it is cut."""
    return tiles(n, -(-n // workers.threads), n)
