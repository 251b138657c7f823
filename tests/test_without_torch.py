"""The installation without extras: what needs an optional package says in one line which `pip install` brings it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.measure_models import EXAMPLE, tiny

ROOT = Path(__file__).parent.parent
HIDDEN = (
    "torch",
    "transformers",
    "triton",
    "accelerate",
    "matplotlib",
    "xllamacpp",
    "lm_eval",
    "sentencepiece",
)
TEXT = str(EXAMPLE / "evaluation.txt")
MATRIX = str(EXAMPLE / "imatrix.gguf")
NEEDY = {
    "models": [
        ["imatrix", "{q8}", "-f", TEXT, "-o", "{out}/x.gguf"],
        ["evaluate", "{q8}", "-f", TEXT],
        ["evaluate", "--base", "{q8}", "-f", TEXT, "{q8}", "-o", "{out}/x.json"],
        ["polish", "{q8}", "--base", "{q8}", "--calibration", TEXT, "-o", "{out}/x.gguf"],
        [
            "quantize",
            "--compensate",
            "--calibration",
            TEXT,
            "{q8}",
            "{out}/x.gguf",
            "Q4_K_M",
            "--allow-requantize",
        ],
    ],
    "gpu": [["quantize", "--device", "cuda", "{q8}", "{out}/x.gguf", "COPY"]],
    "report": [["imatrix", "stats", MATRIX, "--plot", "{out}/x.png"]],
    "speed": [["evaluate", "speed", "{q8}"]],
}
FREE = [
    ["quantize", "--imatrix", MATRIX, str(EXAMPLE), "{out}/a.gguf", "Q4_K_M"],
    ["quantize", "--allow-requantize", "{q8}", "{out}/b.gguf", "Q4_K_M"],
    ["quantize", "--prune-experts", "2", str(EXAMPLE), "{out}/f.gguf", "COPY"],
    ["convert", str(EXAMPLE), "{out}/c.gguf", "--type", "bf16"],
    ["imatrix", "stats", MATRIX, "--plot", "{out}/d.html"],
    ["imatrix", "merge", MATRIX, MATRIX, "-o", "{out}/e.gguf"],
    ["report", "{record}", "-o", "{out}/page"],
    ["recipe", "{q8}"],
    ["devices"],
    ["types"],
    ["cache"],
]
PROGRAM = """
import contextlib, io, json, sys
hidden, calls = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(hidden))  # None: as if it were not installed
from quantmill import cli
found = []
for words in calls:
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = cli.main(words)
    found.append((code, said.getvalue()))
print(json.dumps(found))
"""


def calls(words_of_all, places):
    """(exit code, stderr) of each call, in one process in which the packages are missing."""
    filled = [[word.format(**places) for word in words] for words in words_of_all]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([HIDDEN, filled])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "/nowhere", "HOME": places["out"], "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def places(tmp_path):
    from quantmill.measure.record import ModelResult, Run, describe, to_json

    record = Run("0", "quantmill evaluate x", "now", "m", "cpu", (ModelResult(describe(tiny("Q8_0"))),))
    (tmp_path / "run.json").write_text(to_json(record))
    return {"q8": str(tiny("Q8_0")), "out": str(tmp_path), "record": str(tmp_path / "run.json")}


def test_what_needs_a_package_names_the_pip_install(places, tmp_path):
    wanted = [(extra, words) for extra, all_words in NEEDY.items() for words in all_words]
    found = calls([words for _, words in wanted], places)
    for (extra, words), (code, err) in zip(wanted, found, strict=True):
        assert code == 1, (words, err)
        last = err.splitlines()[-1]
        assert last.startswith("error: "), (words, err)
        assert f"pip install 'quantmill[{extra}]'" in last, (words, err)
        assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_all_else_works_without(places):
    found = calls(FREE, places)
    assert [code for code, _ in found] == [0] * len(FREE), [err for code, err in found if code]


def test_an_unknown_missing_module_is_a_bug_and_stays_one():
    from quantmill.errors import MissingPackageError, explained_imports

    with pytest.raises(ModuleNotFoundError, match="no_such_module"), explained_imports():
        import no_such_module  # noqa: F401
    with pytest.raises(MissingPackageError, match=r"pip install 'quantmill\[speed\]'"), explained_imports():
        raise ModuleNotFoundError("x", name="xllamacpp.server")


def test_the_extras_are_those_of_the_project():
    """Each package stands in the extra that the message names."""
    from quantmill.errors import EXTRAS

    text = (ROOT / "pyproject.toml").read_text()
    names = {"google": "protobuf", "lm_eval": "lm-eval"}
    for package, extra in EXTRAS.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"{extra} = [")]
        assert f'"{names.get(package, package)}' in line
