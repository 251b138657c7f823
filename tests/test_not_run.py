"""A class that is converted and not run: every job that would run it says so in one line, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantmill.cli import app
from tests.support.convert_models import write_f32, write_model

TEXT = "words to run a model on, again and again. " * 3000
JOBS = {
    "imatrix": ["imatrix", "MODEL", "-f", "TEXT", "-o", "OUT/importance.gguf"],
    "evaluate": ["evaluate", "MODEL", "--text", "TEXT", "-o", "OUT/report.json"],
    "compensate": ["quantize", "MODEL", "OUT/out.gguf", "Q4_0", "--compensate", "--calibration", "TEXT"],
    "compensate, dry": [
        *("quantize", "MODEL", "OUT/out.gguf", "Q4_0", "--compensate", "--calibration", "TEXT", "--dry-run"),
    ],
    "then polish": ["quantize", "MODEL", "OUT/out.gguf", "Q4_0", "--polish", "--calibration", "TEXT"],
    "polish": ["polish", "MODEL", "--base", "MODEL", "--calibration", "TEXT", "-o", "OUT/out.gguf"],
    "for a size": ["quantize", "MODEL", "OUT/out.gguf", "--target-size", "1M", "--calibration", "TEXT"],
    "prune": [
        *("quantize", "MODEL", "OUT/out.gguf", "Q4_0", "--prune-layers", "auto:1", "--calibration", "TEXT"),
    ],
    "squeeze": ["squeeze", "MODEL", "-o", "OUT", "--types", "Q4_0", "--calibration", "TEXT"],
    "squeeze, dry": [
        "squeeze",
        "MODEL",
        "-o",
        "OUT",
        "--types",
        "Q4_0",
        "--calibration",
        "TEXT",
        "--dry-run",
    ],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("models")
    directory = write_model("muse-glimmer", made / "model")
    return {"directory": directory, "GGUF": write_f32(directory, made / "model.gguf")}


@pytest.mark.parametrize(
    ("job", "form"),
    [
        pytest.param(job, form, marks=[] if form == "GGUF" or job == "squeeze" else pytest.mark.slow)
        for job in JOBS
        for form in ("directory", "GGUF")
    ],
)
def test_it_is_said_before_the_work(job: str, form: str, models: dict[str, Path], tmp_path: Path) -> None:
    out, text = tmp_path / "out", tmp_path / "text.txt"
    out.mkdir()
    text.write_text(TEXT)
    words = [
        word.replace("MODEL", str(models[form])).replace("TEXT", str(text)).replace("OUT", str(out))
        for word in JOBS[job]
    ]
    found = CliRunner().invoke(app, words)
    said = found.stderr.strip().splitlines()
    assert found.exit_code == 1, found.output
    assert "cannot run" in said[-1]
    assert "`quantmill quantize` takes it without these options" in said[-1]
    assert "Traceback" not in found.output
    assert list(out.iterdir()) == []
