"""Whole files beside llama-quantize: `python -m bench.files MODEL.gguf --llama-quantize PATH [--imatrix FILE]`.

For each type: wall time, memory, MB/s read and written and the share of time spent waiting for the disk, of
`quantmill quantize` and of llama-quantize, in turns. Both files are compared first; if one differs in a byte, no
number is printed and the exit code is 1. Without llama-quantize only quantmill is measured.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import machine, process, tables
from quantmill.gguf_io.passing import drop

_TYPES = ["Q8_0", "Q4_K_M", "IQ4_XS", "IQ3_S"]
_MB = 1e6


@dataclass(frozen=True)
class Row:
    """Medians of the rounds. Memory in MB of 10^6 bytes; `waiting_percent` of the wall time.

    `ratio`: how many times llama-quantize's wall time; None where there is nothing to compare with.
    """

    model: str
    type: str
    importance: bool
    tool: str
    threads: int
    rounds: int
    wall_s: float
    fastest_s: float
    slowest_s: float
    cpu_s: float
    read_mb_s: float
    written_mb_s: float
    peak_mb: float
    own_mb: float | None
    waiting_percent: float | None
    ratio: float | None
    same_bytes: bool | None


_COLUMNS = (
    tables.Column("model", "model"),
    tables.Column("type", "type"),
    tables.Column("importance", "importance"),
    tables.Column("tool", "tool"),
    tables.Column("threads", "threads", "{:d}"),
    tables.Column("wall, s", "wall_s", "{:.2f}"),
    tables.Column("fastest", "fastest_s", "{:.2f}"),
    tables.Column("slowest", "slowest_s", "{:.2f}"),
    tables.Column("CPU, s", "cpu_s", "{:.2f}"),
    tables.Column("read, MB/s", "read_mb_s", "{:.0f}"),
    tables.Column("written, MB/s", "written_mb_s", "{:.0f}"),
    tables.Column("peak, MB", "peak_mb", "{:.0f}"),
    tables.Column("without files, MB", "own_mb", "{:.0f}"),
    tables.Column("waiting for disk, %", "waiting_percent", "{:.0f}"),
    tables.Column("ratio", "ratio", "{:.2f} ×"),
    tables.Column("same bytes", "same_bytes"),
)


@dataclass(frozen=True)
class Tool:
    """A program under measurement: its command for a type, and where it writes."""

    name: str
    command: list[str]
    output: Path


def tools(options: argparse.Namespace, type: str, folder: Path) -> list[Tool]:
    """quantmill, and llama-quantize where it is given, for one type."""
    model, threads = str(options.model), str(options.threads)
    extra = ["--imatrix", str(options.imatrix)] if options.imatrix else []
    extra += ["--allow-requantize"] if options.allow_requantize else []
    ours, theirs = folder / "quantmill.gguf", folder / "llama-quantize.gguf"
    python = [sys.executable, "-m", "quantmill", "quantize"]
    found = [Tool("quantmill", [*python, model, str(ours), type, *extra, "--threads", threads], ours)]
    if options.llama_quantize:
        command = [str(options.llama_quantize), *extra, model, str(theirs), type, threads]
        found.append(Tool("llama-quantize", command, theirs))
    return found


def forget(path: Path) -> None:
    """Ask the system to drop a file from its cache, so that the next run reads the disk."""
    with open(path, "rb") as file:
        drop(file.fileno(), 0, 0)


def turn(tool: Tool, options: argparse.Namespace) -> process.Usage:
    tool.output.unlink(missing_ok=True)
    if options.cold:
        forget(options.model)
    return process.run(tool.command)


def measure(type: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """One row a tool, or none when the files differ. The first run, which compiles, is only compared."""
    measured = tools(options, type, folder)
    for tool in measured:
        turn(tool, options)
    same = None
    if len(measured) == 2:
        same = filecmp.cmp(measured[0].output, measured[1].output, shallow=False)
        if not same:
            return []
    uses: dict[str, list[process.Usage]] = {tool.name: [] for tool in measured}
    for _ in range(options.rounds):
        for tool in measured:
            uses[tool.name].append(turn(tool, options))
    rows = [_row(type, tool, uses[tool.name], uses.get("llama-quantize"), same, options) for tool in measured]
    for tool in measured:
        tool.output.unlink()
    return rows


def _row(
    type: str,
    tool: Tool,
    uses: list[process.Usage],
    theirs: list[process.Usage] | None,
    same: bool | None,
    options: argparse.Namespace,
) -> Row:
    walls = [use.wall_s for use in uses]
    wall = statistics.median(walls)
    own = [use.own_bytes for use in uses if use.own_bytes is not None]
    waiting = [use.waiting for use in uses if use.waiting is not None]
    ratio = None
    if theirs is not None and theirs is not uses:
        ratio = statistics.median(b.wall_s / a.wall_s for a, b in zip(uses, theirs, strict=True))
    return Row(
        options.model.name,
        type,
        options.imatrix is not None,
        tool.name,
        options.threads,
        len(uses),
        wall,
        min(walls),
        max(walls),
        statistics.median(use.cpu_s for use in uses),
        options.model.stat().st_size / wall / _MB,
        tool.output.stat().st_size / wall / _MB,
        max(use.peak_bytes for use in uses) / _MB,
        max(own) / _MB if own else None,
        100 * statistics.median(waiting) if waiting else None,
        ratio,
        same,
    )


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.files", description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF in one file")
    parser.add_argument(
        "--types", nargs="+", default=_TYPES, metavar="TYPE", help="as llama-quantize names them"
    )
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--allow-requantize", action="store_true", help="for a model in quantized types")
    parser.add_argument("--llama-quantize", type=Path, metavar="BINARY")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cold", action="store_true", help="drop the model from the system's cache before each run"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the files are written; the system's temporary folder"
    )
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    facts = machine.describe("bench.files", arguments)
    results: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for type in options.types:
            rows = measure(type, options, Path(folder))
            if not rows:
                print(f"{type}: the file is not llama-quantize's, so nothing is printed.", file=sys.stderr)
                return 1
            results += rows
    text = (
        f"{tables.heading('Whole files beside llama-quantize', facts)}\n{tables.markdown(_COLUMNS, results)}"
    )
    data = tables.as_json(facts, results)
    if options.out:
        tables.save(options.out, text, data)
    print(data if options.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
