"""A folder with one file of each kind that commands read, and what shows that a command left all of it alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from quantmill import cli
from tests.support.measure_models import EXAMPLE, tiny

IMATRIX = EXAMPLE / "imatrix.gguf"
# Short runs, whose outputs stand behind them.
COLLECT = "imatrix @m.gguf -f @text.txt -c 16 --chunks 2 -t 1"
EVALUATE = "evaluate @q.gguf -f @text.txt --chunks 2 -c 16 -t 1"


def words(place: Path, line: str) -> list[str]:
    """A command line, where @ stands for the folder."""
    return line.replace("@", str(place) + os.sep).split()


def furnished(place: Path) -> Path:
    """The folder, with those files in it."""
    shutil.copyfile(tiny("F16"), place / "m.gguf")
    shutil.copyfile(tiny("Q8_0"), place / "q.gguf")
    shutil.copyfile(IMATRIX, place / "im.gguf")
    (place / "recipe").write_text('file_type = "Q8_0"\n')
    (place / "rules").write_text("attn_v=q8_0\n")
    shutil.copytree(EXAMPLE, place / "hf")
    (place / "text.txt").write_text("words " * 6000)
    (place / "record.json").write_text('{"format": 1, "models": []}')
    (place / "table.csv").write_text("name,bytes,bits_per_weight\n")
    (place / "wg.csv").write_text("1,a _ b,c,d,1\n")
    (place / "base.logits").write_bytes(b"_logits_" + bytes(100))
    (place / "page").mkdir()
    (place / "page" / "index.html").write_text("<!doctype html>mine")
    (place / "page" / "README.md").write_text("# mine")
    shutil.copyfile(IMATRIX, place / "im2.gguf")
    (place / "im.gguf.partial.gguf").write_bytes(b"GGUF")
    for name in ("im.html", "im.json"):
        shutil.copyfile(IMATRIX, place / name)
    (place / "notes.txt").write_text("precious\n")
    return place


def everything(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Every file by what changes when it is written, replaced or touched."""
    found = {}
    for path in directory.rglob("*"):
        status = path.stat()
        found[str(path.relative_to(directory))] = status.st_ino, status.st_size, status.st_mtime_ns
    return found


def refused(capsys: pytest.CaptureFixture[str], place: Path, line: str) -> str:
    """The one line with which a command line is refused; nothing may have changed."""
    before = everything(place)
    code = cli.main(words(place, line))
    captured = capsys.readouterr()
    assert code == 1, captured
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert everything(place) == before
    return captured.err
