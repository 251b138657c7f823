"""torch.mps.compile_shader without a Mac: Metal source compiled as C++ through metal_shim.h, run on the CPU's tensors.

It binds arguments as torch does (tensors as buffers, a list of integers as 64-bit numbers) and refuses what torch or
Metal would refuse: another number of arguments, tensors of another type, tensors with gaps, too large a group.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SHIM = Path(__file__).with_name("metal_shim.h")
# -O1: the text is straight-line, and compiled once for a few blocks. Warnings are errors: in Metal as in C++ a silent
# conversion would be one of ours that nobody meant.
COMPILE = (
    *("g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC"),
    *(
        "-Wno-attributes",
        "-Wconversion",
        "-Wsign-conversion",
        "-Wfloat-conversion",
        "-Wdouble-promotion",
        "-Werror",
    ),
)
DTYPES = {
    "float": {torch.float32},
    "int": {torch.int32},
    "uchar": {torch.uint8},
    "ushort": {torch.float16, torch.bfloat16},
}
_KERNEL = re.compile(r"^kernel void (\w+)\(\n(.*?)\n\) \{", re.DOTALL | re.MULTILINE)
_POINTER = re.compile(r"    (device|constant) (const )?(\w+)\* (\w+) \[\[buffer\((\d+)\)\]\],")


@dataclass(frozen=True)
class Parameter:
    space: str
    kind: str
    name: str


def kernels_in(source: str) -> dict[str, list[Parameter]]:
    """The kernels of a Metal source and their buffers, in order."""
    found = {}
    for name, text in _KERNEL.findall(source):
        buffers = [_POINTER.fullmatch(line) for line in text.split("\n")[:-1]]
        assert all(buffers), text
        assert [int(b[5]) for b in buffers if b] == list(range(len(buffers)))
        found[name] = [Parameter(b[1], b[3], b[4]) for b in buffers if b]
    return found


def as_cpp(source: str) -> str:
    """The source with a function beside each kernel that runs it for some threads."""
    text = source.replace("#include <metal_stdlib>\n", f'#include "{SHIM.name}"\n')
    for name, buffers in kernels_in(source).items():
        given = ", ".join(f"({b.kind}*)p[{i}]" for i, b in enumerate(buffers))
        text += (
            f'extern "C" void run_{name}(void** p, uint threads, int flushing) {{\n'
            f"    Rounding rounding(flushing);\n"
            f"    for (uint t = 0; t < threads; ++t) {name}({given}, t);\n}}\n"
        )
    return text


class Kernel:
    max_threads_per_threadgroup = 256

    def __init__(self, run: Any, buffers: list[Parameter], flushing: bool) -> None:
        self._run, self._buffers, self._flushing = run, buffers, flushing

    def __call__(self, *arguments: Any, threads: int, group_size: int) -> None:
        assert len(arguments) == len(self._buffers)
        assert 0 < group_size <= self.max_threads_per_threadgroup
        assert isinstance(threads, int)
        pointers = (ctypes.c_void_p * len(arguments))()
        kept = []
        for i, (argument, buffer) in enumerate(zip(arguments, self._buffers, strict=True)):
            if isinstance(argument, torch.Tensor):
                assert buffer.space == "device"
                assert argument.dtype in DTYPES[buffer.kind], buffer
                assert argument.is_contiguous(), buffer
                pointers[i] = argument.data_ptr()
            else:
                assert (buffer.space, buffer.kind) == ("constant", "long")
                kept.append((ctypes.c_int64 * len(argument))(*argument))
                pointers[i] = ctypes.addressof(kept[-1])
        self._run(pointers, ctypes.c_uint(threads), int(self._flushing))


class Library:
    def __init__(self, path: Path, source: str, flushing: bool) -> None:
        code = ctypes.CDLL(str(path))
        for name, buffers in kernels_in(source).items():
            setattr(self, name, Kernel(getattr(code, f"run_{name}"), buffers, flushing))


class Compiler:
    """What stands for torch.mps.compile_shader. `flushing`: sub-normal numbers become zero, as a GPU may do."""

    def __init__(self, folder: Path, flushing: bool = False) -> None:
        self._folder, self.flushing = folder, flushing

    def __call__(self, source: str) -> Library:
        source.encode("ascii")
        path = self._folder / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            compile_all(self._folder, [source])
        return Library(path, source, self.flushing)


def compile_all(folder: Path, sources: Sequence[str]) -> None:
    """Shared objects of sources, in the folder under their hashes."""
    for source in sources:
        name = hashlib.sha256(source.encode()).hexdigest()[:16]
        text = folder / f"{name}.cpp"
        text.write_text(as_cpp(source))
        command = [*COMPILE, "-include", str(SHIM), "-I", str(SHIM.parent), str(text), "-o"]
        done = subprocess.run([*command, f"{text}.part"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        Path(f"{text}.part").rename(folder / f"{name}.so")
