"""A block of columns as one launch: Triton kernels that do what columns.py does, for CUDA, ROCm and XPU.

A program has some rows of one matrix and goes through the block's columns one after another; what a column owes to the
others of the block stays in registers. Rows know nothing of each other, and every sum is taken column by column: the
bytes do not depend on how many rows a program has.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
import triton
import triton.language as tl

from quantmill.calibrate.columns import COLUMNS, Descending, Feeding, Levels
from quantmill.qkernels.lanes.triton import FAULTS as FAULTS
from quantmill.qkernels.lanes.triton import INTERPRETED, callee, current, options

ROWS = 16  # of a program; with 32 some kernels spill registers
WARPS = 4


@callee
@triton.jit
def _nearest(wanted, first, last, between, above, EVEN: tl.constexpr):
    """The legal value next to each wanted one; without a number, as bucketize has it, the last."""
    if EVEN:
        # below 2^22 this rounds to the even one of two; beyond, all is out of range in any case
        whole = ((wanted - first) + 12582912.0) - 12582912.0 + first
        return tl.minimum(tl.maximum(whole, first), last)
    # whole numbers: the sum is exact
    return first + tl.sum(tl.where(wanted[None, :] <= between[:, None], 0.0, above[:, None]), 0)


@triton.jit
def feed_kernel(
    p_left,
    p_chosen,
    p_errors,
    p_scale,
    p_inverse,
    p_low,
    p_factor,
    p_weight,
    p_between,
    p_above,
    first,
    last,
    begin,
    n_cols,
    n_rows,
    corner,
    by_matrix,
    by_row,
    by_column,
    EVEN: tl.constexpr,
    LOW: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """feed_columns of some rows; by_…: distances between numbers of the factor, corner: how far the
    block's first lies. What is left is not stored."""
    matrix = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < n_rows
    column = tl.arange(0, COLUMNS)
    n = tl.minimum(n_cols - begin, COLUMNS).to(tl.int32)
    between = tl.load(p_between + tl.arange(0, STEPS))
    above = tl.load(p_above + tl.arange(0, STEPS))
    start = (matrix * n_cols + begin) * n_rows + row
    tile = start[None, :] + column.to(tl.int64)[:, None] * n_rows
    left = tl.load(p_left + tile, mask=(column < n)[:, None] & live[None, :], other=0.0)
    factor = p_factor + matrix * by_matrix + corner
    for i in range(n):
        here = start + i * n_rows
        x = tl.sum(tl.where((column == i)[:, None], left, 0.0), 0)
        scale = tl.load(p_scale + here, mask=live, other=0.0)
        inverse = tl.load(p_inverse + here, mask=live, other=0.0)
        low = tl.zeros([ROWS], tl.float32)
        if LOW:
            low = tl.load(p_low + here, mask=live, other=0.0)
        value = _nearest((x + low) * inverse, first, last, between, above, EVEN)
        weight = tl.load(p_weight + matrix * n_cols + begin + i)
        error = (x - value * scale + low) * weight
        tl.store(p_chosen + here, value, mask=live)
        tl.store(p_errors + (matrix * n + i) * n_rows + row, error, mask=live)
        later = (column > i) & (column < n)
        owed = tl.load(factor + i * by_row + column.to(tl.int64) * by_column, mask=later, other=0.0)
        left -= owed[:, None] * error[None, :]


@triton.jit
def descend_kernel(
    p_target,
    p_values,
    p_error,
    p_slope,
    p_moved,
    p_scale,
    p_inverse,
    p_low,
    p_moments,
    p_weight,
    p_between,
    p_above,
    first,
    last,
    begin,
    n_cols,
    n_rows,
    group,
    corner,
    by_matrix,
    by_row,
    by_column,
    EVEN: tl.constexpr,
    LOW: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """descend_columns of some rows; by_…, corner: as in feed_kernel, of the moments."""
    matrix = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < n_rows
    column = tl.arange(0, COLUMNS)
    n = tl.minimum(n_cols - begin, COLUMNS).to(tl.int32)
    between = tl.load(p_between + tl.arange(0, STEPS))
    above = tl.load(p_above + tl.arange(0, STEPS))
    start = (matrix * n_cols + begin) * n_rows + row
    tile = start[None, :] + column.to(tl.int64)[:, None] * n_rows
    inside = (column < n)[:, None] & live[None, :]
    slope = tl.load(p_slope + tile, mask=inside, other=0.0)
    moments = p_moments + matrix * by_matrix + corner
    n_groups = n_cols // group
    for i in range(n):
        here = start + i * n_rows
        shared = (matrix * n_groups + (begin + i) // group) * n_rows + row
        own = tl.sum(tl.where((column == i)[:, None], slope, 0.0), 0)
        error = tl.load(p_error + here, mask=live, other=0.0)
        before = tl.load(p_values + here, mask=live, other=0.0)
        scale = tl.load(p_scale + shared, mask=live, other=0.0)
        inverse = tl.load(p_inverse + shared, mask=live, other=0.0)
        weight = tl.load(p_weight + matrix * n_cols + begin + i)
        wanted = error - own * weight + tl.load(p_target + here, mask=live, other=0.0)
        if LOW:
            wanted += tl.load(p_low + shared, mask=live, other=0.0)
        value = _nearest(wanted * inverse, first, last, between, above, EVEN)
        step = (value - before) * scale
        after = error + step
        tl.store(p_values + here, value, mask=live)
        tl.store(p_error + here, after, mask=live)
        tl.store(p_moved + (matrix * n + i) * n_rows + row, after - error, mask=live)
        pulled = moments + column.to(tl.int64) * by_row + i * by_column
        slope += tl.load(pulled, mask=column < n, other=0.0)[:, None] * step[None, :]
    tl.store(p_slope + tile, slope, mask=inside)


@functools.lru_cache(maxsize=64)
def _steps(legal: tuple[float, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Midpoints of neighbouring levels and how far apart these are, f32, filled up to a power of two with 0 apart."""
    size = max(2, triton.next_power_of_2(len(legal) - 1))
    pairs = list(itertools.pairwise(legal))
    between = [(a + b) / 2 for a, b in pairs] + [legal[-1]] * (size - len(pairs))
    above = [b - a for a, b in pairs] + [0.0] * (size - len(pairs))
    return torch.tensor(between, device=device), torch.tensor(above, device=device)


def _launch(
    kernel: Any, shape: torch.Size, levels: Levels, has_low: bool, rows: int, *arguments: torch.Tensor | int
) -> None:
    """arguments: tensors, then whole numbers. Between them go the levels, which even ones need no table of."""
    tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
    numbers = [one for one in arguments if not isinstance(one, torch.Tensor)]
    n_mat, _, n_rows = shape
    device = tensors[0].device
    tables = _steps(levels.legal[-2:] if levels.even else levels.legal, device)
    compiling = {}
    if not INTERPRETED:
        compiling = options(triton.runtime.driver.active.get_current_target().backend, WARPS)
    with current(device):
        kernel[(triton.cdiv(n_rows, rows), n_mat)](
            *tensors,
            *tables,
            levels.legal[0],
            levels.legal[-1],
            *numbers,
            EVEN=levels.even,
            LOW=has_low,
            COLUMNS=COLUMNS,
            ROWS=rows,
            STEPS=len(tables[0]),
            **compiling,
        )


def _place(square: torch.Tensor, begin: int) -> tuple[int, ...]:
    """Where a block on the diagonal of [n_mat, n_cols, n_cols] begins, and the distances between its numbers."""
    by_matrix, by_row, by_column = square.stride()
    return begin * (by_row + by_column), by_matrix, by_row, by_column


def feed_columns(work: Feeding, levels: Levels, begin: int, end: int, rows: int = ROWS) -> torch.Tensor:
    """As columns.feed_columns, but that the block's part of work.left stays. `rows` of a program do not matter."""
    _, n_cols, n_rows = shape = work.left.shape
    errors = work.left.new_empty(shape[0], end - begin, n_rows)
    low = work.scale if work.low is None else work.low
    lying = (work.left, work.chosen, errors, work.scale, work.inverse, low)
    _require_contiguous(*lying, work.weight_of)
    tensors = (*lying, work.factor, work.weight_of)
    numbers = (begin, n_cols, n_rows, *_place(work.factor, begin))
    _launch(feed_kernel, shape, levels, work.low is not None, rows, *tensors, *numbers)
    return errors


def descend_columns(work: Descending, levels: Levels, begin: int, end: int, rows: int = ROWS) -> torch.Tensor:
    """As columns.descend_columns. `rows` of a program do not matter."""
    _, n_cols, n_rows = shape = work.target.shape
    moved = work.error.new_empty(shape[0], end - begin, n_rows)
    low = work.scale if work.low is None else work.low
    lying = (work.target, work.values, work.error, work.slope, moved, work.scale, work.inverse, low)
    _require_contiguous(*lying, work.weight_of)
    tensors = (*lying, work.moments, work.weight_of)
    numbers = (begin, n_cols, n_rows, work.group, *_place(work.moments, begin))
    _launch(descend_kernel, shape, levels, work.low is not None, rows, *tensors, *numbers)
    return moved


def _require_contiguous(*tensors: torch.Tensor) -> None:
    if not all(one.is_contiguous() for one in tensors):
        raise RuntimeError("a tensor is not laid out column by column")
