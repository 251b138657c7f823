"""Tiles shared by a pool of threads."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

# Weights that a thread takes at a time: enough to be worth a call, few enough that all threads end together.
_SMALLEST_CHUNK, _LARGEST_CHUNK = 1 << 16, 1 << 19


def spread(n_threads: int, work: Callable[[Iterator[tuple[int, int]]], None], n: int, size: int) -> None:
    """Share n pieces of `size` weights among threads, this one included.

    Each calls `work` once with an iterator that gives it bounds of pieces as long as there are any left.
    """
    chunk = min(max(_SMALLEST_CHUNK, n * size // (4 * n_threads)), _LARGEST_CHUNK)
    step = max(1, chunk // size)
    starts, lock = iter(range(0, n, step)), threading.Lock()

    def bounds() -> Iterator[tuple[int, int]]:
        while True:
            with lock:
                begin = next(starts, n)
            if begin == n:
                return
            yield begin, min(begin + step, n)

    helpers = min(n_threads, -(-n // step)) - 1
    started = [_pool(n_threads).submit(work, bounds()) for _ in range(helpers)]
    try:
        work(bounds())
    finally:
        with lock:
            deque(starts, maxlen=0)  # after an error or an interrupt the others get no more
        if started:
            wait(started)
    for helper in started:
        helper.result()


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="quantmill")
