"""A run that is stopped at any moment of its own leaves its inputs as they were and no half output."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.measure_models import EXAMPLE, directory, tiny

# Runs the command as `python -m quantmill` does and tells when it has left SIGINT to the system, which it does first:
# Python's own start, which answers SIGINT with a traceback, is over then.
PROGRAM = """
import _signal, os, runpy, sys
def hook(frame, event, called):
    if event == "c_return" and called is _signal.signal:
        sys.setprofile(None)
        os.write(3, b".")
sys.setprofile(hook)
sys.argv = ["quantmill", *sys.argv[1:]]
runpy.run_module("quantmill", run_name="__main__", alter_sys=True)
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
KEPT = (".partial.gguf", ".partial.npz")  # what is finished, for --resume
LITTER = ".quantmill-partial"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are sent as on Unix")


@dataclass(frozen=True)
class Command:
    """arguments: paths are relative to the folder; inputs: names and their sources; outputs: names in the folder."""

    arguments: str
    inputs: dict[str, Path]
    outputs: tuple[str, ...]


@functools.cache
def command(name: str) -> Command:
    text, model = EXAMPLE / "evaluation.txt", tiny("F16")
    if name == "quantize":
        inputs = {"m.gguf": model, "im.gguf": EXAMPLE / "imatrix.gguf"}
        return Command("quantize m.gguf out.gguf IQ3_XXS --imatrix im.gguf", inputs, ("out.gguf",))
    if name == "convert":
        return Command("convert hf out.gguf", {"hf": EXAMPLE}, ("out.gguf",))
    if name == "imatrix":
        line = "imatrix m.gguf -f text -o out.gguf -c 128 --chunks 16 -ofreq 4 -t 1"
        return Command(line, {"m.gguf": model, "text": text}, ("out.gguf",))
    if name == "evaluate":
        line = "evaluate --base m.gguf q.gguf -f text -o out.json -c 128 --chunks 16 -t 1 --save-base base"
        inputs = {"m.gguf": model, "q.gguf": tiny("Q8_0"), "text": text}
        return Command(line, inputs, ("out.json", "base"))
    whole("evaluate")
    record = directory() / "kill-whole-evaluate" / "out.json"
    return Command("report run.json -o page", {"run.json": record}, ("page/index.html", "page/README.md"))


def _prepared(asked: Command, folder: Path) -> list[str]:
    folder.mkdir()
    for name, source in asked.inputs.items():
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
    return asked.arguments.split()


def _run_whole(asked: Command, folder: Path) -> dict[str, Path]:
    line = [sys.executable, "-m", "quantmill", *_prepared(asked, folder)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return {name: folder / name for name in asked.outputs}


@functools.cache
def whole(name: str) -> tuple[dict[str, object], float]:
    """What a run that nobody stops writes, and its seconds."""
    started = time.perf_counter()
    outputs = _run_whole(command(name), directory() / f"kill-whole-{name}")
    seconds = time.perf_counter() - started
    return {output: _content(path) for output, path in outputs.items()}, seconds


def _content(path: Path) -> object:
    """Of a file, what two whole runs have in common."""
    if path.suffix != ".json":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        key: value for key, value in json.loads(path.read_text()).items() if key not in ("date", "command")
    }


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _begin(write: int) -> None:
    """In the new process: its pipe."""
    os.dup2(write, 3)
    let_signals_through()


def let_signals_through() -> None:
    """In a new process: no signal is ignored, as those of a background job are."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def stop(name: str, number: signal.Signals, share: float, folder: Path) -> str:
    """Stop a run after `share` of its usual seconds and look at what it leaves; says how it ended."""
    asked = command(name)
    complete, seconds = whole(name)
    arguments = _prepared(asked, folder)
    before = files_of(folder)
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True,
        pass_fds=(), preexec_fn=functools.partial(_begin, write), close_fds=False,
    ) as process:  # fmt: skip
        os.close(write)
        assert os.read(read, 1) == b"."
        os.close(read)
        time.sleep(share * seconds)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    told = f"{name} {number.name} after {share:.3f} of {seconds:.1f} s: exit {process.returncode}\n{err}"
    assert "Traceback" not in err, told
    assert "ignored" not in err, told
    assert process.returncode in (0, 130, -number), told
    after = files_of(folder)
    assert {file: after.get(file) for file in before} == before, f"{told}\nan input was touched"
    new = {file for file in after if file not in before}
    for output in new & set(asked.outputs):
        assert _content(folder / output) == complete[output], f"{told}\n{output} is not complete"
    if process.returncode == 0:
        assert set(asked.outputs) <= new, told
    left = {file for file in new - set(asked.outputs) if not file.endswith(KEPT)}
    allowed = {file for file in left if file.endswith(LITTER)} if number == signal.SIGKILL else set()
    assert left == allowed, f"{told}\nleft behind: {left}"
    if process.returncode == 130:
        assert err.splitlines()[-1].startswith("error: interrupted; "), told
    return f"{name} {number.name} {process.returncode}"


def _shares(n: int, seed: int) -> list[float]:
    """Moments of a run: half of them anywhere, half of them where outputs are open, near the end."""
    drawn = random.Random(seed)
    return [drawn.uniform(0, 1.05) if i % 2 else drawn.uniform(0.6, 1.0) for i in range(n)]


NAMES = ("quantize", "convert", "imatrix", "evaluate", "report")
FEW = [
    (name, number, share)
    for i, (name, number) in enumerate(
        [(name, number) for name in ("quantize", "convert") for number in SIGNALS]
        + [
            ("imatrix", signal.SIGINT),
            ("evaluate", signal.SIGHUP),
            ("evaluate", signal.SIGINT),
            ("report", signal.SIGTERM),
        ]
    )
    for share in (_shares(12, 5)[i],)
]


@pytest.mark.parametrize(("name", "number", "share"), FEW)
def test_a_run_that_is_stopped(tmp_path: Path, name: str, number: signal.Signals, share: float) -> None:
    stop(name, number, share, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_at_its_first_line(tmp_path: Path, number: signal.Signals) -> None:
    for i in range(4):
        stop("quantize", number, 0.01 * i, tmp_path / str(i))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_hundred_kills(tmp_path: Path, name: str) -> None:
    ends: dict[str, int] = {}
    for i, share in enumerate(_shares(40, NAMES.index(name))):
        end = stop(name, SIGNALS[i % 4], share, tmp_path / str(i))
        shutil.rmtree(tmp_path / str(i))
        ends[end] = ends.get(end, 0) + 1
    print(*(f"{end}: {count}" for end, count in sorted(ends.items())), sep="\n")


def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """`nohup quantmill …` goes on when the terminal is closed."""
    arguments = _prepared(command("quantize"), tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "quantmill", *arguments], cwd=tmp_path / "run", stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, preexec_fn=lambda: (signal.signal(signal.SIGHUP, signal.SIG_IGN), None)[1],
    )  # fmt: skip
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    assert process.returncode == 0
    assert _content(tmp_path / "run" / "out.gguf") == whole("quantize")[0]["out.gguf"]
