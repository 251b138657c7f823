"""What bench.gpu takes along to a machine without a network: this tree, packages, llama.cpp's bytes of hard rows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# Beside the tree, where `pack` puts it and bench.gpu looks for it.
ORACLE = ROOT.parent / "oracle.npz"
_MOST_BYTES = 40 << 20
# Of our dependencies, what a machine with torch, triton, transformers and llvmlite may lack; all small.
_PACKAGES = ("gguf", "typer", "rich", "accelerate", "psutil")
# Of these without what they need, which is torch.
_ALONE = ("accelerate", "psutil")
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
_README = """\
python -m pip install --no-index --find-links packages {packages}
cd quantmill && PYTHONPATH=.. python -m bench.gpu --out ../gpu.json
"""


def _wanted() -> list[str]:
    """The packages with the versions that pyproject.toml asks for."""
    text = (ROOT / "pyproject.toml").read_text()
    return [re.findall(rf'"({package}>=[^"]*)"', text)[0] for package in _PACKAGES]


def oracle_bytes() -> dict[str, np.ndarray]:
    """Type and "weighted" or "plain" → llama.cpp's blocks of the hard rows."""
    from quantmill.qkernels.encoders import encoders
    from quantmill.qkernels.hard_blocks import hard_importance, hard_rows
    from tests.support import oracle

    rows, importance = hard_rows(), hard_importance()
    return {
        f"{type}-{'weighted' if weighted else 'plain'}": oracle.quantize(
            rows, type, importance if weighted else None
        )
        for type, weighted in encoders()
    }


def pack(folder: Path, python: str) -> None:
    """Makes the folder, with packages for a version of Python on x86-64. Raises FileExistsError, or SystemExit where
    it becomes too large."""
    folder.mkdir(parents=True)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        target = folder / "quantmill" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    np.savez_compressed(folder / "oracle.npz", **oracle_bytes())  # type: ignore[arg-type]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder / "packages")]
    there = ["--python-version", python, *(f"--platform={name}" for name in _PLATFORMS)]
    wanted = dict(zip(_PACKAGES, _wanted(), strict=True))
    alone = [wanted.pop(package) for package in _ALONE]
    for what in ([*wanted.values()], ["--no-deps", *alone]):
        subprocess.run([*command, *there, "--only-binary=:all:", *what], check=True)
    for file in (folder / "packages").glob("numpy*"):  # large, and there already
        file.unlink()
    names = " ".join(f"'{line}'" for line in _wanted())
    (folder / "README").write_text(_README.format(packages=names))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > _MOST_BYTES:
        raise SystemExit(f"{folder}: {size >> 20} MiB, and it should be {_MOST_BYTES >> 20} at most")
    print(f"{folder}: {size / 2**20:.1f} MiB")
