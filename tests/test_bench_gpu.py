"""python -m bench.gpu under a pretended device: rows come one by one, failures and the clock stop nothing else."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from bench import gpu, gpu_pack
from bench.metal_model import operations
from quantmill.qkernels.engines import Engine, engine_row
from tests.test_guarded import ENGINE, faults, spoiled  # noqa: F401


def rows_of(name: str, folder, capsys) -> list[dict]:
    gpu.section(name, gpu.Trial(ENGINE, True, folder))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_searches_and_decoders(faults, tmp_path, capsys):  # noqa: F811
    found = rows_of("searches", tmp_path, capsys)
    cases = ["Q8_0-plain", "Q4_K-plain", "Q4_K-weighted", "IQ4_XS-plain", "IQ4_XS-weighted"]
    assert [row["what"] for row in found] == cases
    assert all(row["ok"] and "not those of the CPU engine" in row["note"] for row in found)
    assert all(row["ok"] for row in rows_of("decoders", tmp_path, capsys))
    rng = np.random.default_rng(0)
    faults.wrong = lambda blocks: spoiled(blocks, 1, rng) if blocks.shape[1] == 32 * 34 else blocks
    first, *rest = rows_of("searches", tmp_path, capsys)
    assert first["ok"] is False
    assert first["note"].startswith("256 of 256 blocks")
    assert all(row["ok"] for row in rest)


def test_a_section_that_fails_is_a_row(faults, tmp_path, capsys):  # noqa: F811
    faults.fails = lambda step: RuntimeError("no kernel image\nmore")
    (row,) = rows_of("searches", tmp_path, capsys)
    assert (row["what"], row["ok"], row["note"]) == ("failed", False, "RuntimeError: no kernel image")


def test_the_clock_stops_what_is_left(monkeypatch):
    rows = gpu.look([], 0)
    assert {row.section for row in rows} == set(gpu.SECTIONS)
    assert {row.note for row in rows} == {"the time is over"}


def test_a_child_that_dies_is_a_row(monkeypatch):
    """A process that a driver takes down: its section failed, the others are looked at."""
    monkeypatch.setattr(gpu, "SECTIONS", {"searches": gpu.searches, "decoders": gpu.decoders})
    rows = gpu.look(["--device", "cuda:99"], 600)
    assert [(row.section, row.what, row.ok) for row in rows] == [
        ("searches", "failed", False),
        ("decoders", "failed", False),
    ]
    assert all("cuda:99" in row.note for row in rows)


def test_what_is_taken_along_is_found_again(monkeypatch, tmp_path):
    assert gpu_pack.ORACLE.parent == gpu_pack.ROOT.parent
    with pytest.raises(FileExistsError):
        gpu_pack.pack(tmp_path, "3.12")


def test_speeds_of_an_engine_that_does_not_serve_the_cpu(faults, monkeypatch, tmp_path, capsys):  # noqa: F811
    """As Triton's interpreter, which is tried on it."""
    monkeypatch.setattr(Engine, "row", property(lambda engine: replace(engine_row(engine.name), serves={})))
    monkeypatch.setattr("quantmill.jobs.check_devices._PROBE_BYTES", 1 << 20)
    *_, row = rows_of("speeds", tmp_path, capsys)
    assert (row["what"], row["ok"], row["unit"]) == ("Q8_0", True, "Mweights/s")
    assert row["value"] > 0
    assert gpu._said(gpu.Row(**row)).startswith("Q8_0, right, ")


def test_packages_are_taken_along_in_the_versions_that_we_ask_for():
    wanted = gpu_pack._wanted()
    assert [re.match(r"\w+", line)[0] for line in wanted] == list(gpu_pack._PACKAGES)
    assert "<" in wanted[1]  # typer's next release would bring pydantic


def test_operations_are_counted_by_loops():
    text = """\
    float total_1;
    total_1 = 0.0f;
    for (int i_2 = 0; i_2 < 8; ++i_2) {
        const float v_3 = x_here[offset(i_2, n)];
        total_1 = (total_1 + (v_3 * v_3));
    }
"""
    # eight rounds: two of the loop, an offset and a load, an addition and a multiplication
    assert operations(text, lambda: 0.0) == 8 * (2 + 2 + 2)
