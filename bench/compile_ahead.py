"""Compile every Triton kernel for GPUs that are not here, and read from the result what can be known without one."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quantmill.calibrate import column_kernels
from quantmill.calibrate.columns import COLUMNS
from quantmill.qkernels.decoders import decoders
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.lanes import triton_decode
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.encoder import Encoder, Phase, kernel_name, kinds_of, pointers
from quantmill.qkernels.lanes.triton import (
    kernel_of,
    n_warps,
    options,
    row_sigma_kernel,
)
from quantmill.qkernels.types import TYPES, QuantType, Search, readable_type

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_POINTERS = {"f32": "*fp32", "i32": "*i32", "u8": "*u8", "float32": "*fp32", "int32": "*i32"}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Kernel:
    """A kernel: Triton's types of its parameters, warps of a program, threads that a block of weights takes."""

    name: str
    function: Any
    signature: dict[str, str]
    warps: int
    lanes: int
    block: int


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel. `text`: PTX or AMD assembly; `spills` in bytes or registers."""

    registers: int
    spills: int
    text: str
    llir: str
    cubin: bytes | None


def _kernel(encoder: Encoder, phase: Phase, block: int) -> Kernel:
    kinds = kinds_of(encoder)
    signature = {f"p_{name}": _POINTERS[kinds[name]] for name in pointers(phase)}
    name = (
        f"{encoder.module_of(phase).removeprefix('programs.')}.{kernel_name(phase).removesuffix('_kernel')}"
    )
    signature |= {"n": "i64", "per_row": "i64"}
    return Kernel(name, kernel_of(encoder, phase), signature, n_warps(phase), phase.lanes, block)


def kernels_of(encoder: Encoder, block: int) -> list[Kernel]:
    """The kernels that encode one type, in order."""
    rows = {"p_rows": "*fp32", "p_sigma": "*fp32", "n_rows": "i64", "n_cols": "i64"}
    before = (
        [Kernel("row_sigma", row_sigma_kernel, rows, n_warps(None), 1, block)]
        if encoder.uses_row_sigma
        else []
    )
    return before + [_kernel(encoder, phase, block) for phase in encoder.phases]


def decoding_kernel(type: QuantType, decoder: Decoder, numbers: str) -> Kernel:
    """The kernel that decodes one type; `numbers`: Triton's type of a pointer to them."""
    kinds = {name: str(make().dtype) for name, make in decoder.tables.items()}
    tables = {f"p_{name}": _POINTERS[kind] for name, kind in kinds.items()}
    signature = {"p_blocks": "*u8", "p_y": numbers, **tables, "n": "i64"}
    function = triton_decode.kernel_of(type, decoder)
    name = f"{decoder.module}.{decoder.function}"
    return Kernel(name, function, signature, triton_decode.N_WARPS, decoder.lanes, type.block)


def searching_kernels(search: Search = "default") -> Iterator[Kernel]:
    """Every kernel that encodes, once."""
    seen: set[Any] = set()
    for (type_name, _), encoder in encoders(search).items():
        for kernel in kernels_of(encoder, TYPES[type_name].block):
            if kernel.function not in seen:
                seen.add(kernel.function)
                yield kernel


def all_kernels() -> Iterator[Kernel]:
    """Every kernel of the default searches and of decoding, once."""
    yield from searching_kernels()
    for type_name, decoder in decoders().items():
        yield decoding_kernel(readable_type(type_name), decoder, "*fp32")


def compile_for(kernel: Kernel, target: GPUTarget) -> Compiled:
    """Compile with the options that the engine passes; needs no GPU."""
    constants = {"BLOCK": kernel.warps * target.warp_size}
    return _compiled(kernel.function, kernel.signature, constants, kernel.warps, target)


def compile_columns(target: GPUTarget) -> dict[str, Compiled]:
    """The kernels that go through blocks of columns, for even levels and uneven ones, without minimums and with."""
    found = {}
    for function in (column_kernels.feed_kernel, column_kernels.descend_kernel):
        signature = {name: "*fp32" if name.startswith("p_") else "i32" for name in function.arg_names}
        signature |= {"first": "fp32", "last": "fp32", "corner": "i64", "by_matrix": "i64"}
        for even, low in itertools.product((True, False), repeat=2):
            constants = {"EVEN": even, "LOW": low, "COLUMNS": COLUMNS, "ROWS": column_kernels.ROWS}
            constants["STEPS"] = 2 if even else 16
            made = _compiled(function, signature, constants, column_kernels.WARPS, target)
            found[f"{function.__name__} even={even} low={low}"] = made
    return found


def _compiled(
    function: Any, kinds: dict[str, str], constants: dict[str, Any], warps: int, target: GPUTarget
) -> Compiled:
    names = list(function.arg_names)
    signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
    at = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(function, signature, at)
    done = triton.compile(source, target=target, options=options(target.backend, warps))
    if target.backend == "hip":
        text = done.asm["amdgcn"]
        vgprs, spilled = (_amd_field(text, field) for field in ("vgpr_count", "vgpr_spill_count"))
        return Compiled(vgprs, spilled + _amd_field(text, "sgpr_spill_count"), text, done.asm["llir"], None)
    cubin = done.asm["cubin"]
    registers, spills = _resources(cubin)
    return Compiled(registers, spills, done.asm["ptx"], done.asm["llir"], cubin)


def _amd_field(text: str, field: str) -> int:
    (value,) = re.findall(rf"^\s+\.{field}:\s+(\d+)$", text, re.MULTILINE)
    return int(value)


def run_tool(tool: str, cubin: bytes, *arguments: str) -> str:
    """What one of NVIDIA's binary tools, shipped with Triton, prints about a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / tool), *arguments, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _resources(cubin: bytes) -> tuple[int, int]:
    usage = run_tool("cuobjdump", cubin, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if not found:
        raise RuntimeError(f"cuobjdump printed no resource usage: {usage!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local
