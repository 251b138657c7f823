"""The example model, polished: what tests of polish start from."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

from quantmill.imatrix.text import Text
from quantmill.jobs.polish import Job, run
from tests.support.measure_models import EXAMPLE, directory, tiny

TEXT = EXAMPLE / "calibration.txt"
CHUNKS = 14


def job(output: Path, quant: Path | None = None, **settings) -> Job:
    return Job(quant or tiny("Q4_0"), EXAMPLE, (Text(TEXT),), output, n_chunks=CHUNKS, threads=2, **settings)


@functools.cache
def polished() -> Path:
    """The example in Q4_0, polished once a session."""
    path = directory() / "polished.gguf"
    assert run(job(path)).helped
    return path


def quantmill(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "quantmill", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def command(output: Path, *more: object) -> list[object]:
    files = ["--base", EXAMPLE, "--calibration", TEXT, "--chunks", CHUNKS, "--threads", 2]
    return ["polish", tiny("Q4_0"), *files, "-o", output, *more]
