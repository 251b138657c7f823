"""Triton's interpreter, which must be chosen before triton is imported: in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import data_kinds


def case_id(case: tuple[str, bool]) -> str:
    """What a type with or without importance is called, in tests and among results."""
    return f"{case[0]}-{'weighted' if case[1] else 'plain'}"


def require_triton() -> None:
    """Skips where there is none: it is made for Linux."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")


def interpret(
    cases: list[tuple[str, bool]], folder: Path, rows: np.ndarray, search: str = "default"
) -> dict[str, np.ndarray]:
    """What the kernels of each case make of rows f32 [n_rows, 512], with importance of the kind "zeros"."""
    require_triton()
    given, results = folder / "rows.npz", folder / "results.npz"
    np.savez(given, rows=rows, importance=data_kinds.importance("zeros", 512))
    script = Path(__file__).parent / "interpret_triton.py"
    command = [sys.executable, str(script), str(given), str(results), json.dumps(cases), search]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(results) as stored:
        return dict(stored)
