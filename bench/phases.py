"""Where a search spends its time: `python -m bench.phases [--types Q6_K Q4_0] [--out bench/results/NAME]`.

The functions of an encoder are compiled with its first phases only, one phase more each time; the differences are what
the phases take, on one core. Each turn is short and the cheapest one counts, in seconds of the thread's own processor
time, so that a loaded machine tells nearly what an idle one would. ggml's function takes turns with them on part of
the same rows. The bytes of the whole are compared first.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench import machine, tables
from bench.quantize import model_like
from quantmill.qkernels import TYPES
from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.lanes import cpu, native
from tests.support import oracle

_TYPES = ("Q4_0", "Q5_0", "Q3_K", "Q6_K", "IQ3_XXS", "IQ3_S", "IQ2_S", "IQ1_M")
_ROWS, _COLUMNS_OF_ROWS, _ROWS_OF_GGML = 256, 4096, 8


@dataclass(frozen=True)
class Row:
    """Nanoseconds a weight; of the last row of a type ("all") also ggml's, and how many times that is."""

    type: str
    importance: bool
    phase: str
    ns: float
    ggml_ns: float | None = None
    ratio: float | None = None


_TABLE = (
    tables.Column("type", "type"),
    tables.Column("importance", "importance"),
    tables.Column("phase", "phase"),
    tables.Column("ns a weight", "ns", "{:.2f}"),
    tables.Column("ggml, ns", "ggml_ns", "{:.2f}"),
    tables.Column("ratio", "ratio", "{:.2f} ×"),
)


def _seconds(call: Callable[[], object]) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started


def measure(name: str, weighted: bool, rounds: int) -> list[Row]:
    """One row a phase, then all of them. Raises RuntimeError where the bytes are not ggml's."""
    rows, columns = model_like(_ROWS, _COLUMNS_OF_ROWS)
    importance = columns if weighted else None
    type, encoder = TYPES[name], encoder_of(name, weighted, "default")

    def with_phases(n: int) -> Callable[[], object]:
        part = replace(encoder, phases=encoder.phases[:n])
        return lambda: cpu.encode(type, part, rows, importance, 1, native.host())

    calls = [with_phases(n) for n in range(len(encoder.phases) + 1)]
    calls.append(lambda: oracle.quantize(rows[:_ROWS_OF_GGML], name, importance))
    ours, _ = cpu.encode(type, encoder, rows, importance, 1, native.host())
    difference = oracle.first_difference(ours, oracle.quantize(rows, name, importance), name)
    if difference:
        raise RuntimeError(difference)
    for call in calls:
        call()
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        best = [min(before, _seconds(call)) for before, call in zip(best, calls, strict=True)]
    *sums, theirs = best
    per = [1e9 * seconds / rows.size for seconds in sums]
    names = ["load, store", *(phase.function for phase in encoder.phases)]
    shares = [per[0], *(after - before for before, after in itertools.pairwise(per))]
    ggml = 1e9 * theirs / rows[:_ROWS_OF_GGML].size
    found = [Row(name, weighted, phase, ns) for phase, ns in zip(names, shares, strict=True)]
    return [*found, Row(name, weighted, "all", per[-1], ggml, ggml / per[-1])]


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.phases", description=__doc__)
    parser.add_argument("--types", nargs="+", default=list(_TYPES), metavar="TYPE")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    facts = machine.describe("bench.phases", arguments)
    rows: list[Row] = []
    for name in options.types:
        use = TYPES[name].importance
        for weighted in {"none": [False], "optional": [False, True], "required": [True]}[use]:
            try:
                rows += measure(name, weighted, options.rounds)
            except RuntimeError as error:
                print(f"{error}; nothing is printed.", file=sys.stderr)
                return 1
    tables.report(options.out, "Where searches spend their time", facts, _TABLE, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
