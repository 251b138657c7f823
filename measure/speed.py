"""Tokens per second of llama.cpp on a GGUF: by a llama-bench binary, or in a child process by xllamacpp.

A child process, because a kernel that the machine cannot run kills its process, and the others still want to be
measured.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from measure.errors import MeasureError


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
    if options.repeats < 1:
        raise MeasureError(f"--repeats {options.repeats}: at least one run is needed")
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
    lines = _run([sys.executable, "-m", "measure.speed_worker", json.dumps(job)], path).splitlines()
    samples = json.loads(lines[-1])
    return tuple(
        Speed(
            test.name, statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0, len(found)
        )
        for test, found in zip(options.tests, samples, strict=True)
    )


def _run(command: Sequence[str], path: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise MeasureError(
            f"{path}: llama.cpp was killed by {name}; on machines with AMX, --no-repack may help"
        )
    words = [line for line in done.stderr.splitlines() if line.strip()]
    raise MeasureError(f"{path}: llama.cpp failed ({words[-1].strip() if words else 'without a word'})")


def tokens_per_second(n_prompt: int, n_gen: int, prompt_ms: float, predicted_ms: float) -> float:
    """llama-bench's rate from a server's timings: the first generated token falls out of the prompt."""
    if not n_gen:
        return 1000 * n_prompt / prompt_ms
    decodes = n_gen - 1
    if not n_prompt:
        return 1000 * decodes / predicted_ms if predicted_ms > 0 else math.nan
    return 1000 * (n_prompt + decodes) / (prompt_ms + predicted_ms)
