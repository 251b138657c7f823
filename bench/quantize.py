"""Searches beside llama.cpp's own: `python -m bench.quantize [--types Q4_K IQ3_S] [--out bench/results/NAME]`.

For each type, with and without importance, on each engine and number of threads: Mweights/s, the ratio to
ggml_quantize_chunk in the same rounds, and what the first use costs. All bytes are compared first; if one differs, no
number is printed and the exit code is 1. On a machine with a GPU its engine joins by itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, startup, tables, timing
from quantmill import qkernels
from quantmill.qkernels.engines import available_engines
from tests.support import data_kinds, oracle


@dataclass(frozen=True)
class Case:
    """What is measured. `device`: torch's name for it; "cpu" for the cpu engine."""

    type: str
    importance: bool
    engine: str
    device: str
    threads: int


@dataclass(frozen=True)
class Row:
    """Rates in Mweights/s of wall time, median, slowest and fastest round; `per_cpu` a second of processor time.

    `ratio`: how many times llama.cpp's rate with as many threads; `cpu_ratio` the same by processor time.
    """

    type: str
    importance: bool
    engine: str
    device: str
    threads: int
    weights: int
    compared_blocks: int
    rate: float
    slowest: float
    fastest: float
    per_cpu: float
    llama_rate: float
    llama_slowest: float
    llama_fastest: float
    llama_per_cpu: float
    ratio: float
    cpu_ratio: float
    import_s: float | None
    first_call_s: float | None
    cached_call_s: float | None


_COLUMNS = (
    tables.Column("type", "type"),
    tables.Column("importance", "importance"),
    tables.Column("engine", "engine"),
    tables.Column("device", "device"),
    tables.Column("threads", "threads", "{:d}"),
    tables.Column("Mweights/s", "rate", "{:.1f}"),
    tables.Column("slowest", "slowest", "{:.1f}"),
    tables.Column("fastest", "fastest", "{:.1f}"),
    tables.Column("llama.cpp", "llama_rate", "{:.1f}"),
    tables.Column("ratio", "ratio", "{:.2f} ×"),
    tables.Column("ratio by CPU time", "cpu_ratio", "{:.2f} ×"),
    tables.Column("first call, s", "first_call_s", "{:.2f}"),
    tables.Column("cached, s", "cached_call_s", "{:.2f}"),
    tables.Column("blocks compared", "compared_blocks", "{:d}"),
)


def model_like(n_rows: int, n_cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights with row and column scales and outliers, and importance as calibration gives it; always the same."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n_rows, n_cols), np.float32) * np.float32(0.02)
    rows *= rng.gamma(2, 0.5, (n_rows, 1)).astype(np.float32)
    rows *= np.exp(0.3 * rng.standard_normal((1, n_cols))).astype(np.float32)
    outliers = rng.random(rows.shape) < 0.002
    rows[outliers] *= 2 * rng.standard_t(2.5, int(outliers.sum())).astype(np.float32)
    return rows, (rng.gamma(0.7, 1.0, n_cols) + 1e-3).astype(np.float32)


def call_of(case: Case, rows: np.ndarray, importance: np.ndarray | None) -> Callable[[], Any]:
    """A function that quantizes the rows as the case says; on a device, rows and blocks stay there."""
    if case.engine == "cpu":
        return lambda: qkernels.quantize(rows, case.type, importance, threads=case.threads)
    import torch

    device = torch.device(case.device)
    there = torch.from_numpy(rows).to(device)
    weights = None if importance is None else torch.from_numpy(importance).to(device)

    def call() -> Any:
        blocks = qkernels.quantize(there, case.type, weights, engine=case.engine)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return blocks

    return call


def llama_call(
    case: Case, rows: np.ndarray, importance: np.ndarray | None, pool: ThreadPoolExecutor
) -> Callable[[], Any]:
    """llama.cpp's quantizer on as many threads, which is how llama-quantize runs it: each takes a share of the rows."""
    if case.threads == 1:
        return lambda: oracle.quantize(rows, case.type, importance)
    shares = np.array_split(rows, case.threads)
    return lambda: list(pool.map(lambda share: oracle.quantize(share, case.type, importance), shares))


def differences(case: Case, rows: np.ndarray, importance: np.ndarray) -> Iterator[str]:
    """What is not llama.cpp's, on the rows that will be measured and on rows that are hard for a quantizer."""
    kinds = {"measured rows": (rows, importance)}
    for seed, kind in enumerate(data_kinds.ROWS):
        n_cols = 3 * max(256, qkernels.TYPES[case.type].block)
        hard = data_kinds.rows(kind, 8, n_cols, seed)
        kinds[kind] = hard, data_kinds.importance("zeros", n_cols, seed)
    for kind, (given, columns) in kinds.items():
        weights = columns if case.importance else None
        theirs = oracle.quantize(given, case.type, weights)
        try:
            ours = call_of(case, given, weights)()
        except qkernels.QuantizeError:
            # quantize() refuses what no reader could use: scales that are not finite, which llama.cpp's function writes
            continue
        difference = oracle.first_difference(np.asarray(ours.tolist(), np.uint8), theirs, case.type)
        if difference:
            weighted = "with" if case.importance else "without"
            yield f"{case.engine} on {case.device} {weighted} importance, {kind}: {difference}"


def measure(
    case: Case,
    rows: np.ndarray,
    importance: np.ndarray,
    options: argparse.Namespace,
    pool: ThreadPoolExecutor,
) -> Row:
    weights = importance if case.importance else None
    contestants = {"ours": call_of(case, rows, weights), "llama": llama_call(case, rows, weights, pool)}
    for call in contestants.values():
        call()
    times = timing.interleaved(contestants, options.rounds, options.seconds)
    ours, llama = times["ours"], times["llama"]
    start = startup.measure(case.type, case.importance, case.engine, case.device) if options.startup else None
    n = rows.size
    return Row(
        case.type,
        case.importance,
        case.engine,
        case.device,
        case.threads,
        n,
        n // qkernels.TYPES[case.type].block,
        ours.rate(n),
        *ours.span(n),
        ours.rate(n, "cpu"),
        llama.rate(n),
        *llama.span(n),
        llama.rate(n, "cpu"),
        ours.times_faster_than(llama),
        ours.times_faster_than(llama, "cpu"),
        start.import_s if start else None,
        start.first_call_s if start else None,
        start.cached_call_s if start else None,
    )


def cases(options: argparse.Namespace) -> list[Case]:
    """Every combination that exists: types that ignore importance once, engines of one device with one thread."""
    found = []
    for name in options.types:
        use = qkernels.get_type(name).importance
        for importance in {"none": [False], "optional": [False, True], "required": [True]}[use]:
            for engine in options.engines:
                kind, _, device = engine.partition(":")
                threads = options.threads if kind == "cpu" else [1]
                found += [Case(name, importance, kind, device or "cpu", n) for n in threads]
    return found


def _options(arguments: list[str]) -> argparse.Namespace:
    quantized = [row.name for row in qkernels.TYPES.values() if row.family != "plain"]
    engines = [e.name if e.device == "cpu" else f"{e.name}:{e.device}" for e in available_engines()]
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m bench.quantize", description=__doc__)
    parser.add_argument("--types", nargs="+", default=quantized, choices=quantized, metavar="TYPE")
    parser.add_argument("--engines", nargs="+", default=engines, metavar="ENGINE[:DEVICE]",
                        help="cpu, torch:cpu, torch:mps, triton:cuda:0 …; all that are here by default")  # fmt: skip
    parser.add_argument(
        "--threads", nargs="+", type=int, default=sorted({1, cores}), help="of the cpu engine"
    )
    parser.add_argument("--rows", type=int, default=1024, help="of --columns weights each")
    parser.add_argument("--columns", type=int, default=4096, help="a multiple of 256")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--seconds", type=float, default=0.1, help="at least so long a contestant runs a round"
    )
    parser.add_argument("--no-startup", dest="startup", action="store_false",
                        help="leave out first call and cached call")  # fmt: skip
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    facts = machine.describe("bench.quantize", arguments)
    rows, importance = model_like(options.rows, options.columns)
    wanted = cases(options)
    compared = {(c.type, c.importance, c.engine, c.device): c for c in wanted}
    red: list[str] = []
    for i, case in enumerate(compared.values()):
        _progress(f"comparing {i + 1}/{len(compared)}: {case.type}")
        red += differences(case, rows, importance)
    if red:
        _progress("")
        print("The bytes are not llama.cpp's, so nothing is measured.", *red, sep="\n", file=sys.stderr)
        return 1
    results = []
    with ThreadPoolExecutor(max(options.threads)) as pool:
        for i, case in enumerate(wanted):
            _progress(f"measuring {i + 1}/{len(wanted)}: {case.type}, {case.engine}, {case.threads} threads")
            results.append(measure(case, rows, importance, options, pool))
    _progress("")
    text = f"{tables.heading('Quantizing beside llama.cpp', facts)}\n{tables.markdown(_COLUMNS, results)}"
    data = tables.as_json(facts, results)
    if options.out:
        tables.save(options.out, text, data)
    print(data if options.json else text)
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
