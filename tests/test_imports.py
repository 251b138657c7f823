"""Arrows point one way, and the light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("cli", "driver", "gguf_io", "imatrix", "measure", "qkernels", "quantmill_cli", "recipe")

# Who may import whom, beside themselves.
ARROWS = {
    "qkernels": set(),
    "gguf_io": set(),
    "recipe": {"gguf_io", "qkernels"},
    "imatrix": {"gguf_io", "qkernels", "measure"},
    "measure": {"gguf_io", "qkernels"},
    "driver": {"gguf_io", "imatrix", "qkernels", "recipe"},
    "quantmill_cli": set(PACKAGES) - {"cli"},
    "cli": {"quantmill_cli"},
}


def modules():
    for package in PACKAGES:
        path = ROOT / package
        yield from (
            (package, file) for file in (path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")])
        )


def imported(file):
    """Names of the top-level packages that a file imports anywhere, functions included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0], node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_down(package):
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for owner, file in modules()
        if owner == package
        for name, line in imported(file)
        if name in PACKAGES and name != package and name not in ARROWS[package]
    ]
    assert not wrong


def loaded(statement):
    """The heavy modules that a statement leaves in sys.modules of a fresh interpreter."""
    heavy = {"torch", "triton", "llvmlite", "transformers", "typer", "rich"}
    heavy |= {"huggingface_hub", "safetensors", "tokenizers"}
    code = f"{statement}\nimport sys; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("module", ["qkernels", "gguf_io", "recipe", "imatrix.store", "driver"])
def test_light_modules(module):
    assert loaded(f"import {module}") == []


def test_the_command_line_loads_typer_only():
    assert loaded("import cli") == ["typer"]


def test_quantizing_on_the_cpu_needs_no_torch(tmp_path):
    from tests.measure_models import tiny

    statement = (
        "from pathlib import Path; from driver import Job, run; from recipe import Recipe;"
        f"run(Job({str(tiny('F16'))!r}, Path({str(tmp_path / 'out.gguf')!r}), Recipe('Q4_K_M'), device='cpu'))"
    )
    assert loaded(statement) == ["llvmlite"]
