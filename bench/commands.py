"""Whole commands, start-up included: `python -m bench.commands MODEL.gguf TEXT [--base COMMIT] [--out PREFIX]`.

What a user waits for, each command in a process of its own: start-up, a plan, quantizing, requantizing, collecting
importance, evaluating. --base: the same commands of another commit of this repository in turns with them, both from a
checkout in `--work`; a file that the two write differently is named, no number is printed and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import machine, process, tables

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """Medians of the rounds; CPU seconds of the cheapest and the dearest. ratio: the base's CPU seconds over ours."""

    command: str
    rounds: int
    wall_s: float
    cpu_s: float
    cheapest_s: float
    dearest_s: float
    base_cpu_s: float | None
    ratio: float | None


_COLUMNS = (
    tables.Column("command", "command"),
    tables.Column("rounds", "rounds", "{:d}"),
    tables.Column("wall, s", "wall_s", "{:.2f}"),
    tables.Column("CPU, s", "cpu_s", "{:.2f}"),
    tables.Column("cheapest", "cheapest_s", "{:.2f}"),
    tables.Column("dearest", "dearest_s", "{:.2f}"),
    tables.Column("base's CPU, s", "base_cpu_s", "{:.2f}"),
    tables.Column("ratio", "ratio", "{:.2f} ×"),
)


@dataclass(frozen=True)
class Command:
    """A name, and the words after `quantmill`; `@`: the file to write. same: two commits must write the same."""

    name: str
    words: tuple[str, ...]
    same: bool = False


def commands(options: argparse.Namespace, quantized: Path) -> list[Command]:
    """What is measured. quantized: MODEL in Q8_0, to be read as a source."""
    model, threads = str(options.model), ("--threads", str(options.threads))
    text = ("-f", str(options.text), "--chunks", str(options.chunks))
    found = [
        Command("--version", ("--version",)),
        Command("--help", ("--help",)),
        Command("quantize --dry-run", ("quantize", "--dry-run", model, "Q4_K_M")),
    ]
    for type in options.types:
        found.append(Command(f"quantize {type}", ("quantize", *threads, model, "@", type), True))
    again = ("quantize", "--allow-requantize", *threads, str(quantized), "@", "Q4_K_M")
    found += [
        Command("quantize Q4_K_M from Q8_0", again, True),
        Command("imatrix", ("imatrix", model, *text, *threads, "-o", "@")),
        Command("evaluate", ("evaluate", str(quantized), *text, *threads)),
    ]
    return found


def run(tree: Path, command: Command, output: Path) -> process.Usage:
    """A command by the code in `tree`, whose parent is where packages are looked for."""
    output.unlink(missing_ok=True)
    words = [str(output) if word == "@" else word for word in command.words]
    line = ["env", f"PYTHONPATH={tree.parent}", sys.executable, "-m", "quantmill", *words]
    return process.run(line)


@contextlib.contextmanager
def checked_out(commit: str, work: Path) -> Iterator[Path]:
    """The files of a commit in a folder `quantmill`, the name under which its package is imported."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        tree = Path(folder) / "quantmill"
        archive = Path(folder) / "commit.tar"
        subprocess.run(["git", "-C", str(_ROOT), "archive", "-o", str(archive), commit], check=True)
        with tarfile.open(archive) as files:
            files.extractall(tree, filter="data")
        yield tree


def measure(command: Command, trees: list[Path], rounds: int, folder: Path) -> Row:
    """A command by every tree in turn. Raises RuntimeError when they do not write the same.

    The first run of each, which compiles, is not counted.
    """
    outputs = [folder / f"{i}.gguf" for i in range(len(trees))]
    uses: list[list[process.Usage]] = [[] for _ in trees]
    for number in range(rounds + 1):
        for tree, output, taken in zip(trees, outputs, uses, strict=True):
            used = run(tree, command, output)
            taken += [used] if number else []
    if command.same and not all(filecmp.cmp(outputs[0], other, shallow=False) for other in outputs[1:]):
        raise RuntimeError(f"{command.name}: the two commits write different files")
    for output in outputs:
        output.unlink(missing_ok=True)
    ours = [use.cpu_s for use in uses[0]]
    base = [use.cpu_s for use in uses[1]] if len(trees) == 2 else None
    return Row(
        command=command.name,
        rounds=rounds,
        wall_s=statistics.median(use.wall_s for use in uses[0]),
        cpu_s=statistics.median(ours),
        cheapest_s=min(ours),
        dearest_s=max(ours),
        base_cpu_s=statistics.median(base) if base else None,
        ratio=statistics.median(b / a for a, b in zip(ours, base, strict=True)) if base else None,
    )


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.commands", description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF in F16 or F32")
    parser.add_argument("text", type=Path)
    parser.add_argument("--base", metavar="COMMIT")
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q4_K_M", "IQ3_S"], metavar="TYPE")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where files are written; the system's temporary folder")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    facts = machine.describe("bench.commands", arguments)
    options.model, options.text = options.model.resolve(), options.text.resolve()
    rows = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.work))).resolve()
        trees = [stack.enter_context(checked_out("HEAD", folder))]
        trees += [stack.enter_context(checked_out(options.base, folder))] if options.base else []
        quantized = folder / "q8_0.gguf"
        run(trees[0], Command("", ("quantize", str(options.model), "@", "Q8_0")), quantized)
        for command in commands(options, quantized):
            try:
                rows.append(measure(command, trees, options.rounds, folder))
            except RuntimeError as error:
                print(f"{error}; nothing is printed.", file=sys.stderr)
                return 1
    tables.report(options.out, "Whole commands", facts, _COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
