"""Reading and writing beside a plain copy: `python -m bench.disk MODEL.gguf --work DIR [--out PREFIX]`.

MODEL: a file in F16 of several gigabytes; twice its size must be free in DIR. In turns, each from start to sync:
`cp --reflink=never` and `sync` of the copy, then quantmill's COPY, Q8_0 and COPY in splits (which sync by themselves).
Before each the model is dropped from the page cache (posix_fadvise DONTNEED) and looked for there (by
preadv2 with RWF_NOWAIT), so that every byte comes from the disk. What is compared is bytes read and written a
second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from bench import machine, process, tables
from quantmill.gguf_io import GGUFSource
from quantmill.gguf_io.passing import drop, share_in_memory

_LEFT = 0.05  # at most this share of the places looked at


@dataclass(frozen=True)
class Row:
    """Medians of the rounds. ratio: of the bytes a second, to the copy of the same round. own_mb: without files."""

    work: str
    rounds: int
    moved_gb: float
    wall_s: float
    cpu_s: float
    mb_per_s: float
    slowest: float
    fastest: float
    ratio: float
    own_mb: float


_COLUMNS = (
    tables.Column("work", "work"),
    tables.Column("rounds", "rounds", "{:d}"),
    tables.Column("read and written, GB", "moved_gb", "{:.2f}"),
    tables.Column("wall, s", "wall_s", "{:.2f}"),
    tables.Column("CPU, s", "cpu_s", "{:.2f}"),
    tables.Column("MB/s", "mb_per_s", "{:.0f}"),
    tables.Column("slowest", "slowest", "{:.0f}"),
    tables.Column("fastest", "fastest", "{:.0f}"),
    tables.Column("of cp's", "ratio", "{:.2f} ×"),
    tables.Column("memory without files, MB", "own_mb", "{:.0f}"),
)


@dataclass(frozen=True)
class Run:
    usage: process.Usage
    moved: int

    @property
    def rate(self) -> float:
        return self.moved / self.usage.wall_s


def works(model: Path, folder: Path, threads: int) -> dict[str, list[str]]:
    """Name → command; what they write is in `folder`."""
    quantmill = [sys.executable, "-m", "quantmill", "quantize", "--threads", str(threads)]
    source, copy = str(model), str(folder / "copy.gguf")
    shell = 'cp --reflink=never -- "$1" "$2" && sync -- "$2"'
    return {
        "cp, sync": ["sh", "-c", shell, "sh", source, copy],
        "COPY": [*quantmill, source, copy, "COPY"],
        "Q8_0": [*quantmill, source, copy, "Q8_0"],
        "COPY in splits": [*quantmill, "--split-max-size", "1G", source, copy, "COPY"],
    }


def run(model: Path, folder: Path, command: list[str]) -> Run:
    """One command with nothing of the model in memory. Raises RuntimeError where the system keeps it there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    with model.open("rb") as file:
        drop(file.fileno(), 0, 0)
        share = share_in_memory(file.fileno())
    if share is None or share > _LEFT:
        raise RuntimeError(f"{model}: stays in the page cache ({share})")
    usage = process.run(command)
    return Run(usage, model.stat().st_size + sum(path.stat().st_size for path in folder.iterdir()))


def same_tensors(model: Path, copy: Path) -> bool:
    """Whether two files hold the same tensors; keys and order may differ."""
    with GGUFSource(model) as one, GGUFSource(copy) as other:
        names = sorted(spec.name for spec in one.specs())
        return names == sorted(spec.name for spec in other.specs()) and all(
            (one.read(name) == other.read(name)).all() for name in names
        )


def _row(work: str, runs: list[Run], copies: list[Run]) -> Row:
    rates = [run.rate / 1e6 for run in runs]
    return Row(
        work=work,
        rounds=len(runs),
        moved_gb=runs[0].moved / 1e9,
        wall_s=statistics.median(run.usage.wall_s for run in runs),
        cpu_s=statistics.median(run.usage.cpu_s for run in runs),
        mb_per_s=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        ratio=statistics.median(run.rate / copy.rate for run, copy in zip(runs, copies, strict=True)),
        own_mb=max((run.usage.own_bytes or run.usage.peak_bytes) / 1e6 for run in runs),
    )


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.disk", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    facts = machine.describe("bench.disk", arguments)
    folder = options.work / "disk"
    commands = works(options.model, folder, options.threads)
    found: dict[str, list[Run]] = {work: [] for work in commands}
    try:
        for _ in range(options.rounds):
            for work, command in commands.items():
                found[work].append(run(options.model, folder, command))
                if work == "COPY" and not same_tensors(options.model, folder / "copy.gguf"):
                    print("COPY differs from its source; nothing is printed.", file=sys.stderr)
                    return 1
    except RuntimeError as error:  # a model that another program has in memory, or a command that fails
        print(f"{error}; nothing is printed.", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [_row(work, runs, found["cp, sync"]) for work, runs in found.items()]
    tables.report(options.out, f"Reading and writing {options.model.name}", facts, _COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
