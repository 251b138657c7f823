"""What packed checkpoints cost: `python -m bench.packed [--forms NAME ...] [--out bench/results/packed]`.

For each form, CPU nanoseconds a weight on one thread: fetching rows out of the mapped file as blocks (the reading
thread does it), decoding the blocks (the thread that searches them does it), and quantizing the blocks to Q4_K and
Q8_0, decoding included, beside the same from float32. Bytes are compared first.

`--peak GIGABYTES --work DIR` instead quantizes a checkpoint of that size, of one form, in a process of its own, and
prints its CPU seconds and peak memory. The checkpoint is a hole in a file: all zeros, read as any other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import machine, tables, timing
from quantmill.gguf_io.convert.storage.reader import Reader
from quantmill.gguf_io.convert.stored import readers
from quantmill.gguf_io.safetensors import read_header
from quantmill.qkernels import dequantize, quantize
from quantmill.qkernels.cpu_engine import quantize_stored
from tests.support.convert_models import write_safetensors
from tests.support.packed_models import PACKED, PEAK, write_zeros

_SHAPE = (1024, 4096)


@dataclass(frozen=True)
class Row:
    """Nanoseconds a weight; None where rows come as float32 at once."""

    form: str
    blocks: str
    fetch: float
    decode: float | None
    to_q4_k: float
    q4_k: float
    to_q8_0: float | None
    q8_0: float


_COLUMNS = (
    tables.Column("form", "form"),
    tables.Column("blocks", "blocks"),
    tables.Column("fetch", "fetch", "{:.2f}"),
    tables.Column("decode", "decode", "{:.2f}"),
    tables.Column("blocks to Q4_K", "to_q4_k", "{:.2f}"),
    tables.Column("F32 to Q4_K", "q4_k", "{:.2f}"),
    tables.Column("blocks to Q8_0", "to_q8_0", "{:.2f}"),
    tables.Column("F32 to Q8_0", "q8_0", "{:.2f}"),
)


def reader_of(form: str, directory: Path) -> Reader:
    """A matrix of random codes."""
    model = PACKED[form]
    path = directory / "model.safetensors"
    write_safetensors(path, model.pack(np.random.RandomState(0), "w.mlp", _SHAPE))
    stored = {tensor.name: tensor for tensor in read_header(path)}
    return readers({"quantization_config": model.settings}, stored, print)["w.mlp.weight"]


def measure(form: str, directory: Path, rounds: int) -> Row | None:
    """None when bytes differ."""
    reader, rows, all_columns = reader_of(form, directory), slice(0, _SHAPE[0]), slice(None)
    values = reader.values(rows, all_columns)
    blocks = reader.forms[0] if reader.forms else "F32"
    if reader.forms:
        stored = reader.blocks(rows, blocks)
    else:
        stored = values.view(np.uint8)
    calls: dict[str, Callable[[], object]] = {
        "fetch": lambda: reader.blocks(rows, blocks) if reader.forms else reader.values(rows, all_columns),
        "decode": lambda: dequantize(stored, blocks, threads=1),
        "q4_k": lambda: quantize(values, "Q4_K", threads=1),
        "q8_0": lambda: quantize(values, "Q8_0", threads=1),
        "to_q4_k": lambda: quantize_stored(stored, blocks, "Q4_K", None, 1),
        "to_q8_0": lambda: quantize_stored(stored, blocks, "Q8_0", None, 1),
    }
    factor = reader.factors.get("scale", 1.0)
    if factor == 1.0 and any(
        not np.array_equal(quantize_stored(stored, blocks, to, None, 1), quantize(values, to, threads=1))
        for to in ("Q4_K", "Q8_0")
        if to != blocks
    ):
        return None
    times = timing.interleaved(calls, rounds, 0.05)
    found = {name: 1e3 / one.rate(values.size, "cpu") for name, one in times.items()}
    return Row(
        form,
        blocks,
        found["fetch"],
        found["decode"] if reader.forms else None,
        found["to_q4_k"],
        found["q4_k"],
        found["to_q8_0"] if blocks != "Q8_0" else None,
        found["q8_0"],
    )


def peak(form: str, gigabytes: float, work: Path, file_type: str) -> str:
    """Quantize a checkpoint of zeros of that size to `file_type`, in a process of its own."""
    directory = work / "model"
    size = write_zeros(form, directory, gigabytes)
    words = ["quantize", str(directory), str(work / "out.gguf"), file_type, "--threads", "1", "--force"]
    child = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(child.stderr)
    mebibytes, seconds = child.stdout.split()[-2:]
    return f"{form}, {size / 1e9:.2f} GB, to {file_type}: peak {mebibytes} MiB, {seconds} CPU s"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.packed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--forms", nargs="+", default=list(PACKED), choices=list(PACKED), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    parser.add_argument("--peak", type=float, metavar="GIGABYTES")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint of --peak")
    parser.add_argument("--file-type", default="Q4_K_M")
    options = parser.parse_args(arguments)
    if options.peak:
        for form in options.forms:
            with tempfile.TemporaryDirectory(dir=options.work) as scratch:
                print(peak(form, options.peak, Path(scratch), options.file_type), flush=True)
        return 0
    facts = machine.describe("bench.packed", arguments)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for form in options.forms:
            row = measure(form, Path(scratch), options.rounds)
            if row is None:
                print(
                    f"{form}: bytes from blocks and from float32 differ; nothing is measured.",
                    file=sys.stderr,
                )
                return 1
            rows.append(row)
    tables.report(options.out, "Packed checkpoints, CPU nanoseconds a weight", facts, _COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
