"""The benchmarks: no number without equal bytes, and rows that say everything."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import files, process, quantize, startup, tables, timing
from quantmill import qkernels

QUICK = [
    "--types",
    "Q8_0",
    "--engines",
    "cpu",
    "--threads",
    "1",
    "--rows",
    "4",
    "--columns",
    "256",
    "--rounds",
    "2",
    "--seconds",
    "0",
]


def test_a_wrong_byte_prints_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    right: Any = qkernels.quantize

    def wrong(rows: np.ndarray, *arguments: Any, **options: Any) -> np.ndarray:
        blocks = right(rows, *arguments, **options)
        blocks[-1, -1] ^= 1
        return blocks

    monkeypatch.setattr(qkernels, "quantize", wrong)
    assert quantize.main([*QUICK, "--no-startup", "--out", str(tmp_path / "result")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Q8_0: 1 of" in printed.err
    assert not list(tmp_path.iterdir())


def test_a_row_is_complete_and_saved(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prefix = tmp_path / "results" / "quick"
    assert quantize.main([*QUICK, "--out", str(prefix)]) == 0
    table = capsys.readouterr().out
    assert prefix.with_suffix(".md").read_text(encoding="utf-8") == table
    result = json.loads(prefix.with_suffix(".json").read_text(encoding="utf-8"))
    assert result["machine"]["command"].startswith("python -m bench.quantize --types Q8_0")
    assert result["machine"]["commit"] in table
    assert {"python", "numpy", "llvmlite", "xllamacpp"} <= result["machine"]["versions"].keys()
    (row,) = result["rows"]
    assert row.keys() == {field.name for field in dataclasses.fields(quantize.Row)}
    assert (row["type"], row["importance"], row["engine"], row["device"]) == ("Q8_0", False, "cpu", "cpu")
    assert (row["threads"], row["weights"], row["compared_blocks"]) == (1, 1024, 32)
    numbers = [value for value in row.values() if isinstance(value, float)]
    assert len(numbers) == 13
    assert all(math.isfinite(value) and value > 0 for value in numbers)
    assert row["slowest"] <= row["rate"] <= row["fastest"]
    assert row["cached_call_s"] < row["first_call_s"]


def test_types_are_measured_as_they_use_importance() -> None:
    options = quantize._options(
        ["--types", "MXFP4", "Q4_K", "IQ1_S", "--engines", "cpu", "--threads", "1", "2"]
    )
    measured = [(c.type, c.importance, c.threads) for c in quantize.cases(options)]
    both = [(name, i, n) for name, i in (("Q4_K", False), ("Q4_K", True)) for n in (1, 2)]
    assert measured == [
        ("MXFP4", False, 1),
        ("MXFP4", False, 2),
        *both,
        ("IQ1_S", True, 1),
        ("IQ1_S", True, 2),
    ]


def test_a_start_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'Q9_9'"):
        startup.measure("Q9_9", False, "cpu", "cpu")


def test_rates_are_medians_of_rounds() -> None:
    ours = timing.Times(wall=(0.5, 0.25, 1.0), cpu=(0.5, 0.5, 0.5))
    theirs = timing.Times(wall=(2.0, 2.0, 2.0), cpu=(1.0, 2.0, 3.0))
    assert ours.rate(10**6) == 2.0
    assert ours.span(10**6) == (1.0, 4.0)
    assert ours.times_faster_than(theirs) == 4.0
    assert ours.times_faster_than(theirs, "cpu") == 4.0


def test_contestants_take_turns() -> None:
    called: list[str] = []
    timing.interleaved({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2, 0.0)
    assert called == ["a", "b", "a", "b", "a", "b"]


def test_what_was_not_measured_is_a_dash() -> None:
    @dataclasses.dataclass(frozen=True)
    class Row:
        name: str
        seconds: float | None

    columns = [tables.Column("name", "name"), tables.Column("s", "seconds", "{:.1f}")]
    assert tables.markdown(columns, [Row("a", 0.25), Row("b", None)]) == (
        "| name | s |\n|---|--:|\n| a | 0.2 |\n| b | – |"
    )


def _program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_process_is_watched() -> None:
    allocate = "import time; held = bytes(range(256)) * 400_000; time.sleep(0.4); x = sum(range(3_000_000))"
    use = process.run(_program(allocate))
    assert 0.4 < use.wall_s < 20
    assert 0 < use.cpu_s < use.wall_s
    assert 100e6 < use.peak_bytes < 400e6
    if sys.platform == "linux":
        assert use.own_bytes is not None
        assert 100e6 < use.own_bytes <= use.peak_bytes
        assert use.waiting is not None
        assert 0 <= use.waiting < 0.5


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3: no room"):
        process.run(_program("import sys; print('no room', file=sys.stderr); sys.exit(3)"))


def _copying(monkeypatch: pytest.MonkeyPatch, spoil: bool) -> None:
    """Two tools that copy the model instead of quantizing it, the second with a byte more when `spoil`."""

    def copies(options: argparse.Namespace, type: str, folder: Path) -> list[files.Tool]:
        copy = f"import shutil; shutil.copy({str(options.model)!r}, "
        ours, theirs = folder / "ours", folder / "theirs"
        more = f"; open({str(theirs)!r}, 'ab').write(b'x')" if spoil else ""
        return [
            files.Tool("quantmill", _program(f"{copy}{str(ours)!r})"), ours),
            files.Tool("llama-quantize", _program(f"{copy}{str(theirs)!r}){more}"), theirs),
        ]

    monkeypatch.setattr(files, "tools", copies)


def test_files_that_differ_print_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _copying(monkeypatch, spoil=True)
    model = tmp_path / "model.gguf"
    model.write_bytes(bytes(10**6))
    assert files.main([str(model), "--types", "Q8_0", "--out", str(tmp_path / "result")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Q8_0: the file is not llama-quantize's" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_row_of_files_is_complete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _copying(monkeypatch, spoil=False)
    model = tmp_path / "model.gguf"
    model.write_bytes(bytes(10**6))
    arguments = [str(model), "--types", "Q8_0", "--rounds", "2", "--threads", "1", "--json"]
    assert files.main([*arguments, "--folder", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["tool"] for row in rows] == ["quantmill", "llama-quantize"]
    for row in rows:
        assert row.keys() == {field.name for field in dataclasses.fields(files.Row)}
        assert (row["model"], row["type"], row["threads"], row["rounds"]) == ("model.gguf", "Q8_0", 1, 2)
        assert row["same_bytes"] is True
        assert row["fastest_s"] <= row["wall_s"] <= row["slowest_s"]
        assert row["read_mb_s"] == pytest.approx(1 / row["wall_s"])
    assert rows[0]["ratio"] > 0
    assert rows[1]["ratio"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_the_tools_commands() -> None:
    options = files._options(["in.gguf", "--imatrix", "i.gguf", "--llama-quantize", "lq", "--threads", "3"])
    ours, theirs = files.tools(options, "IQ3_S", Path("out"))
    assert ours.command[1:] == [
        *("-m", "quantmill", "quantize", "in.gguf", str(Path("out/quantmill.gguf")), "IQ3_S"),
        *("--imatrix", "i.gguf", "--threads", "3"),
    ]
    assert theirs.command == [
        *("lq", "--imatrix", "i.gguf", "in.gguf", str(Path("out/llama-quantize.gguf")), "IQ3_S", "3")
    ]


def test_scheduling_of_what_can_be_counted_by_hand() -> None:
    from bench.simulated import Large, Overhead, Phase, simulated

    free = Overhead(0.0, 0.0, 0.0)
    assert simulated(Large("even", [Phase([1.0] * 12, 1, 4)]), 3, free).simulated_s == 4.0
    assert simulated(Large("slots", [Phase([1.0] * 12, 2, 4)]), 3, free).efficiency == 1.0
    assert simulated(Large("few", [Phase([1.0] * 2, 4, 4)]), 4, free).efficiency == 2 / 16
    # the head sends a piece every second: four hosts are no faster than it
    assert (
        simulated(Large("head", [Phase([1.0] * 10, 1, 4)]), 4, Overhead(1.0, 0.0, 5.0)).simulated_s
        == 5 + 10 + 1
    )
    # there and back again, with one piece at hand, is time in which a host waits
    assert simulated(Large("trip", [Phase([1.0] * 3, 1, 1)]), 1, Overhead(0.0, 2.0, 0.0)).simulated_s == 9.0
    # the head's own second goes before each phase; an answer comes from both hosts that take part, and a parcel once
    phases = [Phase([1.0] * 12, 1, 4, alone=1.0, parcel=10, answer=20, most=2)] * 2
    found = simulated(Large("phases", phases, one_crew=True), 3, Overhead(0.0, 0.0, 5.0, 0.1, 0.05, 0.2))
    assert found.simulated_s == 5 + 2 * (1 + 10 * 0.2 + 6 + 20 * 0.1 + 20 * 0.05)
    assert found.efficiency == 2 * 13 / 3 / found.simulated_s
