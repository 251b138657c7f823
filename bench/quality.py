"""What better scales and codes are worth: `python -m bench.quality --llama FOLDER --work FOLDER [--out PREFIX]`.

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
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import machine, process, tables
from bench.quality_models import MODELS, Bench, add_options, plain_file
from quantmill.gguf_io import open_source
from quantmill.recipe.tensor_scales import scale_name

_CHUNK = re.compile(r"^\s*(\d+)\s+[\d.]+ ±\s+[\d.]+\s+\S+ ±\s+[\d.]+\s+(\S+) ±", re.MULTILINE)
_KLD = re.compile(r"Mean\s+KLD:\s+(\S+)")
_PPL = re.compile(r"Mean PPL\(Q\)\s+:\s+(\S+)")
_TOP = re.compile(r"Same top p:\s+(\S+)")
_NOT_BETTER = 3
_TRIES = 4


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


# What makes a better file of a plain one: (bench, plain file, type, file to write) → its cost, None where the method
# itself found nothing to gain.
Method = Callable[[Bench, Path, str, Path], process.Usage | None]


def polish(bench: Bench, plain: Path, type: str, output: Path) -> process.Usage | None:
    """quantmill polish at its defaults but for the chunks."""
    command = [sys.executable, "-m", "quantmill", "polish", str(plain), "--base", str(bench.base)]
    try:
        return process.run([*command, "-o", str(output), *bench.learning()])
    except RuntimeError as error:
        if f"ended with {_NOT_BETTER}:" in str(error):
            return None
        raise


def compensate(bench: Bench, plain: Path, type: str, output: Path) -> process.Usage | None:
    """quantmill quantize --compensate, likewise."""
    return process.run(bench.quantize(type, output, "--compensate", *bench.learning()))


def thorough(bench: Bench, plain: Path, type: str, output: Path) -> process.Usage | None:
    """The same with more chunks, descent to convergence, and scales polished on fresh chunks afterwards."""
    return process.run(
        bench.quantize(type, output, "--compensate", "--effort", "thorough", *bench.learning())
    )


METHODS: dict[str, Method] = {"polish": polish, "compensate": compensate, "thorough": thorough}


@dataclass(frozen=True)
class Judged:
    """What llama-perplexity says of a file on a text. by_chunk: mean KL divergence of each chunk."""

    kld: float
    ppl: float
    same_top: float
    by_chunk: np.ndarray


def judged(bench: Bench, file: Path, text: Path, keep: bool = False) -> Judged:
    """`file` against the original on a text, by llama-perplexity. keep: what it says stays in the work folder."""
    kept = bench.work / f"{file.stem}-{text.stem}-{bench.n_chunks}.said"
    if keep and kept.exists():
        return _heard(kept.read_text(encoding="utf-8"))
    logits = bench.work / f"{bench.f16.stem}-{text.stem}-{bench.n_chunks}.logits"
    common = ("-c", 512, "-t", bench.threads, "--chunks", bench.n_chunks, "--no-repack")
    if not logits.exists():
        partial = logits.with_suffix(".new")
        bench.tool("llama-perplexity", "-m", bench.f16, "-f", text, *common, "--save-all-logits", partial)
        partial.rename(logits)
    divergence = ("--kl-divergence", "--kl-divergence-base", logits)
    for _ in range(_TRIES):  # now and then its last lines are lost
        said = bench.tool("llama-perplexity", "-m", file, *common, *divergence)
        if all(pattern.search(said) for pattern in (_KLD, _PPL, _TOP)):
            break
    else:
        raise RuntimeError(
            f"{file}: llama-perplexity ended {_TRIES} times without its last lines; call again"
        )
    if keep:
        kept.write_text(said, encoding="utf-8")
    return _heard(said)


def _heard(said: str) -> Judged:
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
    """Raises AssertionError unless both files hold the same tensors in the same types, but for factors of matrices."""
    layouts = []
    for path in (plain, made):
        specs = [(spec.name, spec.shape, spec.type) for spec in open_source(path).specs()]
        factors = {scale_name(name) for name, _, type in specs if type == "NVFP4"}
        layouts.append([spec for spec in specs if spec[0] not in factors])
    assert layouts[0] == layouts[1], f"{made}: other tensors or types than {plain}"


def measure(bench: Bench, type: str, methods: list[str]) -> Iterator[Row]:
    """A row for llama-quantize's file, and one a method, each as soon as it is known."""
    plain = plain_file(bench, type)
    texts = [bench.evaluation] + ([bench.other] if bench.other else [])
    before = [judged(bench, plain, text, keep=True) for text in texts]
    first = before[0]
    base = Row(
        bench.name, type, "plain", plain.stat().st_size, first.kld, 1.0, 0.0, first.ppl, first.same_top,
        None, None, None, None, None,
    )  # fmt: skip
    yield base
    label = "" if bench.learn_chunks is None else f", {bench.learn_chunks} chunks"
    for name in methods:
        output = bench.work / f"{plain.stem}-{name}.gguf"
        used = METHODS[name](bench, plain, type, output)
        if used is None:
            yield replace(base, method=f"{name}{label}: nothing to gain")
            continue
        require_same_layout(plain, output)
        after = [judged(bench, output, text) for text in texts]
        found = [ratio(ours, theirs) for ours, theirs in zip(after, before, strict=True)]
        found += [] if bench.other else [(None, None)]  # type: ignore[list-item]
        size, now = output.stat().st_size, after[0]
        cost = (used.cpu_s / 60, used.wall_s / 60, used.peak_bytes / 1e6)
        yield Row(
            bench.name, type, name + label, size, now.kld, *found[0], now.ppl, now.same_top, *found[1], *cost
        )
        output.unlink()


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Old rows with the new ones in their places."""
    rows = {(row.model, row.type, row.method): row for row in old}
    return list((rows | {(row.model, row.type, row.method): row for row in new}).values())


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    add_options(parser)
    parser.add_argument("--model", choices=tuple(MODELS), default="smollm2")
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="of SmolLM2 file types, else tensor types")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument(
        "--learn-chunks", type=int, metavar="N", help="of 512 tokens, of the calibration text"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    facts = machine.describe("bench.quality", [Path(one).name if os.sep in one else one for one in arguments])
    make, usual_types = MODELS[options.model]
    bench = replace(make(options), learn_chunks=options.learn_chunks)
    results: list[Row] = []
    if options.out and options.out.with_suffix(".json").exists():
        found = json.loads(options.out.with_suffix(".json").read_text(encoding="utf-8"))
        results = [Row(**row) for row in found["rows"]]
    for type in options.types or usual_types:
        for row in measure(bench, type, options.methods):
            print(tables.markdown(_COLUMNS, [row]), flush=True)
            results = merged(results, [row])
            tables.keep(options.out, "Quality at the same size", facts, _COLUMNS, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
