"""What the comparison with llama-perplexity makes of what commands used."""

from __future__ import annotations

import pytest

from bench import contest
from bench.process import Usage


def usage(cpu: float, wall: float, peak: int = 0) -> Usage:
    return Usage(wall_s=wall, cpu_s=cpu, peak_bytes=peak, own_bytes=None, waiting=None)


def test_what_the_few_chunks_take_is_taken_away() -> None:
    asked: list[int] = []

    def run(chunks: int) -> list[Usage]:
        asked.append(chunks)
        return [usage(3 + chunks, 5 + 2 * chunks, chunks << 20), usage(1, 1)]

    found = contest.used(run, 10)
    assert asked == [contest.FEW, 10]
    assert (found.cpu_s, found.wall_s) == (14, 26)
    assert (found.more_cpu_s, found.more_wall_s) == (7, 14)
    assert found.peak_bytes == 10 << 20


def test_rates_and_ratios_are_of_the_rounds_median() -> None:
    def of(few: float, whole: float) -> contest.Used:
        return contest.Used(few, 2 * few, whole, 4 * whole, 3 << 20)

    ours, theirs = [of(5, 9), of(5, 10), of(5, 25)], [of(1, 9), of(1, 6), of(1, 11)]
    found = contest.costs(ours, theirs, 4096)
    assert found.rate == pytest.approx(4096 / 5)
    assert found.rate_theirs == pytest.approx(4096 / 8)
    assert found.ratio == pytest.approx(1.0)  # of 2, 1 and 0.5
    assert found.wall_ratio == pytest.approx(22 / 30)  # beside 34 / 26 and 42 / 90
    assert found.whole == pytest.approx(0.6)
    assert (found.cpu_s, found.cpu_s_theirs, found.memory_mib) == (10, 9, 3)
