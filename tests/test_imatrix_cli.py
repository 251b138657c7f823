"""`quantmill imatrix …` in one process: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from quantmill.cli import main
from quantmill.imatrix import store
from quantmill.imatrix.collect import run_batch
from tests.support.measure_models import tiny

DATA = Path(__file__).parent / "data" / "imatrix"
EXAMPLE = Path(__file__).parent.parent / "examples" / "tiny-qwen3-moe"


def quantmill(*arguments: object) -> int:
    return main(["imatrix", *map(str, arguments)])


def test_collecting_needs_no_subcommand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "imatrix.gguf"
    text = EXAMPLE / "evaluation.txt"
    threads = torch.get_num_threads()
    try:
        assert quantmill(EXAMPLE, "-f", text, "-o", output, "-c", 64, "--chunks", 4, "--means", "-t", 1) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr()
    assert "Final estimate: PPL = " in printed.out
    assert "32 tensors, 4 chunks of 64" in printed.out
    assert "below 256 tokens a matrix" in printed.out
    assert "--route-all-experts" in printed.out
    assert "4 of 4 chunks" in printed.err
    matrix = store.load(output)
    assert (matrix.datasets, matrix.chunk_count, matrix.chunk_size) == ((str(text),), 4, 64)
    assert matrix.entries["blk.3.attn_q.weight"].counts.tolist() == [256]
    assert matrix.entries["blk.3.attn_q.weight"].in_sum is not None
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf"]


def test_a_part_belongs_to_one_model_and_one_arithmetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, output, whole = tmp_path / "m.gguf", tmp_path / "im.gguf", tmp_path / "whole.gguf"
    shutil.copy2(tiny("F16"), model)
    asked = [model, "-f", EXAMPLE / "evaluation.txt", "-c", 64, "--chunks", 8, "--batch", 1, "-t", 1]
    assert quantmill(*asked, "-o", whole) == 0
    n_run = 0

    def interrupted_at_the_fifth(*arguments: Any) -> Any:
        nonlocal n_run
        n_run += 1
        if n_run == 5:
            raise KeyboardInterrupt
        return run_batch(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("quantmill.imatrix.collect.run_batch", interrupted_at_the_fifth)
        assert quantmill(*asked, "-o", output) == 130
    partial = tmp_path / "im.gguf.partial.gguf"
    assert capsys.readouterr().err.endswith(f"what was done is in {partial}: go on with --resume\n")
    kept = partial.read_bytes()

    shutil.copyfile(tiny("Q8_0"), model)
    for words in ((), ("--dtype", "bfloat16")):
        assert quantmill(*asked, "-o", output, "--resume", *words) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"error: {partial}: belongs to another run (model, text or options differ); ")
        shutil.copy2(tiny("F16"), model)
    for words in ((), ("--stream",), ("-t", "2", "-ofreq", "0")):
        partial.write_bytes(kept)
        assert quantmill(*asked, "-o", output, "--force", "--resume", *words) == 0
        assert output.read_bytes() == whole.read_bytes()
        assert not partial.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-f", "{tmp}/missing.txt"], "missing.txt: No such file or directory"),
        (["-f", "{tmp}/empty.txt"], "empty.txt: the calibration text is empty"),
        (["-f", "{tmp}/short.txt"], "chunks of 512 need at least 1024"),
        (["-f", "{tmp}/latin.txt"], "is not UTF-8"),
        (["-f", "{tmp}/short.txt", "--chunks", "0"], "--chunks 0"),
        (["-f", "{tmp}/short.txt", "--shrink-experts", "-1"], "--shrink-experts -1"),
        (["-f", "{tmp}/talk.jsonl"], "no chat template"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "short.txt").write_text("A few words.")
    (tmp_path / "latin.txt").write_bytes(b"d\xe9j\xe0 vu")
    (tmp_path / "talk.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}')
    output = tmp_path / "imatrix.gguf"
    code = 2 if message.startswith("--") else 1
    assert quantmill(EXAMPLE, *(part.format(tmp=tmp_path) for part in arguments), "-o", output) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert not output.exists()


def test_models_that_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(EXAMPLE / name)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text(
        '{"model_type": "never_heard_of", "architectures": ["NeverHeardOf"]}'
    )
    for model in (bare, strange, tmp_path / "missing.gguf", DATA / "a.gguf"):
        assert quantmill(model, "-f", EXAMPLE / "evaluation.txt", "-o", tmp_path / "o.gguf") == 1
        printed = capsys.readouterr()
        assert printed.err.startswith("error: "), model
        assert printed.err.count("\n") == 1, printed.err
        assert not (tmp_path / "o.gguf").exists()


def test_statistics_as_table_json_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantmill("stats", DATA / "a.gguf", "-o", tmp_path / "s.csv") == 0
    capsys.readouterr()
    assert quantmill("stats", DATA / "a.gguf", "--json") == 0
    on_stdout = json.loads(capsys.readouterr().out)
    assert quantmill("stats", DATA / "a.gguf", "-o", tmp_path / "s.json") == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = (DATA / "a-gguf-statistics.txt").read_text("utf-8").splitlines()
    theirs = [row.split() for row in expected if len(row.split("\t")) == 13][1:]
    assert [row for row in printed if len(row) == 13 and row[0].isdigit()] == theirs
    record = json.loads((tmp_path / "s.json").read_text())
    assert record == on_stdout
    assert len(record["tensors"]) == 24
    assert [layer["layer"] for layer in record["layers"]] == [0, 1, 2]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text())))
    assert [row["name"] for row in rows] == [row["name"] for row in record["tensors"]]
    assert float(rows[0]["total"]) == record["tensors"][0]["total"]


def test_merge_convert_and_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged, legacy = tmp_path / "ab.gguf", tmp_path / "a.dat"
    assert quantmill("merge", DATA / "a.gguf", DATA / "b.gguf", "-o", merged) == 0
    assert merged.read_bytes() == (DATA / "ab.gguf").read_bytes()
    assert quantmill("convert", DATA / "a.gguf", "-o", legacy) == 0
    assert legacy.read_bytes() == (DATA / "a.dat").read_bytes()
    assert "does not keep counts of single experts" in capsys.readouterr().out
    assert quantmill("diff", DATA / "a.gguf", DATA / "a.gguf", "--json") == 0
    same = json.loads(capsys.readouterr().out)
    assert {row["relative"] for row in same["tensors"]} == {0.0}
    assert quantmill("merge", DATA / "a.gguf", merged, "-o", merged) == 1
    assert "is an input" in capsys.readouterr().err
    assert merged.read_bytes() == (DATA / "ab.gguf").read_bytes()


def test_suggestions_are_called_a_heuristic(capsys: pytest.CaptureFixture[str]) -> None:
    assert quantmill("stats", EXAMPLE / "imatrix.gguf", "--suggest", "--more-type", "Q8_0") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# A heuristic")
    assert "=q8_0\n" in printed
    assert "ffn_gate_inp" not in printed
