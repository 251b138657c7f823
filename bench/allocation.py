"""quantmill quantize --target-size beside llama-quantize's file types, at the same bytes and by llama-perplexity.

    python -m bench.allocation F16.gguf --imatrix I --calibration TEXT --llama FOLDER --types Q4_K_M,Q3_K_M \
        --text eval.txt --text other.txt [--chunks 32] [--measure-chunks 8] [--work FOLDER] [--out P]

llama-quantize makes each type with the importance matrix; quantmill gets that file's size as its ceiling, the same
importance and the calibration text, of which it measures on parts that the importance was not collected from. Both
files are scored on every text against the F16 model. `--work` keeps what was made: saved predictions, files, and
quantmill's measurements, so that a second call measures nothing twice. One thread throughout.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import machine, tables
from quantmill.gguf_io.filesystem import digest

_FLAGS = ("-c", "512", "-t", "1", "--no-repack")
_KLD = re.compile(r"Mean\s+KLD:\s*([\d.]+) ±\s*([\d.]+)")


@dataclass(frozen=True)
class Row:
    """One type on one text. predicted, measured: quantmill's own, on held-back chunks of the calibration text."""

    type: str
    text: str
    bytes_theirs: int
    bytes_ours: int
    predicted: float
    measured: float
    kld_theirs: float
    kld_ours: float
    error_ours: float
    ratio: float
    cpu_minutes: float


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--llama", type=Path, required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--types", default="Q4_K_M,Q3_K_M")
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--measure-chunks", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("bench-allocation"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/allocation"))
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    here = machine.describe("bench.allocation", list(arguments))
    rows = [row for type in options.types.split(",") for row in _of_type(options, type)]
    tables.save(options.out, _report(here, rows), tables.as_json(here, rows))


def _of_type(options: argparse.Namespace, type: str) -> list[Row]:
    theirs, ours = options.work / f"llama-{type}.gguf", options.work / f"quantmill-{type}.gguf"
    if not theirs.exists():
        _run(options.llama / "llama-quantize", "--imatrix", options.imatrix, options.model, theirs, type, "1")
    size = theirs.stat().st_size
    started, busy = time.time(), os.times()
    words = [sys.executable, "-m", "quantmill", "quantize", options.model, ours, "--target-size", size]
    words += ["--imatrix", options.imatrix, "--calibration", options.calibration, "--threads", "1", "--json"]
    found = json.loads(_run(*words, "--measure-chunks", options.measure_chunks))
    now = os.times()
    minutes = (now.children_user + now.children_system - busy.children_user - busy.children_system) / 60
    print(f"{type}: {time.time() - started:.0f} s", file=sys.stderr)
    rows = []
    for text in options.text:
        (kld, error), (kld_theirs, _) = (_kld(options, file, text) for file in (ours, theirs))
        rows.append(
            Row(
                type,
                text.name,
                size,
                ours.stat().st_size,
                found["predicted_loss"],
                found["measured_loss"],
                kld_theirs,
                kld,
                error,
                kld / kld_theirs,
                minutes,
            )
        )
    return rows


def _kld(options: argparse.Namespace, file: Path, text: Path) -> tuple[float, float]:
    """Mean KL divergence from the F16 model and its error, by llama-perplexity."""
    base = options.work / f"{text.stem}-{options.chunks}.kld"
    program = options.llama / "llama-perplexity"
    if not base.exists():
        _run(
            program,
            "-m",
            options.model,
            "-f",
            text,
            "--chunks",
            options.chunks,
            *_FLAGS,
            "--save-all-logits",
            base,
        )
    log = options.work / f"{digest([file])[:16]}-{base.stem}.log"  # of this very file
    if not log.exists():
        words = (program, "-m", file, *_FLAGS, "--kl-divergence", "--kl-divergence-base", base)
        log.write_text(_run(*words), encoding="utf-8")
    match = _KLD.search(log.read_text(encoding="utf-8"))
    if match is None:
        raise RuntimeError(f"{log}: llama-perplexity says no KLD for {file}")
    return float(match[1]), float(match[2])


def _run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def _report(here: machine.Machine, rows: list[Row]) -> str:
    columns = (
        tables.Column("at the bytes of", "type"),
        tables.Column("text", "text"),
        tables.Column("bytes llama.cpp", "bytes_theirs", "{:d}"),
        tables.Column("bytes", "bytes_ours", "{:d}"),
        tables.Column("loss predicted", "predicted", "{:.4f}"),
        tables.Column("measured", "measured", "{:.4f}"),
        tables.Column("KLD llama.cpp", "kld_theirs", "{:.4f}"),
        tables.Column("KLD", "kld_ours", "{:.4f}"),
        tables.Column("±", "error_ours", "{:.4f}"),
        tables.Column("ratio", "ratio", "{:.3f}"),
        tables.Column("CPU min", "cpu_minutes", "{:.1f}"),
    )
    return "\n".join([tables.heading("Types that fit a size", here), tables.markdown(columns, rows)])


if __name__ == "__main__":
    main(sys.argv[1:])
