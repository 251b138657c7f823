"""What the comparison with llama-perplexity makes of what commands used."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import contest, evaluate, process
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


def test_a_whole_comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both programs stand-ins, which say what real ones do where it is looked at."""
    commands: list[list[str]] = []

    def run(command: list[str], said: Path | None = None) -> Usage:
        commands.append(command)
        if said is not None:
            compared = "Mean PPL(Q)   : 6.5 ± 1\nMean    KLD:  0.002 ± 0\nSame top p: 97.5 ± 1 %\n"
            said.write_text(compared if "--kl-divergence" in command else "[1]9.5,[2]7.25,\n", "utf-8")
            return usage(30, 40, 1 << 20)
        found: dict[str, Any] = {"ppl": {"value": 6.25}, "kld": {"value": 0.001}, "same_top": {"value": 0.98}}
        if "float32" in command:
            found["kld"]["value"] = 0.00101
        record = {"models": [{"ppl": {"value": 7.5}, "divergence": found}]}
        Path(command[command.index("-o") + 1]).write_text(json.dumps(record), encoding="utf-8")
        return usage(20, 25, 2 << 20)

    monkeypatch.setattr(process, "run", run)
    files = [str(tmp_path / name) for name in ("base.gguf", "text", "a.gguf", "b.gguf")]
    how = [
        "--llama-perplexity",
        "judge",
        "--chunks",
        "5",
        "--threads",
        "1",
        "2",
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(ZeroDivisionError):  # three chunks take as long as five
        evaluate.main([*files, *how])
    steps = itertools.count(1)
    monkeypatch.setattr(
        process,
        "run",
        lambda *given: replace(run(*given), cpu_s=float(next(steps)), wall_s=1.0 * next(steps)),
    )
    commands.clear()
    assert evaluate.main([*files, *how]) == 0
    page = (tmp_path / "o.md").read_text(encoding="utf-8")
    assert "| base.gguf | 7.5000 | 7.2500 | – |" in page
    assert "| a.gguf | 6.2500 | 6.5000 | 0.001000 | 0.001010 | 0.002000 | 98.00 | 97.50 |" in page
    assert page.count("\n| b.gguf |") == 3  # its numbers, and its costs with one thread and with two
    assert page.count("a.gguf, b.gguf") == 2
    assert sum("float32" in command for command in commands) == 2
    assert {command[command.index("-t") + 1] for command in commands if "-t" in command} == {"1", "2"}
