"""The Triton engine: one kernel a phase, one lane a thread, for CUDA, ROCm and XPU.

For each phase a kernel is written as text around its program. Arrays stay on the device from the rows to the packed
bytes. Offsets are 64-bit: stacked experts exceed 2^31 elements.
"""

from __future__ import annotations

import functools
import linecache
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

from quantmill.qkernels.lanes.encoder import Encoder, Phase, kernel_name, most_lanes, pointers
from quantmill.qkernels.lanes.loader import load
from quantmill.qkernels.lanes.tensors import packed_rows, tile_of
from quantmill.qkernels.lanes.triton_words import WORDS
from quantmill.qkernels.types import QuantType

# What its compiler raises, beside what all engines may.
FAULTS = (triton.TritonError,)
# Under TRITON_INTERPRET=1 triton.jit makes something else.
INTERPRETED = not isinstance(WORDS["ld"], triton.JITFunction)
# "importance" is the same for all rows, so a block reads it by its place in the row; "row_sigma" by its row.
_PLACES = {"importance": ("b % per_row", "per_row"), "row_sigma": ("b // per_row", "1")}


def callee(function: Any) -> Any:
    """What kernels and programs call. The interpreter would search triton.language for things to replace on each call
    of a Triton function; the kernel's own call has done that, and a plain function halves the time."""
    return (lambda *arguments: function.rewrite()(*arguments)) if INTERPRETED else function


def n_warps(phase: Phase | None) -> int:
    """Warps of a kernel's program; where threads wait for the longest of their lists of neighbours, only one."""
    return 1 if phase is not None and "near" in phase.arguments else 4


def options(backend: str, warps: int) -> dict[str, Any]:
    """How a kernel is compiled for a backend of Triton ("cuda", "hip", "xpu").

    Fusing a multiplication and an addition would round once where the reference rounds twice; the default differs
    between versions of Triton, so it is always said. ptxas left alone aims at 32 registers and spills a few of some
    kernels; told a higher limit it needs no stack. The walks along neighbours keep their group of weights at hand.
    """
    chosen: dict[str, Any] = {"num_warps": warps, "enable_fp_fusion": False}
    return chosen | {"maxnreg": 168 if warps == 1 else 128} if backend == "cuda" else chosen


@functools.cache
def _programs(module: str) -> dict[str, Any]:
    words = {name: callee(word) for name, word in WORDS.items()}
    return load(module, {**words, "tl": tl}, lambda function: callee(triton.jit(function)))


def _operand(encoder: Encoder, argument: str | float) -> str:
    """How a kernel passes an argument to the program: a number, a table, or an array (see triton_words)."""
    if not isinstance(argument, str):
        return repr(argument)
    if argument in encoder.tables:
        return f"p_{argument}"
    if argument in encoder.private:
        # [elements, lanes, blocks]: with j = 0 … lanes-1 the thread's own number is its place
        return f"(p_{argument} + lane, n * {most_lanes(encoder)}, live)"
    place, distance = _PLACES.get(argument, ("b", "n"))
    return f"(p_{argument} + {place}, {distance}, live)"


def _text(encoder: Encoder, phase: Phase) -> str:
    """The source of a phase's kernel: its lanes times n blocks, neighbouring threads on neighbouring blocks."""
    passed = ", ".join(_operand(encoder, argument) for argument in phase.arguments)
    parameters = "".join(f"p_{name}, " for name in pointers(phase))
    return f"""\
def {kernel_name(phase)}({parameters}n: "i64", per_row: "i64", BLOCK: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = lane < n * {phase.lanes}
    j = (lane // n).to(tl.int32)
    b = lane % n
    {phase.function}(j, {passed})
"""


@functools.cache
def defined(module: str, name: str, text: str) -> Any:
    """The Triton function of a kernel's source, which Triton reads once more through linecache."""
    file = f"<{module}.{name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace = dict(_programs(module))
    exec(compile(text, file, "exec"), namespace)
    return triton.jit(namespace[name])


def kernel_of(encoder: Encoder, phase: Phase) -> Any:
    """The kernel of one phase; encoders that share a program with the same constants share the kernel."""
    return defined(encoder.module_of(phase), kernel_name(phase), _text(encoder, phase))


_sum_of_squares = _programs("programs.common")["sum_of_squares"]


@triton.jit
def row_sigma_kernel(p_rows, p_sigma, n_rows, n_cols, BLOCK: tl.constexpr):
    """Mean square of each row, a thread a row, added from left to right."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < n_rows
    total = _sum_of_squares((p_rows + row * n_cols, 1, live), 0, n_cols)
    tl.store(p_sigma + row, tl.div_rn(total, tl.full([BLOCK], n_cols, tl.float32)), mask=live)


def launch(kernel: Any, warps: int, n_lanes: int, *arguments: torch.Tensor | int) -> None:
    """A lane is a thread's own: with as many lanes as threads, what a thread stored is what it loads again."""
    if INTERPRETED:
        block, compiling = triton.next_power_of_2(n_lanes), {}
    else:
        target = triton.runtime.driver.active.get_current_target()
        block, compiling = warps * target.warp_size, options(target.backend, warps)
    kernel[(triton.cdiv(n_lanes, block),)](*arguments, BLOCK=block, **compiling)


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be where the tensors are."""
    if device.type == "cpu":
        return nullcontext()
    return torch.xpu.device(device) if device.type == "xpu" else torch.cuda.device(device)


def encode(
    type: QuantType, encoder: Encoder, rows: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """rows [n_rows, n_cols] f32, importance [n_cols] f32 or None → blocks [n_rows, row_bytes] u8, all on one GPU."""
    tile = tile_of(type, encoder, rows, importance)
    operands = {**tile.arrays, **tile.tables}
    n = tile.n_rows * tile.per_row
    with current(rows.device):
        if encoder.uses_row_sigma:
            operands["row_sigma"] = torch.empty((1, tile.n_rows, 1), device=rows.device)
            launch(row_sigma_kernel, n_warps(None), tile.n_rows, rows, operands["row_sigma"], *rows.shape)
        for phase in encoder.phases:
            arguments = [operands[name] for name in pointers(phase)]
            launch(kernel_of(encoder, phase), n_warps(phase), n * phase.lanes, *arguments, n, tile.per_row)
    return packed_rows(tile.arrays["out"])


def registers(encoder: Encoder) -> int | None:
    """The most registers that a thread of the encoder's kernels has, of those that this process has run."""
    found = []
    for phase in encoder.phases:
        for caches in getattr(kernel_of(encoder, phase), "device_caches", {}).values():
            found += [getattr(kernel, "n_regs", None) for kernel in caches[0].values()]
    return max((n for n in found if n), default=None)
