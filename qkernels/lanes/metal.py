"""The Metal engine: kernels made from the lane programs, compiled and started by torch on Apple's GPUs.

torch.mps.compile_shader takes Metal source in ASCII and compiles it with Metal's safe mathematics (no reassociation,
precise functions) unless PYTORCH_MPS_FAST_MATH is set; a kernel takes tensors as buffers, in order, and a list of
integers as one buffer of 64-bit numbers. A grid has as many threads as asked for; torch starts it on its own stream.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from quantmill.qkernels.engines import require_exact
from quantmill.qkernels.lanes.encoder import Encoder, Phase, pointers
from quantmill.qkernels.lanes.metal_source import (
    RISKY,
    ROW_SIGMA,
    encoder_source,
    phase_name,
    risky_source,
)
from quantmill.qkernels.lanes.tensors import packed_rows, tile_of
from quantmill.qkernels.types import QuantizeError, QuantType

INTERPRETED = False
# Threads of a group: several of the 32 that run in step, where the kernel's registers allow it.
_GROUP = 128
# Where threads walk lists of their own, none should wait for more than those it runs in step with.
_WALKING_GROUP = 32
# Numbers of threads are 32 bits wide.
_MOST_THREADS = 2**32 - 1


@functools.cache
def library(source: str) -> Any:
    """The kernels of a source, compiled once a process. Raises QuantizeError, and torch's errors of a compiler."""
    require_exact("mps")
    if not hasattr(torch.mps, "compile_shader"):
        raise QuantizeError(f"torch {torch.__version__} cannot compile for Metal: pip install 'torch>=2.7'")
    return torch.mps.compile_shader(source)


@functools.cache
def _kernel(source: str, name: str) -> Any:
    return getattr(library(source), name)


def start(source: str, name: str, n_threads: int, arguments: list[Any], group: int = _GROUP) -> None:
    """A kernel on the current stream; it may still run when this returns."""
    assert n_threads <= _MOST_THREADS
    kernel = _kernel(source, name)
    kernel(*arguments, threads=n_threads, group_size=min(group, kernel.max_threads_per_threadgroup))


def _group(phase: Phase) -> int:
    return _WALKING_GROUP if "near" in phase.arguments else _GROUP


def encode(
    type: QuantType, encoder: Encoder, rows: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """rows [n_rows, n_cols] f32, importance [n_cols] f32 or None → blocks [n_rows, row_bytes] u8, on the GPU."""
    tile = tile_of(type, encoder, rows, importance)
    operands = {**tile.arrays, **tile.tables}
    source = encoder_source(encoder)
    sizes = [tile.n_rows * tile.per_row, tile.per_row]
    if encoder.uses_row_sigma:
        sigma = torch.empty((1, tile.n_rows, 1), device=rows.device)
        operands["row_sigma"] = sigma
        start(source, ROW_SIGMA, tile.n_rows, [rows, sigma, list(rows.shape)])
    for phase in encoder.phases:
        arguments = [operands[name] for name in pointers(phase)]
        threads = sizes[0] * phase.lanes
        start(source, phase_name(encoder, phase), threads, [*arguments, sizes], _group(phase))
    return packed_rows(tile.arrays["out"])


def risky(rows: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
    """rows [n_rows, n_cols] f32, contiguous → bool [n_rows]: not for a GPU that flushes sub-normal numbers."""
    groups = rows.numel() // 32
    flags = torch.empty(groups, dtype=torch.int32, device=rows.device)
    start(risky_source(), RISKY, groups, [rows, flags, [groups, *bounds]])
    return flags.view(len(rows), -1).any(1)
