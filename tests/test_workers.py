"""Work that threads share: in order, whoever does it, and ended by the first error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from quantmill.models.workers import Tell, Workers


@pytest.fixture(params=[1, 2, 4])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    made = Workers(request.param)
    yield made
    made.close()


def test_results_stand_in_order_and_the_caller_takes_part(workers: Workers) -> None:
    seen: set[int] = set()

    def one(i: int) -> int:
        seen.add(threading.get_ident())
        time.sleep(0.002 * (7 - i % 8))
        return i * i

    assert workers.map(one, range(24)) == [i * i for i in range(24)]
    assert threading.get_ident() in seen
    assert len(seen) == workers.threads


def test_the_first_error_in_order_is_raised_and_ends_the_work(workers: Workers) -> None:
    begun = []

    def one(i: int) -> None:
        begun.append(i)
        if i == 3:
            time.sleep(0.05)  # the fourth fails before it where there are threads
        if i >= 3:
            raise ValueError(i)

    with pytest.raises(ValueError, match=r"^3$"):
        workers.map(one, range(100))
    assert len(begun) <= 3 + workers.threads
    assert workers.map(str, range(3)) == ["0", "1", "2"]


def test_an_interrupt_of_the_caller_waits_for_what_is_under_way(workers: Workers) -> None:
    caller, done, begun = threading.get_ident(), [], []

    def one(i: int) -> None:
        begun.append(i)
        if threading.get_ident() == caller:
            raise KeyboardInterrupt
        time.sleep(0.05)
        done.append(i)

    with pytest.raises(KeyboardInterrupt):
        workers.map(one, range(100))
    assert len(begun) - len(done) == 1  # the caller's own


def test_shared_work_inside_of_shared_work(workers: Workers) -> None:
    def inner(i: int) -> int:
        return sum(workers.map(lambda j: i * j, range(50)))

    def outer(i: int, tell: Tell) -> int:
        return inner(i)

    wanted = [i * 1225 for i in range(20)]
    assert list(workers.in_order(outer, range(20))) == wanted
    assert workers.map(inner, range(20)) == wanted


def test_what_one_thread_has_made_another_changes(workers: Workers) -> None:
    """Also where the caller is in inference mode."""
    sums: list[torch.Tensor] = []

    def make(i: int) -> None:
        time.sleep(0.01)
        sums.append(torch.zeros(1))

    def add(i: int) -> None:
        time.sleep(0.01)
        sums[i % len(sums)] += 1

    with torch.inference_mode():
        workers.map(make, range(8))
        workers.map(add, range(16))
    assert torch.cat(sums).tolist() == [2.0] * 8


def test_work_apart_shares_the_threads(workers: Workers) -> None:
    """Each piece runs on a thread of its own, the first on the caller's, with gradients and its share for maps."""
    n = min(2, workers.threads)
    all_there = threading.Barrier(n, timeout=20)

    def work(i: int) -> tuple[int, set[int]]:
        all_there.wait()
        assert torch.is_grad_enabled()
        seen: set[int] = set()

        def one(_: int) -> None:
            seen.add(threading.get_ident())
            time.sleep(0.005)

        workers.map(one, range(16))
        return threading.get_ident(), seen

    for _ in range(2):
        found = workers.apart(work, range(n))
        threads = [thread for thread, _ in found]
        assert threads[0] == threading.get_ident()
        assert len(set(threads)) == n
        for thread, seen in found:
            assert thread in seen
            assert len(seen) <= workers.threads // n


def test_an_error_apart_waits_for_the_others(workers: Workers) -> None:
    ended = []

    def work(i: int) -> None:
        if i == 0:
            raise ValueError(i)
        time.sleep(0.05)
        ended.append(i)

    with pytest.raises(ValueError, match="0"):
        workers.apart(work, range(min(2, workers.threads)))
    assert len(ended) == min(2, workers.threads) - 1
