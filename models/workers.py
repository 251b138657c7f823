"""Threads that share out work without a trace in the result.

torch splits a long sum by the number of its threads, and a sum split otherwise rounds otherwise. Here every piece of
work is computed by one thread, pieces are cut by the model's shapes alone, and their results are put together in
order: how many threads there are then changes the time and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from quantmill.models.capture import named_layers
from quantmill.models.errors import ModelError

Item = TypeVar("Item")
Out = TypeVar("Out")
Tell = Callable[[int], None]  # so much is done


class _Unwanted(Exception):
    """Nobody waits for this thread's result any more."""


class _Shared(Generic[Item, Out]):
    """Pieces of work that threads take from one heap, the caller's too.

    It costs 0.1 ms on some machines to wake a thread: what is waited for are pieces under way, never a thread that has
    not begun.
    """

    def __init__(self, work: Callable[[Item], Out], items: Sequence[Item]) -> None:
        self._work, self._items = work, items
        self._left = iter(range(len(items)))
        self._found: dict[int, Out] = {}

    def done(self, pool: ThreadPoolExecutor, threads: int) -> list[Out]:
        own = [-1]
        takes: list[list[int]] = [[] for _ in range(threads - 1)]
        helpers = [pool.submit(self._take, taken) for taken in takes]
        try:
            self._take(own)
            own.append(len(self._items))
        finally:
            deque(self._left, maxlen=0)  # after an error nobody begins another
            running = [pair for pair in zip(helpers, takes, strict=True) if not pair[0].cancel()]
            wait([helper for helper, _ in running])
            failed = {taken[-1]: error for helper, taken in running if (error := helper.exception())}
            if failed and min(failed) < own[-1]:
                raise failed[min(failed)] from None
        return [self._found[i] for i in range(len(self._items))]

    def _take(self, taken: list[int]) -> None:
        # The caller may be in inference mode, whose tensors another thread could not write to.
        with torch.inference_mode(False), torch.no_grad():
            for i in self._left:
                taken.append(i)
                self._found[i] = self._work(self._items[i])


class _Share(threading.local):
    """How many threads may serve what a thread asks for; None: all."""

    threads: int | None = None


class Workers:
    """`map` over pieces of work, in `threads` threads of one torch thread each."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, initializer=_alone) if threads > 1 else None
        # The same thread each time takes the same work: what it keeps for it (scratch memory) is there once.
        self._apart = ThreadPoolExecutor(threads - 1, initializer=_alone) if threads > 1 else None
        self._share = _Share()
        self._ends = threading.Event()

    def map(self, work: Callable[[Item], Out], items: Sequence[Item]) -> list[Out]:
        """[work(item) for item in items], without gradients; the first error in their order is raised."""
        threads = min(self._share.threads or self.threads, len(items))
        if self._pool is None or threads < 2:
            with torch.no_grad():
                return [work(item) for item in items]
        return _Shared(work, items).done(self._pool, threads)

    def apart(self, work: Callable[[Item], Out], items: Sequence[Item]) -> list[Out]:
        """[work(item) for item in items], at most one a thread, all at the same time and the first by the caller.

        Each has its share of the threads for the maps in it, and gradients. The first error in their order is raised.
        """
        assert len(items) <= self.threads
        if self._apart is None or len(items) < 2:
            return [work(item) for item in items]

        def one(item: Item) -> Out:
            self._share.threads = self.threads // len(items)
            try:
                return work(item)
            finally:
                self._share.threads = None

        others = [self._apart.submit(one, item) for item in items[1:]]
        try:
            first = one(items[0])
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]

    def in_order(
        self, work: Callable[[Item, Tell], Out], items: Iterable[Item], told: Tell = lambda amount: None
    ) -> Iterator[Out]:
        """work(item, tell) of each item in turn, without gradients; a few of them are made ahead.

        told: what the work tells, on the caller's thread. Whoever asks no more ends the work that is under way.
        """
        if self._pool is None:
            for item in items:
                with torch.no_grad():
                    out = work(item, told)
                yield out
            return
        heard: SimpleQueue[int | None] = SimpleQueue()
        waiting: deque[Future[Out]] = deque()
        left = iter(items)
        try:
            while self._begin(work, left, heard, waiting):
                while not (waiting[0].done() and heard.empty()):
                    amount = heard.get()  # None: one of them is done
                    if amount is not None:
                        told(amount)
                yield waiting.popleft().result()
        finally:
            self._end(waiting)

    def _begin(
        self,
        work: Callable[[Item, Tell], Out],
        left: Iterator[Item],
        heard: SimpleQueue[int | None],
        waiting: deque[Future[Out]],
    ) -> bool:
        """Keep every thread at work and one piece ready; False when nothing is left."""
        assert self._pool is not None
        while len(waiting) <= self.threads:
            try:
                item = next(left)
            except StopIteration:
                break
            future = self._pool.submit(_without_gradients(lambda item: work(item, heard.put)), item)
            future.add_done_callback(lambda _: heard.put(None))
            waiting.append(future)
        return bool(waiting)

    def _end(self, waiting: Iterable[Future[Out]]) -> None:
        under_way = [future for future in waiting if not future.cancel()]
        self._ends.set()
        wait(under_way)
        self._ends.clear()

    def of(self, model: int) -> Workers:
        """Those for work with one of several models, by its number; threads here have them all."""
        return self

    @contextlib.contextmanager
    def ending(self, model: Any) -> Iterator[None]:
        """Inside, threads that run `model` for nobody stop before its next layer, not at the end of their text."""

        def look(*arguments: Any) -> None:
            if self._ends.is_set():
                raise _Unwanted

        with contextlib.ExitStack() as stack:
            if self._pool is not None:
                for layer in _layers(model):
                    stack.callback(layer.register_forward_pre_hook(look).remove)
            yield

    def close(self) -> None:
        self._ends.set()
        for pool in (self._pool, self._apart):
            if pool is not None:
                pool.shutdown(cancel_futures=True)


ALONE = Workers(1)  # the caller's thread, with as many of torch's own as it has


def _layers(model: Any) -> Sequence[Any]:
    try:
        return list(named_layers(model)[1])
    except ModelError:  # a model of another build: its threads end later
        return ()


def _alone() -> None:
    torch.set_num_threads(1)


def _without_gradients(work: Callable[[Item], Out]) -> Callable[[Item], Out]:
    def run(item: Item) -> Out:
        with torch.no_grad():
            return work(item)

    return run


def threads_for(device: str, threads: int | None) -> int:
    """threads None: one a processor. device: the kind that computes; any but "cpu" is fed by one thread: more would
    only wait for each other, and the first calls of CUDA's linear algebra fail when they come together."""
    return (threads or os.cpu_count() or 1) if device == "cpu" else 1


@contextlib.contextmanager
def working(threads: int | None, device: str) -> Iterator[Workers]:
    """Workers for a kind of device, with torch's own threads reduced to one for the caller too until the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    workers = Workers(threads_for(device, threads))
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
