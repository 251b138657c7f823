"""What better scales are worth: `python -m bench.quality --llama FOLDER --work FOLDER [--types …] [--out PREFIX]`.

For each type: llama-quantize's own file with llama-imatrix's importance, and what each method makes of it, all judged
by stock llama-perplexity: KL divergence from the original, perplexity, same top token, on the evaluation text and on
a text of another genre. Ratios are to llama-quantize's file, with the standard error over chunks of the paired
difference. No row is printed before sizes and types are found to be the same. `--llama`: the folder of llama.cpp's
binaries. Materials and unfinished files stay in `--work`; rows already in PREFIX.json are kept unless measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import machine, materials, process, tables
from quantmill.gguf_io import open_source

_ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = _ROOT / "examples" / "tiny-qwen3-moe"
SMOLLM2_TYPES = ("Q4_0", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ3_S")
# Every type whose blocks keep scales, on all matrices of the layers.
ALL_TYPES = (
    *("Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
)
_CHUNK = re.compile(r"^\s*(\d+)\s+[\d.]+ ±\s+[\d.]+\s+\S+ ±\s+[\d.]+\s+(\S+) ±", re.MULTILINE)
_KLD = re.compile(r"Mean\s+KLD:\s+(\S+)")
_PPL = re.compile(r"Mean PPL\(Q\)\s+:\s+(\S+)")
_TOP = re.compile(r"Same top p:\s+(\S+)")
_NOT_BETTER = 3


@dataclass(frozen=True)
class Row:
    """One file. ratio, other_ratio: its KL divergence over that of llama-quantize's file; error: one standard error."""

    model: str
    type: str
    method: str
    bytes: int
    kld: float
    ratio: float
    error: float
    ppl: float
    same_top: float
    other_ratio: float | None
    other_error: float | None
    cpu_min: float | None
    wall_min: float | None
    peak_mb: float | None


_COLUMNS = (
    tables.Column("model", "model"),
    tables.Column("type", "type"),
    tables.Column("method", "method"),
    tables.Column("bytes", "bytes", "{:d}"),
    tables.Column("KLD", "kld", "{:.5f}"),
    tables.Column("ratio", "ratio", "{:.3f}"),
    tables.Column("±", "error", "{:.3f}"),
    tables.Column("PPL", "ppl", "{:.3f}"),
    tables.Column("same top, %", "same_top", "{:.2f}"),
    tables.Column("ratio, other genre", "other_ratio", "{:.3f}"),
    tables.Column("±", "other_error", "{:.3f}"),
    tables.Column("CPU min", "cpu_min", "{:.1f}"),
    tables.Column("wall min", "wall_min", "{:.1f}"),
    tables.Column("peak, MB", "peak_mb", "{:.0f}"),
)


@dataclass(frozen=True)
class Bench:
    """A model with its texts, and where the work lies. base: what methods learn from; f16: the same for llama.cpp."""

    name: str
    base: Path
    f16: Path
    imatrix: Path
    calibration: Path
    evaluation: Path
    other: Path | None
    llama: Path
    work: Path
    n_chunks: int
    threads: int

    def tool(self, name: str, *arguments: object) -> str:
        """Run one of llama.cpp's programs; what it wrote to both streams. Raises RuntimeError when it fails."""
        done = subprocess.run(
            [str(self.llama / name), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout


# What makes a better file of a plain one: (bench, plain file, type, file to write) → its cost, None where the method
# itself found nothing to gain.
Method = Callable[[Bench, Path, str, Path], process.Usage | None]


def polish(bench: Bench, plain: Path, type: str, output: Path) -> process.Usage | None:
    """quantmill polish at its defaults."""
    command = [sys.executable, "-m", "quantmill", "polish", str(plain), "--base", str(bench.base)]
    command += ["--calibration", str(bench.calibration), "-o", str(output), "--threads", str(bench.threads)]
    try:
        return process.run(command)
    except RuntimeError as error:
        if f"ended with {_NOT_BETTER}:" in str(error):
            return None
        raise


METHODS: dict[str, Method] = {"polish": polish}


def smollm2(options: argparse.Namespace) -> Bench:
    made = materials.texts(options.work)
    f16 = materials.smollm2(options.work)
    bench = Bench(
        "SmolLM2-135M, noise 1.0",
        f16,
        f16,
        options.work / "smollm2-imatrix.gguf",
        options.calibration or made["calibration"],
        options.evaluation or made["evaluation"],
        options.other or made["other"],
        options.llama,
        options.work,
        options.chunks,
        options.threads,
    )
    if not bench.imatrix.exists():
        how = ("-c", 512, "--chunks", options.imatrix_chunks, "-t", options.threads)
        bench.tool("llama-imatrix", "-m", f16, "-f", bench.calibration, *how, "-o", bench.imatrix)
    return bench


def moe(options: argparse.Namespace) -> Bench:
    f16 = options.work / "tiny-qwen3-moe-f16.gguf"
    if not f16.exists():
        command = [sys.executable, "-m", "quantmill", "convert", str(EXAMPLE), str(f16), "--type", "f16"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    texts = (EXAMPLE / "calibration.txt", EXAMPLE / "evaluation.txt")
    place = (options.llama, options.work, options.chunks, options.threads)
    return Bench("tiny Qwen3-MoE", EXAMPLE, f16, EXAMPLE / "imatrix.gguf", *texts, None, *place)


def plain_file(bench: Bench, type: str) -> Path:
    """llama-quantize's file of a type; quantmill's (the same bytes) where llama-quantize has no such file type."""
    output = bench.work / f"{bench.f16.stem}-{type}.gguf"
    if output.exists():
        return output
    if type in SMOLLM2_TYPES and bench.f16 == bench.base:
        bench.tool("llama-quantize", "--imatrix", bench.imatrix, bench.f16, output, type, bench.threads)
    else:
        command = [
            sys.executable,
            "-m",
            "quantmill",
            "quantize",
            "--imatrix",
            str(bench.imatrix),
            "--tensor-type",
        ]
        command += [f"^blk.*={type}", str(bench.f16), str(output), "Q8_0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return output


@dataclass(frozen=True)
class Judged:
    """What llama-perplexity says of a file on a text. by_chunk: mean KL divergence of each chunk."""

    kld: float
    ppl: float
    same_top: float
    by_chunk: np.ndarray


def judged(bench: Bench, file: Path, text: Path) -> Judged:
    """`file` against the original on a text, by llama-perplexity."""
    logits = bench.work / f"{bench.f16.stem}-{text.stem}-{bench.n_chunks}.logits"
    common = ("-c", 512, "-t", bench.threads, "--chunks", bench.n_chunks, "--no-repack")
    if not logits.exists():
        partial = logits.with_suffix(".new")
        bench.tool("llama-perplexity", "-m", bench.f16, "-f", text, *common, "--save-all-logits", partial)
        partial.rename(logits)
    divergence = ("--kl-divergence", "--kl-divergence-base", logits)
    said = bench.tool("llama-perplexity", "-m", file, *common, *divergence)
    means = np.array([float(mean) for _, mean in _CHUNK.findall(said)])
    sums = means * np.arange(1, len(means) + 1)  # the column holds means of all chunks so far
    kld, ppl, same_top = (float(pattern.findall(said)[-1]) for pattern in (_KLD, _PPL, _TOP))
    return Judged(kld, ppl, same_top, np.diff(sums, prepend=0.0))


def ratio(ours: Judged, plain: Judged) -> tuple[float, float]:
    """Ratio of the divergences, and its standard error from the chunks' paired residuals."""
    value = ours.kld / plain.kld
    residuals = ours.by_chunk - value * plain.by_chunk
    error = residuals.std(ddof=1) / len(residuals) ** 0.5 / plain.by_chunk.mean()
    return value, float(error)


def require_same_layout(plain: Path, made: Path) -> None:
    """Raises AssertionError unless both files hold the same tensors in the same types."""
    layouts = [[(s.name, s.shape, s.type) for s in open_source(path).specs()] for path in (plain, made)]
    assert layouts[0] == layouts[1], f"{made}: other tensors or types than {plain}"


def measure(bench: Bench, type: str, methods: list[str]) -> list[Row]:
    """A row for llama-quantize's file, and one a method."""
    plain = plain_file(bench, type)
    texts = [bench.evaluation] + ([bench.other] if bench.other else [])
    before = [judged(bench, plain, text) for text in texts]
    first = before[0]
    base = Row(
        bench.name, type, "plain", plain.stat().st_size, first.kld, 1.0, 0.0, first.ppl, first.same_top,
        None, None, None, None, None,
    )  # fmt: skip
    rows = [base]
    for name in methods:
        output = bench.work / f"{plain.stem}-{name}.gguf"
        used = METHODS[name](bench, plain, type, output)
        if used is None:
            rows.append(replace(base, method=f"{name}: nothing to gain"))
            continue
        require_same_layout(plain, output)
        after = [judged(bench, output, text) for text in texts]
        found = [ratio(ours, theirs) for ours, theirs in zip(after, before, strict=True)]
        found += [] if bench.other else [(None, None)]  # type: ignore[list-item]
        size, now = output.stat().st_size, after[0]
        cost = (used.cpu_s / 60, used.wall_s / 60, used.peak_bytes / 1e6)
        rows.append(
            Row(bench.name, type, name, size, now.kld, *found[0], now.ppl, now.same_top, *found[1], *cost)
        )
        output.unlink()
    return rows


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Old rows with the new ones in their places."""
    rows = {(row.model, row.type, row.method): row for row in old}
    return list((rows | {(row.model, row.type, row.method): row for row in new}).values())


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--llama", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", choices=("smollm2", "moe"), default="smollm2")
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="of SmolLM2 file types, else tensor types")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--chunks", type=int, default=32, help="of 512 tokens, of each text that judges")
    parser.add_argument("--imatrix-chunks", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--calibration", type=Path, help="a text instead of the one that is made")
    parser.add_argument("--evaluation", type=Path, help="likewise")
    parser.add_argument("--other", type=Path, help="likewise")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json, after every type")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    facts = machine.describe("bench.quality", [Path(one).name if os.sep in one else one for one in arguments])
    bench = smollm2(options) if options.model == "smollm2" else moe(options)
    results: list[Row] = []
    if options.out and options.out.with_suffix(".json").exists():
        found = json.loads(options.out.with_suffix(".json").read_text(encoding="utf-8"))
        results = [Row(**row) for row in found["rows"]]
    for type in options.types or (SMOLLM2_TYPES if options.model == "smollm2" else ALL_TYPES):
        new = measure(bench, type, options.methods)
        print(tables.markdown(_COLUMNS, new), flush=True)
        results = merged(results, new)
        if options.out:
            title = tables.heading("Quality at the same size", facts)
            tables.save(
                options.out, f"{title}\n{tables.markdown(_COLUMNS, results)}", tables.as_json(facts, results)
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
