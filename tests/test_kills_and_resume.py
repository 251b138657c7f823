"""Long work that is stopped again and again goes on each time, to the bytes of a run that nobody stops."""

from __future__ import annotations

import functools
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
from tests.test_kills import LITTER, SIGNALS, files_of, let_signals_through

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as on Unix")

CALIBRATION, EVALUATION = EXAMPLE / "calibration.txt", EXAMPLE / "evaluation.txt"
# folder-relative: what is asked, what it writes, where it keeps what is finished
COMMANDS = {
    "imatrix": (
        "imatrix m.gguf -f text -o out.gguf -c 128 --chunks 32 --batch 1 -ofreq 4 -t 1 --resume",
        ("out.gguf",),
        "out.gguf.partial.gguf",
    ),
    "polish": (
        "polish q.gguf --base m.gguf --calibration text --chunks 10 -o out.gguf -t 1 --resume",
        ("out.gguf",),
        "out.gguf.quantmill-polish",
    ),
    "compensate": (
        "quantize --compensate --calibration text --chunks 4 --effort fast --threads 1 --resume m.gguf out.gguf Q4_0",
        ("out.gguf",),
        "out.gguf.quantmill-layers",
    ),
    "squeeze": (
        "squeeze m.gguf --types Q4_0 --plain --calibration text --evaluation judge --chunks 2 --imatrix-chunks 2 "
        "--no-speed --threads 1 -o out",
        ("out/m-Q4_0.gguf",),
        "out",
    ),
}


@dataclass
class Place:
    """A folder with a command's inputs, and what its runs have done so far."""

    name: str
    folder: Path
    killed: bool = False

    def __post_init__(self) -> None:
        arguments, self.outputs, self.kept = COMMANDS[self.name]
        self.command = [sys.executable, "-m", "quantmill", *arguments.split()]
        self.folder.mkdir()
        inputs = {"m.gguf": tiny("F16"), "q.gguf": tiny("Q4_0"), "text": CALIBRATION, "judge": EVALUATION}
        for name, source in inputs.items():
            shutil.copyfile(source, self.folder / name)
        self.before = files_of(self.folder)

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=self.folder,
            preexec_fn=let_signals_through,
        )  # fmt: skip

    def written(self) -> dict[str, str]:
        found = files_of(self.folder)
        return {name: found[name] for name in self.outputs if name in found}

    def stop(self, number: signal.Signals, after: float) -> int:
        """Run until then, send the signal, look at what is left; the exit code."""
        process = self.start()
        try:
            _, told = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            self.killed |= number == signal.SIGKILL
            _, told = process.communicate(timeout=300)
        assert "Traceback" not in told, told
        assert process.returncode in (0, 130, -number), f"{number} after {after:.1f} s: {told}"
        left = files_of(self.folder)
        assert {name: left.get(name) for name in self.before} == self.before, "an input was touched"
        complete = whole(self.name)[0]
        assert self.written().items() <= complete.items(), f"a half output after {number}: {told}"
        others = {name for name in left if name not in self.before and name not in self.outputs}
        others = {name for name in others if name != self.kept and not name.startswith(f"{self.kept}/")}
        assert not others or (self.killed and all(name.endswith(LITTER) for name in others)), others
        if process.returncode == 130 and "go on" in told:
            assert told.splitlines()[-1].startswith("error: interrupted; "), told
        return process.returncode


@functools.cache
def whole(name: str) -> tuple[dict[str, str], float]:
    """What a run that nobody stops writes, and its seconds."""
    place = Place(name, directory() / f"kept-whole-{name}")
    started = time.monotonic()
    process = place.start()
    _, told = process.communicate()
    assert process.returncode == 0, f"exit {process.returncode}: {told}"
    return place.written(), time.monotonic() - started


def stopped_again_and_again(name: str, folder: Path, n_kills: int, seed: int) -> None:
    complete, seconds = whole(name)
    moments, place, ends = random.Random(seed), Place(name, folder / "0"), []
    for i in range(n_kills):
        ends.append(place.stop(SIGNALS[i % 4], moments.uniform(0.05, 0.6) * seconds))
        if ends[-1] == 0:  # done: from the beginning again
            assert place.written() == complete
            place = Place(name, folder / str(i + 1))
    process = place.start()
    _, told = process.communicate()
    assert process.returncode == 0, f"exit {process.returncode}: {told}"
    assert place.written() == complete
    print(name, ends)


@pytest.mark.parametrize("name", ["compensate"])
def test_stopped_by_each_signal(tmp_path: Path, name: str) -> None:
    stopped_again_and_again(name, tmp_path, 4, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_stopped_forty_times(tmp_path: Path, name: str) -> None:
    stopped_again_and_again(name, tmp_path, 40, 1)
