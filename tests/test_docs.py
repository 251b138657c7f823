"""Every command and program that the README and the documentation show runs as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(sh|bash|python)\n(.*?)^```", re.M | re.S)
# Blocks of `bash` take minutes: pages that have some are run by `make test-all`.
PARAMETERS = [
    pytest.param(page, marks=pytest.mark.slow if "```bash" in page.read_text("utf-8") else (), id=page.stem)
    for page in PAGES
]


@pytest.mark.parametrize("page", PARAMETERS)
def test_what_a_page_shows_runs(page: Path, tmp_path: Path) -> None:
    """The blocks of a page, in their order, in a folder that holds nothing but the examples."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    own = tmp_path / "bin" / "quantmill"
    own.parent.mkdir()
    own.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quantmill "$@"\n')
    own.chmod(0o755)
    for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        command = (
            ["sh", "-ec", f'PATH="{own.parent}:$PATH"\n{text}']
            if kind != "python"
            else [sys.executable, "-c", text]
        )
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-f",
        ROOT / "mkdocs.yml",
        "-d",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        built = tmp_path / ("index.html" if page.stem == "index" else f"{page.stem}/index.html")
        assert "<h1" in built.read_text(encoding="utf-8")
