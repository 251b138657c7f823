"""Tokens a second while collecting, beside the same forward pass without hooks and beside llama-imatrix.

    python -m bench.imatrix MODEL.gguf TEXT [--llama-imatrix BIN] [--chunks 16] [--threads 1] [--rounds 3] [--out P]

All three run the same chunks with the same threads in turn, round after round; the medians count. MODEL is what
llama-imatrix reads (its time includes loading it: less than a second for a small model); --hf gives the same
model as a Hugging Face directory for the torch side.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench import machine, process, tables
from bench.contest import FLAGS
from quantmill.imatrix import collect as collecting
from quantmill.imatrix.text import Cutting, Text, chunks_of, read_text
from quantmill.models.arithmetic import automatic_dtype
from quantmill.models.model import LoadedModel, load
from quantmill.models.workers import Workers, working


@dataclass(frozen=True)
class Row:
    """Tokens a second, of wall time (median, slowest and fastest round) and of processor time.

    `ratio`: how many times llama-imatrix's rate of processor time, median of the rounds; None without it.
    """

    model: str
    what: str
    threads: int
    chunks: int
    rounds: int
    rate: float
    slowest: float
    fastest: float
    cpu_rate: float
    ratio: float | None


_COLUMNS = (
    tables.Column("model", "model"),
    tables.Column("what", "what"),
    tables.Column("threads", "threads", "{:d}"),
    tables.Column("chunks", "chunks", "{:d}"),
    tables.Column("tokens/s", "rate", "{:.0f}"),
    tables.Column("slowest", "slowest", "{:.0f}"),
    tables.Column("fastest", "fastest", "{:.0f}"),
    tables.Column("tokens/CPU s", "cpu_rate", "{:.0f}"),
    tables.Column("ratio, CPU", "ratio", "{:.2f} ×"),
)


def with_hooks(
    loaded: LoadedModel, chunks: np.ndarray, settings: collecting.Settings, workers: Workers
) -> None:
    for _ in collecting.collect(loaded.model, loaded.table, chunks, settings, collecting.Result(), workers):
        pass


def without_hooks(
    loaded: LoadedModel, chunks: np.ndarray, settings: collecting.Settings, workers: Workers
) -> None:
    step = collecting.together(loaded.model, len(chunks), chunks.shape[1], loaded.device)
    batches = [chunks[i : i + step] for i in range(0, len(chunks), step)]
    workers.map(lambda batch: collecting.run_batch(loaded.model, batch, settings, loaded.device), batches)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of a call in this process, or of the program that it watches."""
    wall, cpu = time.perf_counter(), time.process_time()
    used = run()
    if isinstance(used, process.Usage):
        return used.wall_s, used.cpu_s
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(options: argparse.Namespace, folder: Path, workers: Workers) -> list[Row]:
    """A row for each contestant."""
    dtype = options.dtype or automatic_dtype(torch.device("cpu"))
    loaded = load(options.hf or options.model, dtype=dtype)
    tokens = loaded.tokenizer.encode(read_text(Path(options.text)))
    chunks = chunks_of([(Text(Path(options.text)), tokens)], Cutting(n_chunks=options.chunks))
    settings = collecting.Settings(bos=loaded.tokenizer.first)
    without_hooks(loaded, chunks[:4], settings, workers)
    runs: dict[str, Callable[[], object]] = {
        "plain forward": functools.partial(without_hooks, loaded, chunks, settings, workers),
        "collect": functools.partial(with_hooks, loaded, chunks, settings, workers),
    }
    if options.llama_imatrix:
        command = [str(options.llama_imatrix.absolute()), "-m", str(options.model), "-f", str(options.text)]
        command += [*FLAGS, "-o", str(folder / "o.gguf"), "--chunks", str(options.chunks)]
        command += ["-t", str(options.threads), "-tb", str(options.threads)]
        runs["llama-imatrix"] = functools.partial(process.run, command)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(timed(run))
    return [_row(options, name, times, chunks) for name in runs]


def _row(
    options: argparse.Namespace, name: str, times: dict[str, list[tuple[float, float]]], chunks: np.ndarray
) -> Row:
    walls, cpus = zip(*times[name], strict=True)
    theirs = times.get("llama-imatrix")
    ratio = None
    if theirs is not None and name != "llama-imatrix":
        ratio = statistics.median(b / a for a, (_, b) in zip(cpus, theirs, strict=True))
    return Row(
        model=Path(options.hf or options.model).name,
        what=name,
        threads=options.threads,
        chunks=len(chunks),
        rounds=len(walls),
        rate=chunks.size / statistics.median(walls),
        slowest=chunks.size / max(walls),
        fastest=chunks.size / min(walls),
        cpu_rate=chunks.size / statistics.median(cpus),
        ratio=ratio,
    )


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.imatrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--hf", help="Hugging Face directory of the same model, for the torch side")
    parser.add_argument("--llama-imatrix", type=Path)
    parser.add_argument("--dtype", help="float32, int16 …; what `quantmill imatrix` takes unless told")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    facts = machine.describe("bench.imatrix", arguments)
    with tempfile.TemporaryDirectory() as folder, working(options.threads, "cpu") as workers:
        rows = measure(options, Path(folder), workers)
    tables.report(options.out, "Collecting importance", facts, _COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
