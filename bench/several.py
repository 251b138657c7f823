"""Several types from one reading, against one after the other: `python -m bench.several MODEL TYPES --work DIR`.

TYPES: such as Q8_0,Q4_0,Q4_1. In turns, each in a process of its own: one command for all types, then one for each
type. Before each command the model is dropped from the page cache, so that it is read from the disk, as one that does
not fit the memory is; `--warm` leaves it there. The files must be equal, or no number is printed.
"""

from __future__ import annotations

import argparse
import filecmp
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from bench import machine, process, tables
from bench.files import forget


@dataclass(frozen=True)
class Row:
    """Medians of the rounds. waiting: share of the time in which threads waited for the disk and none ran."""

    way: str
    rounds: int
    cpu_s: float
    wall_s: float
    waiting: float
    cpu_ratio: float
    wall_ratio: float


_COLUMNS = (
    tables.Column("way", "way"),
    tables.Column("rounds", "rounds", "{:d}"),
    tables.Column("CPU, s", "cpu_s", "{:.2f}"),
    tables.Column("wall, s", "wall_s", "{:.2f}"),
    tables.Column("waiting for the disk", "waiting", "{:.0%}"),
    tables.Column("CPU", "cpu_ratio", "{:.2f} ×"),
    tables.Column("wall", "wall_ratio", "{:.2f} ×"),
)


def _drop(path: Path) -> None:
    """From the page cache; what is on the disk is not touched."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    for file in files:
        forget(file)


def _run(model: Path, words: list[str], is_warm: bool) -> process.Usage:
    if not is_warm:
        _drop(model)
    return process.run([sys.executable, "-m", "quantmill", "quantize", str(model), *words])


def _sum(runs: list[process.Usage]) -> tuple[float, float, float]:
    """CPU and wall seconds, and of these the ones spent waiting."""
    cpu, wall = sum(run.cpu_s for run in runs), sum(run.wall_s for run in runs)
    return cpu, wall, sum((run.waiting or 0.0) * run.wall_s for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("types")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    here = machine.describe("bench.several", sys.argv[1:])
    together, alone = options.work / "together", options.work / "alone"
    for folder in (together, alone):
        folder.mkdir(parents=True, exist_ok=True)
    types = options.types.split(",")
    found: dict[str, list[tuple[float, float, float]]] = {"one reading": [], "one after the other": []}
    threads = ["--threads", str(options.threads)]
    for _ in range(options.rounds):
        pattern = str(together / "{type}.gguf")
        at_once = _run(options.model, [pattern, options.types, *threads], options.warm)
        found["one reading"].append(_sum([at_once]))
        each = [
            _run(options.model, [str(alone / f"{type}.gguf"), type, *threads], options.warm) for type in types
        ]
        found["one after the other"].append(_sum(each))
        for type in types:
            if not filecmp.cmp(together / f"{type}.gguf", alone / f"{type}.gguf", shallow=False):
                sys.exit(f"{type}: the files differ")
            (together / f"{type}.gguf").unlink()
            (alone / f"{type}.gguf").unlink()
    slow = [statistics.median(run[i] for run in found["one after the other"]) for i in range(2)]
    rows = []
    for way, runs in found.items():
        cpu, wall, waited = (statistics.median(run[i] for run in runs) for i in range(3))
        rows.append(Row(way, len(runs), cpu, wall, waited / wall, cpu / slow[0], wall / slow[1]))
    tables.report(options.out, f"{options.types} of {options.model.name}", here, _COLUMNS, rows)


if __name__ == "__main__":
    main()
