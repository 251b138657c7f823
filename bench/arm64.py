"""The CPU engine's code for AArch64, run in emulation and compared with llama.cpp's quantizer: `python -m bench.arm64`.

For those who have no such machine. Needs a cross compiler and an emulator (on Debian gcc-aarch64-linux-gnu and
qemu-user-static). For each type, with and without importance: the function that an AArch64 machine would compile is
compiled here, linked with arm64_main.c and run on all kinds of test rows; one line each, exit code 1 if a byte
differs. Says nothing of speed.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from quantmill import qkernels
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.lanes import cpu, cpu_driver, native
from quantmill.qkernels.lanes.encoder import Encoder
from quantmill.qkernels.types import QuantType
from tests.support import data_kinds, oracle

_MAIN = Path(__file__).with_name("arm64_main.c")
_COLUMNS = 768
# Vectors of four floats and no other instructions than all of its kind have.
_PLAIN = native.Processor("generic", "", 4)


def _rows() -> np.ndarray:
    """Every kind of rows that a quantizer may be given."""
    rows = np.concatenate([data_kinds.rows(kind, 12, _COLUMNS, i) for i, kind in enumerate(data_kinds.ROWS)])
    return np.ascontiguousarray(rows[np.isfinite(rows).all(1)])


def _program(type: QuantType, encoder: Encoder, folder: Path, options: argparse.Namespace) -> Path:
    target = llvm.Target.from_triple("aarch64-linux-gnu")
    machine = target.create_target_machine(cpu=options.processor, opt=3, reloc="pic")
    parts = cpu.parts_of(type, encoder, _PLAIN)
    text = cpu_driver.text_of(type, encoder, "F32", parts.layout, parts.kinds, _PLAIN)
    (folder / "drive.o").write_bytes(machine.emit_object(native.optimized(text, machine)))
    program = folder / "program"
    compile = [options.compiler, "-O1", "-static", "-o", str(program), str(_MAIN), str(folder / "drive.o")]
    subprocess.run(compile, check=True)
    return program


def _run(
    type: QuantType,
    encoder: Encoder,
    rows: np.ndarray,
    importance: np.ndarray | None,
    program: Path,
    options: argparse.Namespace,
) -> np.ndarray:
    parts = cpu.parts_of(type, encoder, _PLAIN)
    sigma = np.zeros(0, np.float32)  # of blocks that are apart only
    columns = sigma if importance is None else importance
    tiles = cpu.tiles_of(encoder, len(rows), _COLUMNS // type.block, _PLAIN)
    own = parts.layout.n_bytes + _COLUMNS * parts.column_bytes
    facts = (len(rows), _COLUMNS, tiles, own)
    given, found = program.with_name("given"), program.with_name("found")
    with open(given, "wb") as file:
        n_bytes = len(rows) * type.row_bytes(_COLUMNS)
        file.write(struct.pack("<6q", *facts, n_bytes, len(parts.tables)))
        for array in (rows, columns, sigma, *parts.tables):
            file.write(struct.pack("<q", array.nbytes) + array.tobytes())
    subprocess.run([options.emulator, str(program), str(given), str(found)], check=True)
    return np.fromfile(found, np.uint8).reshape(len(rows), -1)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.arm64", description=__doc__)
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="all by default")
    parser.add_argument("--processor", default="neoverse-n1", help="LLVM's name of one")
    parser.add_argument("--compiler", default="aarch64-linux-gnu-gcc")
    parser.add_argument("--emulator", default="qemu-aarch64-static")
    options = parser.parse_args(arguments)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    rows = _rows()
    wrong = 0
    for (name, weighted), encoder in encoders().items():
        if options.types and name not in options.types:
            continue
        type = qkernels.get_type(name)
        with tempfile.TemporaryDirectory() as folder:
            program = _program(type, encoder, Path(folder), options)
            for kind in ("zeros", "cubed") if weighted else (None,):
                importance = data_kinds.importance(kind, _COLUMNS) if kind else None
                found = _run(type, encoder, rows, importance, program, options)
                difference = oracle.first_difference(found, oracle.quantize(rows, name, importance), name)
                wrong += bool(difference)
                blocks = rows.size // type.block
                print(f"{name}, importance {kind}: {difference or f'{blocks} blocks, all the same'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
