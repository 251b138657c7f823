"""What `--search thorough` is worth: `python -m bench.search MODEL IMATRIX [MODEL IMATRIX …] [--out PREFIX]`.

For every type that has such a search, on rows of every matrix of each model that hold whole blocks of it, with its
importance matrix and without: Σ importance·(weight - decoded)² against llama.cpp's own blocks (the geometric mean of
the tensors' ratios, the best and the worst tensor). Then, on made rows, processor seconds of one core for a thousand
million weights: llama.cpp's, of the default search and of the thorough one. If a block came out worse, or a default
block differs from llama.cpp's, no table is printed and the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import machine, tables
from bench.quantize import model_like
from quantmill import qkernels
from quantmill.gguf_io import TensorSource, TensorSpec, open_source
from quantmill.imatrix.store import ImportanceMatrix, load
from quantmill.qkernels.types import TYPES, QuantType
from tests.support import oracle


@dataclass(frozen=True)
class Row:
    """Ratios thorough / default of the weighted error of a model's matrices in one type."""

    model: str
    type: str
    importance: bool
    tensors: int
    weights: int
    ratio: float
    best: float
    worst: float


@dataclass(frozen=True)
class Speed:
    """Seconds of one core for 1e9 weights."""

    type: str
    importance: bool
    llama: float
    default: float
    thorough: float
    times_default: float
    times_llama: float


_ERRORS = (
    tables.Column("model", "model"),
    tables.Column("type", "type"),
    tables.Column("importance", "importance"),
    tables.Column("error, thorough / default", "ratio", "{:.3f}"),
    tables.Column("best tensor", "best", "{:.3f}"),
    tables.Column("worst tensor", "worst", "{:.3f}"),
    tables.Column("tensors", "tensors", "{:d}"),
    tables.Column("weights", "weights", "{:d}"),
)
_SPEEDS = (
    tables.Column("type", "type"),
    tables.Column("importance", "importance"),
    tables.Column("llama.cpp, CPU s / Gweight", "llama", "{:.1f}"),
    tables.Column("default", "default", "{:.1f}"),
    tables.Column("thorough", "thorough", "{:.1f}"),
    tables.Column("thorough / default", "times_default", "{:.1f}"),
    tables.Column("thorough / llama.cpp", "times_llama", "{:.2f}"),
)
_TIMED_ROWS, _TIMED_COLUMNS = 64, 4096


@dataclass(frozen=True)
class Sample:
    """Rows f32 [n_rows, n_cols] of one tensor and the importance f32 [n_cols] of its columns."""

    name: str
    rows: np.ndarray
    importance: np.ndarray


def samples(source: TensorSource, matrix: ImportanceMatrix, n_rows: int, step: int) -> Iterator[Sample]:
    """`n_rows` rows of every `step`-th matrix that has importance; of a stack of experts its first."""
    specs = [spec for spec in source.specs() if spec.name in matrix.entries]
    for spec in specs[::step]:
        columns = matrix.columns(spec.name, spec.n_cols, _experts(spec))
        assert columns is not None
        per_matrix = spec.n_rows // _experts(spec)
        raw = source.read(spec.name, 0, min(n_rows, per_matrix))
        rows = qkernels.to_float32(np.ascontiguousarray(raw), spec.type)
        yield Sample(spec.name, np.ascontiguousarray(rows), np.ascontiguousarray(columns[0], np.float32))


def _experts(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape[2:]))


def _seconds(call: Callable[[], np.ndarray]) -> float:
    """Processor seconds: the least of three runs, after one that compiles."""
    call()
    spent = []
    for _ in range(3):
        started = time.thread_time()
        call()
        spent.append(time.thread_time() - started)
    return min(spent)


def _errors(sample: Sample, blocks: np.ndarray, type: QuantType, weights: np.ndarray) -> np.ndarray:
    lost = weights * (oracle.dequantize(blocks, type.name).astype(np.float64) - sample.rows) ** 2
    return lost.reshape(-1, type.block).sum(1)


def compared(model: str, found: list[Sample], type: QuantType, weighted: bool) -> Row | None:
    """A row of the table; None where no matrix holds whole blocks. Exits where a block is not as it must be."""
    fitting = [sample for sample in found if sample.rows.shape[1] % type.block == 0]
    if not fitting:
        return None
    ratios = []
    for sample in fitting:
        h = sample.importance if weighted else None
        default = qkernels.quantize(sample.rows, type.name, h)
        better = qkernels.quantize(sample.rows, type.name, h, search="thorough")
        if not np.array_equal(oracle.quantize(sample.rows, type.name, h), default):
            sys.exit(f"{type.name}, {sample.name}: blocks are not llama.cpp's")
        weights = np.ones(sample.rows.shape[1]) if h is None else h.astype(np.float64)
        before, after = (_errors(sample, blocks, type, weights) for blocks in (default, better))
        if (after > before * (1 + 1e-5)).any():
            sys.exit(f"{type.name}, {sample.name}: a block is worse")
        if before.sum() > 0:
            ratios.append(float(after.sum() / before.sum()))
    n = sum(sample.rows.size for sample in fitting)
    mean = float(np.exp(np.mean(np.log(ratios))))
    return Row(model, type.name, weighted, len(ratios), n, mean, min(ratios), max(ratios))


def timed(type: QuantType, weighted: bool) -> Speed:
    rows, importance = model_like(_TIMED_ROWS, _TIMED_COLUMNS)
    h = importance if weighted else None
    ours = functools.partial(qkernels.quantize, rows, type.name, h, threads=1)
    calls = (
        functools.partial(oracle.quantize, rows, type.name, h),
        ours,
        functools.partial(ours, search="thorough"),
    )
    llama, default, thorough = (_seconds(call) / rows.size * 1e9 for call in calls)
    return Speed(type.name, weighted, llama, default, thorough, thorough / default, thorough / llama)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="MODEL IMATRIX")
    parser.add_argument("--types", nargs="*", help="all by default")
    parser.add_argument("--rows", type=int, default=64, help="of each matrix")
    parser.add_argument("--step", type=int, default=1, help="only every so manieth matrix")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if len(arguments.files) % 2:
        parser.error("each model needs its importance matrix")
    here = machine.describe("bench.search", sys.argv[1:])
    chosen = [type for type in TYPES.values() if type.name in (arguments.types or TYPES)]
    cases = [(type, w) for type in chosen for w in (True, False) if type.is_searched_thoroughly(w)]
    rows: list[Row] = []
    for model, imatrix in zip(arguments.files[::2], arguments.files[1::2], strict=True):
        source = open_source(model)
        found = list(samples(source, load(imatrix), arguments.rows, arguments.step))
        source.close()
        name = Path(model).stem or model
        rows += [row for case in cases if (row := compared(name, found, *case)) is not None]
    speeds = [timed(*case) for case in cases]
    text = "\n\n".join(
        [
            tables.heading("Thorough searches against the default", here),
            tables.markdown(_ERRORS, rows),
            tables.markdown(_SPEEDS, speeds),
        ]
    )
    print(text)
    if arguments.out:
        tables.save(arguments.out, text, tables.as_json(here, [*rows, *speeds]))


if __name__ == "__main__":
    main()
