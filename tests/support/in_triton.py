"""Triton's interpreter, which must be chosen before triton is imported: in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tests.support import data_kinds

_ROOT = Path(__file__).parent.parent.parent


def case_id(case: tuple[str, bool]) -> str:
    """What a type with or without importance is called, in tests and among results."""
    return f"{case[0]}-{'weighted' if case[1] else 'plain'}"


def require_triton() -> None:
    """Skips where there is none: it is made for Linux."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")


def interpreted(*arguments: str) -> str:
    """What `python ARGUMENTS…` says under the interpreter, at the root of the tree.

    Skips where this Triton's makes a number of an array of one element, which NumPy refuses since 2.4."""
    require_triton()
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=_ROOT, capture_output=True, text=True, check=False
    )
    if "int(self.handle.data)" in done.stderr and "only 0-dimensional arrays" in done.stderr:
        pytest.skip(f"the interpreter of Triton {version('triton')} wants a NumPy before 2.4")
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def interpret(
    cases: list[tuple[str, bool]], folder: Path, rows: np.ndarray, search: str = "default"
) -> dict[str, np.ndarray]:
    """What the kernels of each case make of rows f32 [n_rows, 512], with importance of the kind "zeros"."""
    given, results = folder / "rows.npz", folder / "results.npz"
    np.savez(given, rows=rows, importance=data_kinds.importance("zeros", 512))
    script = Path(__file__).parent / "interpret_triton.py"
    interpreted(str(script), str(given), str(results), json.dumps(cases), search)
    with np.load(results) as stored:
        return dict(stored)
