"""Files of tasks and records of evaluations that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantmill import cli
from quantmill.errors import QuantmillError
from quantmill.measure.errors import MeasureError
from quantmill.measure.task_files import KINDS, read_tasks
from tests.support.measure_models import DATA, EXAMPLE, tiny

TEXT = EXAMPLE / "evaluation.txt"


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_no_tasks(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks"
    for raw in (b"", b"one line\n", b"\xff\xfe\x00", TEXT.read_bytes()[:4000], b"\x05\x00\x00\x00" * 3):
        path.write_bytes(raw)
        with pytest.raises(MeasureError, match=r"tasks"):
            read_tasks(path, kind)  # type: ignore[arg-type]
    lines = tmp_path / "tasks.jsonl"
    for text in ("not json", "[1, 2]", '{"question": 1}', '{"context": "a", "endings": [], "label": 0}'):
        lines.write_text(text)
        with pytest.raises(QuantmillError, match=r"line 1(: not a .* task| is not JSON)"):
            read_tasks(lines, kind)  # type: ignore[arg-type]


def test_truncated_multiple_choice_file(tmp_path: Path) -> None:
    path = tmp_path / "mc.bin"
    raw = (DATA / "mc.bin").read_bytes()
    for end in (3, 100, 300, len(raw) - 2):
        path.write_bytes(raw[:end])
        with pytest.raises(MeasureError, match=r"truncated|not a multiple-choice file"):
            read_tasks(path, "multiple-choice")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', '{"format": 99}'])
def test_records_that_are_none(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    path.write_text(damage)
    assert cli.main(["report", str(path), "-o", str(tmp_path / "out")]) == 1
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_record_with_a_wrong_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    assert (
        cli.main(
            ["evaluate", str(tiny("Q4_0")), "-f", str(TEXT), "-c", "16", "--chunks", "2", "-o", str(path)]
        )
        == 0
    )
    data = json.loads(path.read_text())
    data["models"][0]["ppl"]["value"] = "many"
    path.write_text(json.dumps(data))
    assert cli.main(["report", str(path), "-o", str(tmp_path / "out")]) == 1
    assert "a damaged evaluation record" in capsys.readouterr().err
