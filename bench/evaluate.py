"""quantmill evaluate beside llama-perplexity: numbers, tokens/s, memory, and what the compact base costs.

    python -m bench.evaluate BASE.gguf TEXT QUANT.gguf … --llama-perplexity PATH [--chunks 8] [--threads 1] [--out P]

Both score the same chunks against the same base, which llama-perplexity wrote. It rounds activations to 8 bits for
quantized weights and quantmill does not; to see whether that explains a difference, give the quant as float32 too
(llama-quantize --allow-requantize QUANT.gguf OUT.gguf F32). Tokens/s are of processor time, loading excluded for
quantmill. Memory is what a fresh process takes beyond one that has only imported everything.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import machine, process, tables
from quantmill.measure.compare import run
from quantmill.measure.divergence import summarize
from quantmill.measure.logits_file import LogitsFile, LogitsWriter
from quantmill.models.model import load

WARM = "import quantmill.jobs.evaluate, transformers.models.auto.modeling_auto, accelerate, transformers.generation"
KS = (256, 1024, 2048)
FLAGS = ("--no-repack", "-c", "512")


@dataclass(frozen=True)
class Row:
    """One quant. `theirs` is llama-perplexity's. memory: MiB of a fresh process, of one that imports; file: MiB."""

    file: str
    ppl: float
    ppl_theirs: float
    kld: float
    kld_theirs: float
    same_top: float
    same_top_theirs: float
    rate: float
    rate_theirs: float
    memory: float
    file_mib: float


@dataclass(frozen=True)
class CompactRow:
    """Relative error of the mean KLD with k entries a position, and how much smaller the file is."""

    file: str
    k: int
    error: float
    smaller: float


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("quants", type=Path, nargs="+")
    parser.add_argument("--llama-perplexity", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    here = machine.describe("bench.evaluate", arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.logits"
        llama = [str(options.llama_perplexity), *FLAGS, "-t", str(options.threads)]
        text = [*llama, "-m", str(options.base), "-f", str(options.text), "--chunks", str(options.chunks)]
        subprocess.run([*text, "--kl-divergence-base", str(base)], check=True, capture_output=True)
        imported = process.run([sys.executable, "-c", WARM]).peak_bytes
        rows = [_row(path, base, llama, options, imported) for path in options.quants]
        compact = _compact(options, base, Path(folder))
    print(_report(here, rows, compact))
    if options.out is not None:
        tables.save(options.out, _report(here, rows, compact), tables.as_json(here, [*rows, *compact]))
    return 0


def _row(path: Path, base: Path, llama: list[str], options: argparse.Namespace, imported: int) -> Row:
    file = LogitsFile(base)
    model = load(path)
    start = time.process_time()
    found = summarize(run(file, [model], file.tokens).scores[0])
    seconds = time.process_time() - start
    model.close()
    command = [*llama, "-m", str(path), "--kl-divergence-base", str(base), "--kl-divergence"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    theirs = [
        float(_first(rf"{label}\s*:\s+(-?[\d.]+)", output))
        for label in (r"Mean PPL\(Q\)", "Mean    KLD", "Same top p")
    ]
    used = process.run(command)
    ours = [
        sys.executable,
        "-m",
        "quantmill",
        "evaluate",
        str(path),
        "-f",
        str(options.text),
        "--chunks",
        "4",
    ]
    memory = process.run([*ours, "-t", str(options.threads)]).peak_bytes - imported
    return Row(
        file=path.name,
        ppl=found.ppl.value,
        ppl_theirs=theirs[0],
        kld=found.kld.value,
        kld_theirs=theirs[1],
        same_top=100 * found.same_top.value,
        same_top_theirs=theirs[2],
        rate=file.tokens.size / seconds,
        rate_theirs=file.tokens.size / used.cpu_s,
        memory=memory / (1 << 20),
        file_mib=path.stat().st_size / (1 << 20),
    )


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"llama-perplexity printed nothing like {pattern}")
    return match[1]


def _compact(options: argparse.Namespace, base: Path, folder: Path) -> list[CompactRow]:
    """Divergences against compact bases of two chunks, beside those against the model itself."""
    tokens = LogitsFile(base).tokens[:2]
    model = load(options.base)
    quants = [load(path) for path in options.quants]
    writers = {
        k: LogitsWriter(folder / f"base-{k}", tokens, model.n_vocab, k) for k in KS if k < model.n_vocab
    }
    full = run(model, quants, tokens, list(writers.values()))
    for writer in writers.values():
        writer.__exit__(None, None, None)
    rows = []
    for k in writers:
        path = folder / f"base-{k}"
        found = run(LogitsFile(path), quants, tokens)
        for quant, scores, exact in zip(options.quants, found.scores, full.scores, strict=True):
            error = scores.kld.mean() / exact.kld.mean() - 1
            per_chunk = base.stat().st_size / options.chunks
            rows.append(CompactRow(quant.name, k, 100 * error, per_chunk / (path.stat().st_size / 2)))
    return rows


def _report(here: machine.Machine, rows: list[Row], compact: list[CompactRow]) -> str:
    columns = (
        tables.Column("file", "file"),
        tables.Column("PPL", "ppl", "{:.4f}"),
        tables.Column("llama.cpp", "ppl_theirs", "{:.4f}"),
        tables.Column("KLD", "kld", "{:.6f}"),
        tables.Column("llama.cpp", "kld_theirs", "{:.6f}"),
        tables.Column("same top %", "same_top", "{:.2f}"),
        tables.Column("llama.cpp", "same_top_theirs", "{:.2f}"),
        tables.Column("tokens/s", "rate", "{:.1f}"),
        tables.Column("llama.cpp", "rate_theirs", "{:.1f}"),
        tables.Column("memory MiB", "memory", "{:.0f}"),
        tables.Column("file MiB", "file_mib", "{:.1f}"),
    )
    k_columns = (
        tables.Column("file", "file"),
        tables.Column("k", "k", "{}"),
        tables.Column("KLD error %", "error", "{:+.3f}"),
        tables.Column("times smaller", "smaller", "{:.1f}"),
    )
    parts = [tables.heading("Evaluation", here), tables.markdown(columns, rows)]
    return "\n".join([*parts, "", "## Compact base", "", tables.markdown(k_columns, compact), ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
