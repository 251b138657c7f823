"""The benchmark of everything, and whole commands of two commits beside each other."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from bench import all as everything
from bench import commands, process

_FAKE = """
import pathlib, sys
words = sys.argv[1:]
if "fail" in words:
    sys.exit("Q8_0: 3 of 32 blocks differ")
out = pathlib.Path(words[words.index("--out") + 1])
out.with_name(out.name + ".md").write_text("# Title\\n\\ncircumstances\\n\\n| type |\\n|---|\\n| Q8_0 |\\n")
"""


def test_a_comparison_that_fails_is_said_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "fake.py").write_text(_FAKE, encoding="utf-8")
    work, out = tmp_path / "work", tmp_path / "page.md"
    work.mkdir()
    monkeypatch.setattr(everything, "_ROOT", tmp_path)
    monkeypatch.setattr(everything, "made", lambda options: {})
    wanted = [
        everything.Comparison("bad", "fake", ("fail",)),
        everything.Comparison("good", "fake", ("/x/y",)),
    ]
    monkeypatch.setattr(everything, "comparisons", lambda options, files: wanted)
    where = ["--llama", str(tmp_path), "--work", str(work), "--out", str(out)]
    assert everything.main(where) == 1
    page = out.read_text(encoding="utf-8")
    assert "## bad\n\nFailed with 1: Q8_0: 3 of 32 blocks differ" in page
    assert "| type |\n|---|\n| Q8_0 |" in page
    assert "python -m bench.fake y --out good" in page
    assert "circumstances" not in page
    assert everything.main([*where, "--only", "good"]) == 0
    assert "## bad" not in out.read_text(encoding="utf-8")
    capsys.readouterr()
    assert everything.main([*where, "--only", "goood"]) == 2
    assert "not among bad, good" in capsys.readouterr().err


def test_every_comparison_is_a_module_that_takes_its_words(tmp_path: Path) -> None:
    where = ["--llama", str(tmp_path), "--work", str(tmp_path), "--base", "HEAD~1"]
    files = {
        name: tmp_path / name
        for name in ("f16", "text", "imatrix", "Q8_0", "Q4_K_M", "Q6_K", "IQ3_S", "large")
    }
    for quick in ([], ["--quick"]):
        found = everything.comparisons(everything._options([*where, *quick]), files)
        assert len({one.name for one in found}) == len(found)
        for one in found:
            module = importlib.import_module(f"bench.{one.module}")
            assert module._options([*one.words, "--out", "x"]).out == Path("x")


@pytest.mark.parametrize("same", [True, False])
def test_two_commits_take_turns_and_must_write_the_same(
    same: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    turns: list[tuple[str, str]] = []

    def run(tree: Path, command: commands.Command, output: Path) -> process.Usage:
        turns.append((command.name, tree.parent.name))
        output.write_text("file" if same else tree.parent.name, encoding="utf-8")
        return process.Usage(wall_s=2.0, cpu_s=len(turns), peak_bytes=0, own_bytes=None, waiting=None)

    monkeypatch.setattr(commands, "run", run)
    model, text, prefix = tmp_path / "m.gguf", tmp_path / "t.txt", tmp_path / "out" / "result"
    arguments = [
        str(model),
        str(text),
        "--base",
        "HEAD",
        "--rounds",
        "2",
        "--types",
        "Q8_0",
        "--out",
        str(prefix),
    ]
    assert commands.main(arguments) == (0 if same else 1)
    printed = capsys.readouterr()
    if not same:
        assert printed.out == ""
        assert "quantize Q8_0: the two commits write different files" in printed.err
        return
    version = [tree for name, tree in turns if name == "--version"]
    assert version == version[:2] * 3
    assert version[0] != version[1]
    rows = json.loads(prefix.with_suffix(".json").read_text(encoding="utf-8"))["rows"]
    assert [row["command"] for row in rows][:4] == [
        "--version",
        "--help",
        "quantize --dry-run",
        "quantize Q8_0",
    ]
    for row in rows:
        assert row["base_cpu_s"] == row["cpu_s"] + 1
        assert row["ratio"] > 1
