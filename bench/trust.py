"""What it costs not to believe a device: `python -m bench.trust [--types Q4_K IQ3_S] [--out bench/results/trust]`.

For each search: seconds of the question that a device is asked when it first meets a type (once, the answer is kept),
without what the device itself needs for its half million weights, and beside it what the torch engine needs on one
thread of this CPU, which stands for a slow device. Then the samples of a run on a pretended device that works `--rate`
Gweights a second: milliseconds for a type's first slab, after it microseconds a slab, their share of the device's time,
how many slabs they were of, and the rate at which a hundredth of the time is just enough for all slabs. Processor time
of all threads, so that whatever else runs here counts little. No GPU takes part.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench import machine, tables
from quantmill.qkernels import guarded, samples, trust
from quantmill.qkernels.cpu_engine import quantize_stored
from quantmill.qkernels.device import DeviceQuantizer
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.engines import Engine
from quantmill.qkernels.guard import Guard
from quantmill.qkernels.guarded import GuardedQuantizer, Shared
from quantmill.qkernels.hard_blocks import hard_importance, hard_rows
from quantmill.qkernels.samples import SHARE

_PRETENDED = Engine("torch", "cpu", "stands for a device")
# A slab of the assembly line: 128 MiB for four under way, F16 rows of 4096.
_N_ROWS, _N_COLS = 1216, 4096


@dataclass(frozen=True)
class Row:
    """asked: seconds without the device; torch: the device's part by the torch engine here. first: milliseconds of the
    first slab's samples; after it later: microseconds a slab, share: of the pretended device's time, slabs: the share
    of those of which something was compared, all: the rate up to which it would be all of them."""

    type: str
    importance: bool
    asked: float
    torch: float | None
    first: float
    later: float
    share: float
    slabs: float
    all: float


_COLUMNS = (
    tables.Column("type", "type"),
    tables.Column("importance", "importance"),
    tables.Column("asked, s", "asked", "{:.3f}"),
    tables.Column("torch engine, s", "torch", "{:.2f}"),
    tables.Column("first slab, ms", "first", "{:.1f}"),
    tables.Column("later slab, µs", "later", "{:.1f}"),
    tables.Column("share", "share", "{:.2%}"),
    tables.Column("slabs sampled", "slabs", "{:.0%}"),
    tables.Column("all up to, Gweights/s", "all", "{:.1f}"),
)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


class _Known:
    """A device whose blocks are there at once, or after the time that it takes at some rate."""

    def __init__(self, blocks: np.ndarray, seconds: float) -> None:
        self._blocks, self._seconds = blocks, seconds

    def load(self, raw: np.ndarray, source_type: str) -> np.ndarray:
        return raw

    def quantize(
        self, loaded: np.ndarray, source_type: str, type: str, importance: np.ndarray | None
    ) -> np.ndarray:
        end = time.process_time() + self._seconds
        while time.process_time() < end:
            pass
        return self._blocks

    def finish(self) -> None:
        pass


def _asked(type: str, weighted: bool) -> tuple[float, np.ndarray]:
    """Seconds of the question with a device that knows the answer; its rows' blocks."""
    rows, importance = hard_rows().view(np.uint8), hard_importance() if weighted else None
    blocks = quantize_stored(rows, "F32", type, importance)  # compiles
    case = trust.case_of(type, weighted, "default")
    known = _Known(blocks, 0).quantize

    def ask() -> None:
        trust.ask(trust.Answers(_PRETENDED), case, type, weighted, known, quantize_stored)

    return _seconds(ask), blocks


def _by_torch(type: str, weighted: bool, expected: np.ndarray) -> float:
    """On one thread: several wait for each other by spinning, minutes of processor time where they are disturbed.
    Raises SystemExit where the bytes differ."""
    import torch

    torch.set_num_threads(1)
    rows, importance = hard_rows().view(np.uint8), hard_importance() if weighted else None
    device = DeviceQuantizer(_PRETENDED)
    device.quantize(rows[:1], "F32", type, importance)
    found: list[np.ndarray] = []
    seconds = _seconds(lambda: found.append(device.quantize(rows, "F32", type, importance)))
    if not np.array_equal(found[0], expected):
        raise SystemExit(f"{type}: the torch engine's blocks are not the CPU engine's")
    return seconds


def _samples(
    type: str, weighted: bool, rate: float, seconds: float
) -> tuple[float, float, float, float, float]:
    """Milliseconds of the first slab's samples; of later ones microseconds a slab, the share of time and of slabs, and
    the rate up to which that is all of them."""
    rng = np.random.default_rng(0)
    slab = (rng.standard_normal((_N_ROWS, _N_COLS), np.float32) * 0.02).astype("<f2").view(np.uint8)
    importance = rng.random(_N_COLS).astype(np.float32) + 0.01 if weighted else None
    blocks = quantize_stored(slab, "F16", type, importance)
    each = _N_ROWS * _N_COLS / (rate * 1e9)

    def quantizer_of(shared: Shared) -> GuardedQuantizer:
        return GuardedQuantizer(lambda: _Known(blocks, each), None, shared)

    def shared_by_all() -> Shared:
        return Shared(_PRETENDED, "default", Guard(), refused={trust.case_of(type, weighted, "default"): ""})

    quantizer_of(shared_by_all()).quantize(slab, "F16", type, importance)  # compiles
    shared = shared_by_all()
    quantizer = quantizer_of(shared)
    samples = shared.samples
    first = _seconds(lambda: quantizer.quantize(slab, "F16", type, importance)) - each
    while samples.worked < seconds:
        quantizer.quantize(slab, "F16", type, importance)
    quantizer.finish()
    later = 1e6 * samples.compared / samples.slabs
    every = SHARE * slab.size / 2 * samples.sampled / samples.compared / 1e9
    return 1000 * first, later, samples.compared / samples.worked, samples.sampled / samples.slabs, every


def measure(type: str, weighted: bool, options: argparse.Namespace) -> Row:
    asked, blocks = _asked(type, weighted)
    by_torch = None if options.no_torch else _by_torch(type, weighted, blocks)
    return Row(type, weighted, asked, by_torch, *_samples(type, weighted, options.rate, options.seconds))


def _options(arguments: list[str]) -> argparse.Namespace:
    known = sorted({type for type, _ in encoders()})
    parser = argparse.ArgumentParser(prog="python -m bench.trust", description=__doc__)
    parser.add_argument("--types", nargs="+", default=known, choices=known, metavar="TYPE")
    parser.add_argument("--rate", type=float, default=4, help="Gweights a second of the pretended device")
    parser.add_argument("--seconds", type=float, default=2, help="that the pretended device works")
    parser.add_argument("--no-torch", action="store_true", help="leave out the torch engine, which is slow")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = _options(arguments)
    facts = machine.describe("bench.trust", arguments)
    # answers are asked for anew, and kept where nobody finds them
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(guarded, "perf_counter", time.process_time),
        mock.patch.object(samples, "perf_counter", time.process_time),
        mock.patch.object(trust, "cache_dir", lambda kind: Path(folder) / kind),
    ):
        rows = [measure(type, weighted, options) for type, weighted in encoders() if type in options.types]
    tables.report(options.out, "The cost of not believing a device", facts, _COLUMNS, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
