"""Arrows point one way, and the light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Who may import whom, beside themselves and the root of errors.
_LEAVES = {"gguf_io", "qkernels"}
_MIDDLE = {"calibrate", "imatrix", "measure", "recipe"}
ARROWS = {
    "errors": set(),
    "escape": set(),
    "plain_json": set(),
    "qkernels": set(),
    "gguf_io": set(),
    "models": _LEAVES,
    "recipe": _LEAVES,
    "calibrate": {"models", *_LEAVES},
    "imatrix": {"models", *_LEAVES},
    "measure": {"models", *_LEAVES},
    "jobs": {"models", *_LEAVES, *_MIDDLE},
    "commands": {"jobs", "models", *_LEAVES, *_MIDDLE},
    "cli": {"commands", "jobs", "models", *_LEAVES, *_MIDDLE},
    "api": {"jobs", "models", *_LEAVES, *_MIDDLE},
    "api_models": {"api", "jobs", "models", *_LEAVES, *_MIDDLE},
    "__init__": {"api", "api_models", "qkernels"},
    "__main__": {"cli"},
}
# The folders and files of the root are the package `quantmill`; under their bare names they would collide with others.
BARE = set(ARROWS) - {"__init__", "__main__"}


def files(owner):
    path = ROOT / owner
    return path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]


def imported(file):
    """(dotted name, line) of all that a file imports anywhere, functions included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if node.module == "quantmill":
                yield from ((f"quantmill.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module or "", node.lineno


@pytest.mark.parametrize("owner", ARROWS)
def test_arrows_point_down(owner):
    allowed = {owner, "errors", "escape", "plain_json", "__version__", *ARROWS[owner]}
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files(owner)
        for name, line in imported(file)
        if name.startswith("quantmill.") and name.split(".")[1] not in allowed
    ]
    assert not wrong


def test_every_folder_of_code_has_its_arrows():
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests", "bench", "examples"}
    assert folders | {path.stem for path in ROOT.glob("*.py")} == set(ARROWS)


def test_nothing_is_imported_under_its_bare_name():
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for owner in (*ARROWS, "tests", "bench")
        for file in files(owner)
        for name, line in imported(file)
        if name.split(".")[0] in BARE
    ]
    assert not wrong


def loaded(statement, more=()):
    """The heavy modules that a statement leaves in sys.modules of a fresh interpreter. more: which count, too."""
    heavy = {"torch", "triton", "llvmlite", "transformers", "typer", "rich"}
    heavy |= {"huggingface_hub", "safetensors", "tokenizers", *more}
    code = f"{statement}\nimport sys; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.split()


LIGHT = ["qkernels", "gguf_io", "recipe", "imatrix.store", "jobs.quantize"]
LIGHT += ["jobs.report", "jobs.speed", "jobs.merge", "jobs.statistics"]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules(module):
    assert loaded(f"import quantmill.{module}") == []


def test_the_command_line_loads_typer_only():
    assert loaded("import quantmill.cli") == ["typer"]


def test_a_plan_of_a_gguf_needs_no_numpy(tmp_path):
    """What `quantmill quantize --dry-run` does is there at once."""
    from tests.support.measure_models import tiny

    words = ["quantize", "--dry-run", str(tiny("F16")), str(tmp_path / "out.gguf"), "Q4_K_M"]
    statement = (
        "import contextlib, io; from quantmill import cli\n"
        f"with contextlib.redirect_stdout(io.StringIO()): assert cli.main({words!r}) == 0"
    )
    assert loaded(statement, ("numpy", "gguf", "concurrent.futures", "hashlib", "tomllib")) == ["typer"]


def test_quantizing_on_the_cpu_needs_no_torch(tmp_path):
    from tests.support.measure_models import tiny

    statement = (
        "from pathlib import Path; from quantmill.jobs.quantize import Job, run; from quantmill.recipe import Recipe;"
        f"run(Job({str(tiny('F16'))!r}, Path({str(tmp_path / 'out.gguf')!r}), Recipe('Q4_K_M'), device='cpu'));"
        f"again = Recipe('Q8_0', allow_requantize=True);"
        f"run(Job({str(tmp_path / 'out.gguf')!r}, Path({str(tmp_path / 'again.gguf')!r}), again, device='cpu'))"
    )
    of_others = ("guarded", "samples", "trust", "programs.grid", "programs.codebook", "decode.grid")
    ours = [f"quantmill.qkernels.{name}" for name in of_others]
    assert loaded(statement, (*ours, "quantmill.jobs.edited", "quantmill.imatrix.store")) == ["llvmlite"]


def dotted(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def needed_by(file, names):
    """Those modules of ours that a file imports anywhere but for type checking."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quantmill."):
            module = node.module.removeprefix("quantmill.")
            yield from {f"{module}.{alias.name}" for alias in node.names} & names or {module} & names


def circles(needs):
    """What is left of a graph when all that needs nothing more has been taken away, again and again."""
    while free := {name for name, others in needs.items() if not others & set(needs)}:
        needs = {name: others for name, others in needs.items() if name not in free}
    return {name: others & set(needs) for name, others in needs.items()}


def test_no_two_modules_need_each_other():
    """Not even by imports inside functions: each file can be read before those that use it."""
    modules = {dotted(p): p for owner in ARROWS for p in files(owner) if p.name != "__init__.py"}
    needs = {name: set(needed_by(path, set(modules))) for name, path in modules.items()}
    assert "jobs.line" in needs["jobs.quantize"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == {"a": {"b"}, "b": {"c"}, "c": {"b"}}
    assert not circles(needs)
