"""Types found for a size: `python -m bench.allocation --llama FOLDER --work FOLDER [--types Q4_K_M] [--out PREFIX]`.

llama-quantize makes SmolLM2's file of each type with llama-imatrix's importance; `quantmill quantize --target-size`
gets that file's size as its ceiling, the same importance and the calibration text, first alone, then with compensated
codes and polish in the same command, at normal and at thorough effort. All files are judged by stock llama-perplexity
on the evaluation text and on a text of another genre, as `bench.quality` does. `--work` keeps what was made,
quantmill's measurements of single tensors lie in its cache: a second call measures nothing twice.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass

from bench import machine, tables
from bench.quality import judged, ratio
from bench.quality_models import Bench, add_options, plain_file, smollm2

METHODS: dict[str, tuple[str, ...]] = {
    "types": (),
    "types, codes, scales": ("--compensate", "--polish"),
    "types, codes, scales, thorough": ("--compensate", "--effort", "thorough"),  # which polishes too
}


@dataclass(frozen=True)
class Row:
    """One file. predicted, measured: quantmill's own loss of the types, on chunks of the calibration text it held back.

    ratio, other_ratio: the file's KL divergence over that of llama-quantize's, on either text.
    """

    model: str
    type: str
    method: str
    bytes_theirs: int
    bytes: int
    predicted: float
    measured: float | None
    kld_theirs: float
    kld: float
    ratio: float
    error: float
    other_ratio: float
    other_error: float
    cpu_min: float


_COLUMNS = (
    tables.Column("model", "model"),
    tables.Column("at the bytes of", "type"),
    tables.Column("what", "method"),
    tables.Column("bytes, llama.cpp", "bytes_theirs", "{:d}"),
    tables.Column("bytes", "bytes", "{:d}"),
    tables.Column("loss predicted", "predicted", "{:.4f}"),
    tables.Column("measured", "measured", "{:.4f}"),
    tables.Column("KLD, llama.cpp", "kld_theirs", "{:.5f}"),
    tables.Column("KLD", "kld", "{:.5f}"),
    tables.Column("ratio", "ratio", "{:.3f}"),
    tables.Column("±", "error", "{:.3f}"),
    tables.Column("ratio, other genre", "other_ratio", "{:.3f}"),
    tables.Column("±", "other_error", "{:.3f}"),
    tables.Column("CPU min", "cpu_min", "{:.1f}"),
)


def measure(bench: Bench, type: str, method: str, measure_chunks: int) -> Row:
    """A type's file, and ours of at most its size. Raises RuntimeError when quantmill fails."""
    plain = plain_file(bench, type)
    size = plain.stat().st_size
    output = bench.work / f"{plain.stem}-size-{len(METHODS[method])}.gguf"
    command = [sys.executable, "-m", "quantmill", "quantize", str(bench.f16), str(output), "--json"]
    command += ["--target-size", str(size), "--measure-chunks", str(measure_chunks), *METHODS[method]]
    command += ["--imatrix", str(bench.imatrix), "--calibration", str(bench.calibration)]
    before = _cpu_seconds()
    done = subprocess.run(
        [*command, "--threads", str(bench.threads)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"quantize ended with {done.returncode}: {done.stderr[-2000:]}")
    minutes = (_cpu_seconds() - before) / 60
    found = json.loads(done.stdout)
    made = output.stat().st_size
    assert made <= size, f"{output}: {made} bytes, and {size} were allowed"
    assert bench.other is not None
    texts = (bench.evaluation, bench.other)
    theirs = [judged(bench, plain, text, keep=True) for text in texts]
    ours = [judged(bench, output, text) for text in texts]
    ratios = [ratio(a, b) for a, b in zip(ours, theirs, strict=True)]
    losses = found["predicted_loss"], found["measured_loss"]
    klds = theirs[0].kld, ours[0].kld
    return Row(bench.name, type, method, size, made, *losses, *klds, *ratios[0], *ratios[1], minutes)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.allocation", description=__doc__)
    add_options(parser)
    parser.add_argument("--types", nargs="+", default=["Q4_K_M", "Q3_K_M"], metavar="TYPE")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--measure-chunks", type=int, default=8)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    facts = machine.describe(
        "bench.allocation", [os.path.basename(a) if os.sep in a else a for a in arguments]
    )
    bench = smollm2(options)
    rows = []
    for type in options.types:
        for method in options.methods:
            rows.append(measure(bench, type, method, options.measure_chunks))
            print(tables.markdown(_COLUMNS, rows[-1:]), flush=True)
            tables.keep(options.out, "Types that fit a size", facts, _COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
