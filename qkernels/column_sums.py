"""Σ x² and Σ x of the columns of a matrix, on any device.

On a CPU in one walk, compiled, in float64; elsewhere as torch's operations, in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from quantmill.qkernels.lanes import native
from quantmill.qkernels.lanes.cpu_column_shape import LANES

SLAB = 1 << 17  # values squared at a time by torch on a CPU


@functools.cache
def _functions(processor: native.Processor) -> dict[str, Callable[..., int]]:
    def text() -> str:
        from quantmill.qkernels.lanes.cpu_column_driver import text_of

        return text_of(processor)

    return native.functions("columns", text, {"squares": (3, 3), "sums": (3, 3)}, processor)


def of_columns(rows: torch.Tensor, with_sums: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    """rows [n_rows, n_cols] of any floating type → Σ x² and, where it is wanted, Σ x of each column, f32 [n_cols]."""
    n_rows, n_cols = rows.shape
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or n_cols % LANES or rows.stride(1) != 1:
        return _by_torch(rows, with_sums)
    squares = torch.empty(n_cols, dtype=torch.float64)
    sums = torch.empty_like(squares) if with_sums else squares
    function = _functions(native.host())["sums" if with_sums else "squares"]
    stride = rows.stride(0) * rows.element_size()
    function(rows.data_ptr(), squares.data_ptr(), sums.data_ptr(), stride, n_rows, n_cols)
    return squares.float(), sums.float() if with_sums else None


def _by_torch(rows: torch.Tensor, with_sums: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    # on a CPU a few rows at a time, so that the squares never leave the cache
    step = max(1, SLAB // rows.shape[1]) if rows.device.type == "cpu" else max(1, len(rows))
    squares = torch.zeros(rows.shape[1], device=rows.device)
    sums = torch.zeros_like(squares) if with_sums else None
    for begin in range(0, len(rows), step):
        part = rows[begin : begin + step].float()
        squares += part.square().sum(0)
        if sums is not None:
            sums += part.sum(0)
    return squares, sums
