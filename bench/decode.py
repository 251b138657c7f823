"""Decoders beside llama.cpp's own: `python -m bench.decode [--types Q4_K IQ3_S] [--out bench/results/NAME]`.

For each type: weights a second of processor time, on one thread, from blocks that stay in the cache to float32, and the
ratio to ggml's to_float in the same rounds. All values are compared first; if one differs, no number is printed and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import machine, tables, timing
from quantmill import qkernels
from tests.support import oracle


@dataclass(frozen=True)
class Row:
    """Rates in Mweights/s, median, slowest and fastest round. `ratio`: how many times ggml's rate."""

    type: str
    to: str
    weights: int
    rate: float
    slowest: float
    fastest: float
    ggml_rate: float
    ratio: float


_COLUMNS = (
    tables.Column("type", "type"),
    tables.Column("to", "to"),
    tables.Column("Mweights/s", "rate", "{:.0f}"),
    tables.Column("slowest", "slowest", "{:.0f}"),
    tables.Column("fastest", "fastest", "{:.0f}"),
    tables.Column("ggml", "ggml_rate", "{:.0f}"),
    tables.Column("ratio", "ratio", "{:.2f} ×"),
)


def blocks_of(type: str, n_weights: int) -> np.ndarray:
    """Rows of quantized random weights."""
    rows = np.random.default_rng(0).standard_normal((n_weights // 4096, 4096), np.float32) * np.float32(0.02)
    row = qkernels.get_type(type)
    importance = np.ones(4096, np.float32) if row.importance == "required" else None
    return qkernels.quantize(rows, type, importance)


def measure(type: str, to: str, options: argparse.Namespace) -> Row | None:
    """None when a value differs."""
    blocks = blocks_of(type, options.weights)
    expected = oracle.dequantize(blocks, type)
    if not np.array_equal(qkernels.dequantize(blocks, type).view(np.uint32), expected.view(np.uint32)):
        return None
    out = qkernels.dequantize(blocks, type, to=to)
    contestants = {
        "ours": lambda: qkernels.dequantize(blocks, type, to=to, out=out, threads=1),
        "ggml": lambda: oracle.dequantize(blocks, type, expected),
    }
    times = timing.interleaved(contestants, options.rounds, options.seconds)
    ours, ggml = times["ours"], times["ggml"]
    n = expected.size
    rates = ours.rate(n, "cpu"), *ours.span(n, "cpu"), ggml.rate(n, "cpu")
    return Row(type, to, n, *rates, ours.times_faster_than(ggml, "cpu"))


def _options(arguments: list[str]) -> argparse.Namespace:
    quantized = [row.name for row in qkernels.TYPES.values() if row.family != "plain"]
    parser = argparse.ArgumentParser(prog="python -m bench.decode", description=__doc__)
    parser.add_argument("--types", nargs="+", default=quantized, choices=quantized, metavar="TYPE")
    parser.add_argument("--to", nargs="+", default=["F32"], choices=["F32", "F16", "BF16"], metavar="TYPE")
    parser.add_argument(
        "--weights", type=int, default=1 << 17, help="decoded by one call; a multiple of 4096"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--seconds", type=float, default=0.05, help="at least so long a contestant runs a round"
    )
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    facts = machine.describe("bench.decode", arguments)
    rows = []
    for type in options.types:
        for to in options.to:
            row = measure(type, to, options)
            if row is None:
                print(f"{type}: the values are not ggml's, so nothing is measured.", file=sys.stderr)
                return 1
            rows.append(row)
    tables.report(options.out, "Decoding beside ggml", facts, _COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
