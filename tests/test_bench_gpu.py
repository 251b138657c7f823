"""python -m bench.gpu under a pretended device: rows come one by one, failures and the clock stop nothing else."""

import json
import re
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from bench import gpu, gpu_pack, gpu_sections
from bench.metal_model import operations, table
from quantmill.qkernels.engines import Engine, engine_row
from tests.test_guarded import ENGINE, faults, spoiled  # noqa: F401


def rows_of(name: str, folder, capsys, after: str | None = None) -> list[dict]:
    gpu.section(name, gpu.Trial(ENGINE, True, folder), after)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    begun, rows = lines[::2], lines[1::2]
    assert [line["begins"] for line in begun] == [row["what"] for row in rows]
    return rows


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


def test_an_item_that_fails_is_a_row_and_the_next_follows(faults, tmp_path, capsys):  # noqa: F811
    faults.fails = lambda step: RuntimeError("no kernel image\nmore") if step == 1 else None
    first, *rest = rows_of("searches", tmp_path, capsys)
    assert (first["what"], first["ok"]) == ("Q8_0-plain", False)
    assert first["note"] == "RuntimeError: no kernel image"
    assert len(rest) == 4
    assert all(row["ok"] for row in rest)
    assert [row["what"] for row in rows_of("searches", tmp_path, capsys, "Q4_K-weighted")] == [
        "IQ4_XS-plain",
        "IQ4_XS-weighted",
    ]


def test_a_device_that_is_lost_wants_a_new_process(faults, tmp_path, capsys, monkeypatch):  # noqa: F811
    faults.fails = lambda step: RuntimeError("an illegal memory access")
    monkeypatch.setattr(gpu, "_answers", lambda device: False)
    assert not gpu.section("searches", gpu.Trial(ENGINE, True, tmp_path))
    assert len(capsys.readouterr().out.splitlines()) == 2


CHILD = """
import json, os, sys, time
items = ["a", "b", "c", "d"]
after = sys.argv[sys.argv.index("--after") + 1] if "--after" in sys.argv else ""
for item in items[items.index(after) + 1 if after else 0:]:
    print(json.dumps({"begins": item}), flush=True)
    if item == "b":
        sys.stderr.write("Segmentation fault\\n"); sys.stderr.flush(); os._exit(139)
    if item == "d":
        time.sleep(60)
    row = {"section": "x", "what": item, "ok": item != "c", "value": None, "unit": "", "note": ""}
    print(json.dumps(row), flush=True)
    if item == "c":
        sys.exit(3)
"""


def test_processes_that_die_hang_or_lose_the_device(monkeypatch):
    """Each item is a row all the same, and what hangs is ended with all that it has started."""
    child = gpu._Child
    monkeypatch.setattr(
        gpu, "_Child", lambda command, said: child([sys.executable, "-c", CHILD, *command[4:]], said)
    )
    monkeypatch.setattr(gpu, "_SILENT", 5)
    rows = list(gpu._rows("searches", [], time.monotonic() + 100))
    assert [(row.what, row.ok, row.note) for row in rows] == [
        ("a", True, ""),
        ("b", False, "Segmentation fault"),
        ("c", False, ""),
        ("d", False, "no answer for 5 s"),
    ]
    *_, last = gpu._rows("searches", [], time.monotonic() + 2)
    assert (last.ok, last.note) == (None, "cut off: the time is over")


def test_the_clock_stops_what_is_left():
    kept = []
    rows = gpu.look([], 0, lambda rows: kept.append(len(rows)))
    assert {row.section for row in rows} == set(gpu.SECTIONS)
    assert {row.note for row in rows} == {"the time is over"}
    assert kept == list(range(1, len(rows) + 1))


def test_a_child_that_dies_before_its_items_is_a_row(monkeypatch):
    """A process that cannot begin: its section failed, the others are looked at."""
    two = {name: gpu_sections.SECTIONS[name] for name in ("searches", "decoders")}
    monkeypatch.setattr(gpu, "SECTIONS", two)
    rows = gpu.look(["--device", "cuda:99"], 600)
    assert [(row.section, row.what, row.ok) for row in rows] == [
        ("searches", "failed", False),
        ("decoders", "failed", False),
    ]
    assert all("cuda:99" in row.note for row in rows)


def test_without_a_gpu_there_is_nothing_to_look_at(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no GPU to look at" in capsys.readouterr().err


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


def test_the_page_of_apples_gpus_is_of_these_kernels():
    """After a change of programs that is meant: python -m bench.metal_model, behind the page's first line."""
    page = gpu_pack.ROOT / "bench" / "results" / "metal_model.md"
    assert page.read_text("utf-8").splitlines() == ["<!-- python -m bench.metal_model -->", *table()]
