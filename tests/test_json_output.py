"""--json: one object on stdout, and no file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantmill import cli
from tests.support.places import COLLECT, EVALUATE, everything, words

FLAGS = [
    "evaluate @q.gguf -f @text.txt --json @new.json",
    "evaluate --base @m.gguf -f @text.txt --csv @q.gguf @q.gguf",
    "evaluate @q.gguf -f @text.txt --json -",
    "evaluate @q.gguf -f @text.txt --json=@new.json",
    "evaluate speed @q.gguf --csv @new.csv",
    "imatrix stats @im.gguf --json @new.json",
    "imatrix stats --csv @new.csv @im.gguf",
    "imatrix diff @im.gguf @im2.gguf --json -",
    "imatrix @m.gguf -f @text.txt --json @new.json",
]


@pytest.mark.parametrize("line", FLAGS)
def test_json_takes_no_file(capsys: pytest.CaptureFixture[str], place: Path, line: str) -> None:
    """`evaluate --json a.gguf b.gguf` used to turn a.gguf into JSON."""
    before = everything(place)
    assert cli.main(words(place, line)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "takes no file: --json prints to standard output, -o" in captured.err
    assert everything(place) == before


def test_json_before_a_model_prints(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    before = everything(place)
    line = "evaluate -f @text.txt --chunks 2 -c 16 -t 1 --json @m.gguf @q.gguf"
    assert cli.main(words(place, line)) == 0
    assert [m["file"]["name"] for m in json.loads(capsys.readouterr().out)["models"]] == ["m", "q"]
    assert everything(place) == before


def test_json_is_one_object_in_one_style(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    lines = [
        "types --json", "devices --json", "quantize --dry-run --json @m.gguf Q8_0", "quantize --json @m.gguf @1 Q8_0",
        "convert --json @hf @2", COLLECT + " -o @3 --json", "imatrix stats @im.gguf --json",
        "imatrix merge @im.gguf @im2.gguf -o @4 --json", "imatrix convert @im.gguf -o @5.dat --json",
        "imatrix diff @im.gguf @im2.gguf --json", EVALUATE + " --json -o @run.json",
        "report @run.json -o @new --json",
    ]  # fmt: skip
    for line in lines:
        assert cli.main(words(place, line)) == 0, line
        out = capsys.readouterr().out
        found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
        assert isinstance(found, dict)
        assert out == json.dumps(found, indent=1) + "\n", line
