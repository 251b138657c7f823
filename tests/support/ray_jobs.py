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
_FEW = ("--ctx", "64", "--chunks", "16")
_SMALL = ("--max-buffer-size", "1")


@dataclass(frozen=True)
class Call:
    """words: of a command, `{}` for a folder of its own. on_ray: further ones beside --ray. n_kills: in a sweep; span:
    about how many seconds it takes from its first worker on."""

    words: tuple[str, ...]
    on_ray: tuple[str, ...] = ()
    n_kills: int = 0
    span: float = 3.0


def calls() -> dict[str, Call]:
    """Of all jobs that run on a cluster."""
    f16, q8, q4 = str(tiny("F16")), str(tiny("Q8_0")), str(tiny("Q4_0"))
    texts = ("--calibration", TEXT, "--evaluation", str(EXAMPLE / "evaluation.txt"))
    return {
        "quantize": Call(("quantize", f16, "{}/x.gguf", "Q4_K_M", *_SMALL), n_kills=12),
        "convert": Call(("convert", str(EXAMPLE), "{}/x.gguf"), n_kills=8),
        "splits": Call(
            ("quantize", f16, "{}/x.gguf", "Q4_K_M", *_SMALL), ("--output-on", "workers"), n_kills=8
        ),
        "imatrix": Call(
            ("imatrix", q8, "-f", TEXT, *_FEW, "--tokenizer", str(EXAMPLE), "-o", "{}/x.gguf"),
            n_kills=9,
            span=8,
        ),
        "evaluate": Call(
            ("evaluate", q8, "--base", f16, "--text", TEXT, *_FEW, "-o", "{}/x.json"), n_kills=9, span=8
        ),
        "evaluate, no base": Call(("evaluate", q8, q4, "--text", TEXT, *_FEW, "-o", "{}/x.json")),
        "compensate": Call(
            ("quantize", f16, "{}/x.gguf", "Q4_K_M", "--compensate", "--calibration", TEXT, "--chunks", "10"),
            n_kills=5,
            span=40,
        ),
        "squeeze": Call(
            (
                *("squeeze", str(EXAMPLE), "-o", "{}", *texts, "--types", "Q4_K_M,Q8_0", "--plain"),
                *("--chunks", "2", "--imatrix-chunks", "2", "--no-speed"),
            ),
            n_kills=1,
            span=20,
        ),
    }


def words_of(call: Call, folder: Path) -> list[str]:
    """With files named from this folder on, but for the text, whose name an importance matrix holds."""
    return [
        os.path.relpath(word)
        if Path(word).is_absolute() and word != TEXT
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
