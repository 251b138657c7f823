"""Tokens per second of llama.cpp on a GGUF: by a llama-bench binary, or in a child process by xllamacpp.

A child process, because a kernel that the machine cannot run kills its process, and the others still want to be
measured.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from quantmill.measure.errors import MeasureError


@dataclass(frozen=True)
class SpeedTest:
    """n_prompt tokens read at once, then n_gen generated one by one."""

    n_prompt: int
    n_gen: int

    @property
    def name(self) -> str:
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        return "+".join([*parts, f"tg{self.n_gen}"] if self.n_gen else parts)


# What model cards quote.
CARD_TESTS = (SpeedTest(512, 0), SpeedTest(0, 128), SpeedTest(1024, 1024))


def parse_tests(text: str) -> tuple[SpeedTest, ...]:
    """Tests of "pp512,tg128,pp1024+tg1024". Raises MeasureError for anything else."""
    out = []
    for name in text.split(","):
        match = re.fullmatch(r"(?:pp(\d+))?\+?(?:tg(\d+))?", name.strip())
        test = SpeedTest(int(match[1] or 0), int(match[2] or 0)) if match else SpeedTest(0, 0)
        if test.name != name.strip() or not test.name:
            raise MeasureError(f"speed test {name.strip()!r}: write pp512, tg128 or pp1024+tg1024")
        out.append(test)
    return tuple(out)


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one test: mean and standard deviation over `runs`."""

    test: str
    mean: float
    sd: float
    runs: int


@dataclass(frozen=True)
class SpeedOptions:
    """repack: let llama.cpp rearrange weights for the CPU. bench: a llama-bench binary; None: look for one on the
    path, then for xllamacpp."""

    tests: tuple[SpeedTest, ...] = CARD_TESTS
    repeats: int = 5
    threads: int | None = None
    repack: bool = True
    bench: Path | None = None


def tool(options: SpeedOptions) -> str:
    """Path of llama-bench, or "xllamacpp". Raises MeasureError when neither is there."""
    if options.bench is not None:
        if not options.bench.is_file():
            raise MeasureError(f"{options.bench}: no such llama-bench binary")
        return str(options.bench)
    found = shutil.which("llama-bench")
    if found:
        return found
    if find_spec("xllamacpp") is None:
        raise MeasureError("speed needs llama-bench on the path or: pip install 'quantmill[speed]'")
    return "xllamacpp"


def measure_speed(path: Path, options: SpeedOptions) -> tuple[Speed, ...]:
    """All tests of one GGUF, in order. Raises MeasureError with llama.cpp's last words when it fails."""
    for flag, value in (("--repeats", options.repeats), ("--threads", options.threads)):
        if value is not None and value < 1:
            raise MeasureError(f"{flag} {value}: must be at least 1")
    if not path.is_file():
        raise MeasureError(f"{path}: no such file; speed is measured on GGUF files")
    name = tool(options)
    return _by_xllamacpp(path, options) if name == "xllamacpp" else _by_bench(name, path, options)


def _by_bench(binary: str, path: Path, options: SpeedOptions) -> tuple[Speed, ...]:
    command = [binary, "-m", str(path), "-r", str(options.repeats), "-o", "json"]
    if options.threads is not None:
        command += ["-t", str(options.threads)]
    if not options.repack:
        command += ["--repack", "0"]
    prompts = [t for t in options.tests if not t.n_gen]
    generations = [t for t in options.tests if not t.n_prompt]
    both = [t for t in options.tests if t.n_prompt and t.n_gen]
    command += ["-p", ",".join(str(t.n_prompt) for t in prompts) or "0"]
    command += ["-n", ",".join(str(t.n_gen) for t in generations) or "0"]
    for test in both:
        command += ["-pg", f"{test.n_prompt},{test.n_gen}"]
    rows = {(row["n_prompt"], row["n_gen"]): row for row in json.loads(_run(command, path))}
    out = []
    for test in options.tests:
        row = rows[test.n_prompt, test.n_gen]
        out.append(Speed(test.name, row["avg_ts"], row["stddev_ts"], options.repeats))
    return tuple(out)


def _by_xllamacpp(path: Path, options: SpeedOptions) -> tuple[Speed, ...]:
    job = {
        "path": str(path),
        "tests": [[t.n_prompt, t.n_gen] for t in options.tests],
        "repeats": options.repeats,
        "threads": options.threads,
        "repack": options.repack,
    }
    worker = Path(__file__).with_name("speed_worker.py")
    lines = _run([sys.executable, str(worker), json.dumps(job)], path).splitlines()
    out = []
    for test, runs in zip(options.tests, json.loads(lines[-1]), strict=True):
        rates = [tokens_per_second(test, *run) for run in runs]
        sd = statistics.stdev(rates) if len(rates) > 1 else 0.0
        out.append(Speed(test.name, statistics.mean(rates), sd, len(rates)))
    return tuple(out)


def _run(command: Sequence[str], path: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        of_amx = "on machines with AMX, --no-repack may help" if name in ("SIGILL", "SIGSEGV") else ""
        hint = of_amx or "it is a fault of this build; --bench takes another one's llama-bench"
        raise MeasureError(f"{path}: llama.cpp was killed by {name}; {hint}")
    words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = [
        line for line in words if line.lower().startswith("error")
    ] or words  # before what it says of its end
    raise MeasureError(f"{path}: llama.cpp failed ({said[-1] if said else 'without a word'})")


def tokens_per_second(test: SpeedTest, prompt_ms: float, predicted_ms: float) -> float:
    """llama-bench's rate from a server's timings: the first generated token falls out of the prompt."""
    decodes = max(test.n_gen - 1, 0)
    milliseconds = (prompt_ms if test.n_prompt else 0.0) + (predicted_ms if decodes else 0.0)
    return 1000 * (test.n_prompt + decodes) / milliseconds if milliseconds > 0 else 0.0
