"""What is given to a Ray cluster in tests, and what must come of it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from quantmill import cli
from quantmill.gguf_io import open_source
from tests.support.measure_models import EXAMPLE, tiny

TEXT = str(EXAMPLE / "calibration.txt")


@dataclass(frozen=True)
class Given:
    """A model and texts. importance, tokenizer: of the model, where it has them; few: what runs over a text runs over;
    buffer: MiB; learned: chunks of a compensation."""

    checkpoint: str
    f16: str
    q8: str
    q4: str
    calibration: str
    evaluation: str
    importance: str
    tokenizer: tuple[str, ...] = ()
    few: tuple[str, ...] = ("--ctx", "64", "--chunks", "16")
    buffer: str = "1"
    learned: str = "10"


def example() -> Given:
    folder = str(EXAMPLE)
    return Given(
        folder,
        f16=str(tiny("F16")),
        q8=str(tiny("Q8_0")),
        q4=str(tiny("Q4_0")),
        calibration=TEXT,
        evaluation=str(EXAMPLE / "evaluation.txt"),
        importance=str(EXAMPLE / "imatrix.gguf"),
        tokenizer=("--tokenizer", folder),
    )


@dataclass(frozen=True)
class Call:
    """words: of a command, `{}` for a folder of its own. on_ray: further ones beside --ray. n_kills: in a sweep; span:
    about how many seconds it takes from its first worker on."""

    words: tuple[str, ...]
    on_ray: tuple[str, ...] = ()
    n_kills: int = 0
    span: float = 3.0


def calls(given: Given | None = None) -> dict[str, Call]:
    """Of all jobs that run on a cluster. given: else the example."""
    of = given or example()
    small = ("--max-buffer-size", of.buffer)
    texts = ("--calibration", of.calibration, "--evaluation", of.evaluation)
    learned = ("--compensate", "--calibration", of.calibration, "--chunks", of.learned)
    weighed = ("--imatrix", of.importance)
    return {
        "quantize": Call(("quantize", of.f16, "{}/x.gguf", "Q4_K_M", *small), n_kills=12),
        "several types": Call(("quantize", of.f16, "{}", "Q4_K_M,Q5_K_M,IQ3_M", *weighed, *small)),
        "convert": Call(("convert", of.checkpoint, "{}/x.gguf"), n_kills=8),
        "splits": Call(
            ("quantize", of.f16, "{}/x.gguf", "Q4_K_M", *small), ("--output-on", "workers"), n_kills=8
        ),
        "imatrix": Call(
            ("imatrix", of.q8, "-f", of.calibration, *of.few, *of.tokenizer, "-o", "{}/x.gguf"),
            n_kills=9,
            span=8,
        ),
        "evaluate": Call(
            ("evaluate", of.q8, "--base", of.f16, "--text", of.calibration, *of.few, "-o", "{}/x.json"),
            n_kills=9,
            span=8,
        ),
        "evaluate, no base": Call(
            ("evaluate", of.q8, of.q4, "--text", of.calibration, *of.few, "-o", "{}/x.json")
        ),
        "compensate": Call(("quantize", of.f16, "{}/x.gguf", "Q4_K_M", *learned), n_kills=5, span=40),
        "squeeze": Call(
            (
                *("squeeze", of.checkpoint, "-o", "{}", *texts, "--types", "Q4_K_M,Q8_0", "--plain"),
                *("--chunks", "2", "--imatrix-chunks", "2", "--no-speed"),
            ),
            n_kills=1,
            span=20,
        ),
    }


def words_of(call: Call, folder: Path) -> list[str]:
    """With files named from this folder on, but for texts, whose names an importance matrix holds."""
    return [
        os.path.relpath(word)
        if Path(word).is_absolute() and not word.endswith(".txt")
        else word.format(os.path.relpath(folder))
        for word in call.words
    ]


def done(call: Call, folder: Path, address: str | None = None) -> int:
    """The exit code of the command, on a cluster or here, on one thread."""
    folder.mkdir()
    words = words_of(call, folder)
    more = [] if address is None else [f"--ray={address}", *call.on_ray]
    return cli.main([*words, "--threads", "1", *more])


def found(folder: Path) -> dict[str, Any]:
    """What decides: tensors and keys of models in however many files, other GGUFs' bytes, numbers of an evaluation."""
    results: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.name == "x.json":
            record = json.loads(path.read_text())
            results[path.name] = {key: record[key] for key in ("models", "base", "ranking", "comparisons")}
        elif "-00001-of-" in path.name:
            results["x.gguf"] = _content(path)
        elif path.suffix == ".gguf" and "-of-" not in path.name:
            results[path.name] = _content(path)
        elif path.suffix == ".toml":
            results[path.name] = path.read_bytes()
    return results


def _content(path: Path) -> dict[str, Any]:
    source = open_source(path)
    with contextlib.closing(source):
        keys = source.metadata.without("split.no", "split.count", "split.tensors.count")
        return {
            "keys": keys.encode(),
            **{
                spec.name: (spec.type, spec.shape, source.read(spec.name).tobytes())
                for spec in source.specs()
            },
        }


class Expected:
    """What a call makes here, made once."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._known = directory, dict[str, dict[str, Any]]()

    def __call__(self, name: str) -> dict[str, Any]:
        if name not in self._known:
            folder = self._directory / name
            assert done(calls()[name], folder) == 0
            self._known[name] = found(folder)
            assert self._known[name]
        return self._known[name]


def left_running(seconds: float = 10.0) -> list[psutil.Process]:
    """Workers that have not ended in so many seconds. Ray tells them to, and does not wait for it."""
    deadline = time.monotonic() + seconds
    while (left := carriers()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def carriers() -> list[psutil.Process]:
    """Workers that run now below this process."""
    running = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "Carrier" in " ".join(process.cmdline()):
                running.append(process)
    return running
