"""The torch engine: lane programs on tensors, the readable reference, on any device torch has, MPS among them.

A lane value is a tensor [n_rows, per_row], or [lanes, n_rows, per_row] where a phase splits a block into lanes: `j`
is then the array of lane numbers, and `ld(X, j * N + i)` is a view of every N-th element. Only float32 and integers
up to 32 bits are used, never a number divided by a tensor (torch would multiply by the reciprocal), and no operation
that one of the devices lacks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from quantmill.qkernels.lanes.encoder import Encoder, Phase
from quantmill.qkernels.lanes.loader import load
from quantmill.qkernels.lanes.tensors import packed_rows, tile_of
from quantmill.qkernels.lanes.torch_arrays import Array, Index
from quantmill.qkernels.types import QuantType


def _ld(array: Array, index: Index) -> torch.Tensor:
    return array.load(index)


def _st(array: Array, index: Index, value: torch.Tensor) -> None:
    array.store(index, value)


def _ldb(array: Array, index: Index) -> torch.Tensor:
    return array.load(index).int()


def _stb(array: Array, index: Index, value: torch.Tensor | int) -> None:
    low = value & 255
    array.store(index, low.to(torch.uint8) if isinstance(low, torch.Tensor) else low)


def _take(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return table.index_select(0, index.reshape(-1)).view(index.shape)


def _cst(table: torch.Tensor, index: int) -> torch.Tensor | int:
    """An integer may be an index."""
    value = table[index]
    return value if value.dtype == torch.float32 else int(value)


def _zeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like, dtype=torch.float32)


def _izeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like, dtype=torch.int32)


def _full(like: torch.Tensor, value: torch.Tensor | float) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.expand(like.shape)
    return torch.full_like(like, value, dtype=torch.float32)


def _number(like: torch.Tensor, lanes: Index) -> torch.Tensor | int:
    if isinstance(lanes, int):
        return lanes
    return torch.tensor(lanes, dtype=torch.int32, device=like.device).view(-1, 1, 1)


def _where(mask: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    chosen = torch.where(mask, a, b)
    # of two Python integers torch makes 64 bits
    return chosen.int() if chosen.dtype == torch.int64 else chosen


def _sqrt(value: torch.Tensor) -> torch.Tensor:
    # torch's CPU kernel for large arrays (MKL) is one unit off for some values; numpy's is correctly rounded
    if value.device.type == "cpu":
        return torch.from_numpy(np.sqrt(value.numpy()))
    return value.sqrt()


def _nint(value: torch.Tensor, rounder: float = 12582912.0) -> torch.Tensor:
    found = ((value + rounder).view(torch.int32) & 0x7FFFFF) - 0x400000
    # a GPU's own NaN is 0x7fffffff: of its bits the trick would make a large number, of a processor's 0
    return found.masked_fill_(value.isnan(), 0)


def _trunc(value: torch.Tensor) -> torch.Tensor:
    fits = value.abs() < 2147483648.0
    whole = torch.where(fits, value, torch.zeros_like(value)).int()
    return torch.where(fits, whole, torch.full_like(whole, -(2**31)))


def _lev(value: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return _nint(value).clamp(low, high).float()


def _h2f(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.int16).view(torch.float16).float()


def _smaller(a: torch.Tensor, b: torch.Tensor | int) -> torch.Tensor:
    return torch.minimum(a, b) if isinstance(b, torch.Tensor) else a.clamp(max=b)


def _larger(a: torch.Tensor, b: torch.Tensor | int) -> torch.Tensor:
    return torch.maximum(a, b) if isinstance(b, torch.Tensor) else a.clamp(min=b)


def _of_lanes(values: torch.Tensor, shape: torch.Size, lanes: torch.Tensor) -> torch.Tensor:
    """The values of some lanes, by their numbers in the flattened shape."""
    return values.expand(shape).reshape(-1).index_select(0, lanes)


def _walk(
    u: torch.Tensor,
    value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    groups: tuple[Array, Array],
    place: Index,
    scale: torch.Tensor,
    lists: torch.Tensor,
    near: torch.Tensor,
    n_bits: int,
    dim: int,
) -> torch.Tensor:
    """The nearest neighbours of lanes that are off the grid, 16 of each lane's list at a time.

    `value` makes of digits [m, 16] and lane numbers [m] what they stand for, before the scale.
    """
    listed = _take(lists, u).reshape(-1)
    lanes = listed.nonzero().view(-1)
    x, weight = (
        torch.stack([_of_lanes(_ld(array, place + k), u.shape, lanes) for k in range(dim)])
        for array in groups
    )
    step = _of_lanes(scale, u.shape, lanes)
    listed = listed.index_select(0, lanes)
    found = u.reshape(-1).index_select(0, lanes)
    best = torch.full_like(step, torch.finfo(torch.float32).max)
    run = torch.arange(16, dtype=torch.int32, device=u.device)
    count = listed & 1023
    for first in range(0, int(count.max()) if len(lanes) else 0, 16):
        going = (count > first).nonzero().view(-1)
        start = (listed.index_select(0, going) >> 10) * 16 + first
        codes = _take(near, start[:, None] + run)
        distance = torch.zeros_like(codes, dtype=torch.float32)
        for k in range(dim):
            digit = (codes >> (n_bits * k)) & ((1 << n_bits) - 1)
            d = step[going, None] * value(digit, lanes[going]) - x[k, going, None]
            distance = distance + weight[k, going, None] * d * d
        least = distance.amin(1)
        # of equally near neighbours the first; argmin does not promise which
        position = torch.where(distance == least[:, None], run, torch.full_like(run, 16)).amin(1)
        code = codes.gather(1, position.clamp(max=15).long()[:, None]).view(-1)
        nearer = least < best[going]
        best[going] = torch.where(nearer, least, best[going])
        found[going] = torch.where(nearer, code, found[going])
    result = u.reshape(-1).clone()
    result[lanes] = found
    return result.view(u.shape)


def _nearest(
    u: torch.Tensor,
    weights: Array,
    roots: Array,
    place: Index,
    scale: torch.Tensor,
    lists: torch.Tensor,
    near: torch.Tensor,
    dim: int,
    n_bits: int,
) -> torch.Tensor:
    groups = (weights, roots)
    return _walk(
        u, lambda digit, lanes: (digit * 2 + 1).float(), groups, place, scale, lists, near, n_bits, dim
    )


def _nearest_shifted(
    u: torch.Tensor,
    weights: Array,
    importance: Array,
    place: Index,
    scale: torch.Tensor,
    low: torch.Tensor,
    lists: torch.Tensor,
    near: torch.Tensor,
    notes: torch.Tensor,
) -> torch.Tensor:
    def value(digit: torch.Tensor, lanes: torch.Tensor) -> torch.Tensor:
        return digit.float() + _of_lanes(low, u.shape, lanes)[:, None]

    return _walk(u, value, (weights, importance), place, scale, lists, near, 2, 8)


WORDS: Mapping[str, Callable[..., Any]] = {
    "ld": _ld,
    "st": _st,
    "ldb": _ldb,
    "stb": _stb,
    "cst": _cst,
    "take": _take,
    "pick": lambda table, first, index: _take(table, (index & 31) + first),
    "zeros": _zeros,
    "izeros": _izeros,
    "full": _full,
    "number": _number,
    "where": _where,
    "div": torch.div,
    "sqrt": _sqrt,
    "fabs": torch.abs,
    "neg": torch.neg,
    "nint": _nint,
    "nhalf": lambda value: _nint(value, 25165824.0),
    "lev": _lev,
    "rnear": lambda value: (value + 12582912.0) - 12582912.0,
    "trunc": _trunc,
    "i2f": lambda value: value.float(),
    "f2h": lambda value: value.half().view(torch.int16).int() & 0xFFFF,
    "h2f": _h2f,
    "bits": lambda value: value.view(torch.int32),
    "from_bits": lambda value: value.view(torch.float32),
    "imin": _smaller,
    "imax": _larger,
    # asking the device would wait for it; working on lanes that are done changes nothing
    "any_": lambda mask: True,
    "put": lambda array, index, value: None,
    "get": lambda array, index, value: value,
    "nearest": _nearest,
    "nearest_shifted": _nearest_shifted,
}


@functools.cache
def programs(module: str) -> dict[str, Any]:
    """The functions of a module of lane programs, "programs.scale" or "decode.grid", with these words."""
    return load(module, WORDS, lambda function: function)


def _row_sigma(rows: torch.Tensor) -> torch.Tensor:
    """rows [n_rows, n_cols] f32 → [1, n_rows, 1] mean square of each row, added from left to right."""
    n_rows, n_cols = rows.shape
    total = programs("programs.common")["sum_of_squares"](Array(rows.t().contiguous()), 0, n_cols)
    return torch.div(total, torch.full_like(total, n_cols)).view(1, n_rows, 1)


def _run(encoder: Encoder, phase: Phase, arrays: dict[str, torch.Tensor], tables: Mapping[str, Any]) -> None:
    j = np.arange(phase.lanes) if phase.lanes > 1 else 0
    own = (slice(None), slice(phase.lanes) if phase.lanes > 1 else 0)
    used = {a for a in phase.arguments if isinstance(a, str) and a not in tables}
    wrapped = {a: Array(arrays[a], own if a in encoder.private else ...) for a in used}
    operands = {**wrapped, **tables}
    arguments = (operands[a] if isinstance(a, str) else a for a in phase.arguments)
    programs(encoder.module_of(phase))[phase.function](j, *arguments)
    arrays.update({name: array.whole for name, array in wrapped.items()})


def encode(
    type: QuantType, encoder: Encoder, rows: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """rows [n_rows, n_cols] f32, importance [n_cols] f32 or None → blocks [n_rows, row_bytes] u8, on one device."""
    tile = tile_of(type, encoder, rows, importance)
    arrays = dict(tile.arrays)
    if encoder.uses_row_sigma:
        arrays["row_sigma"] = _row_sigma(rows)
    for phase in encoder.phases:
        _run(encoder, phase, arrays, tile.tables)
    return packed_rows(arrays["out"])


def risky(rows: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
    """rows [n_rows, n_cols] f32 → bool [n_rows]: not for a GPU that flushes sub-normal numbers."""
    groups = rows.reshape(len(rows), -1, 32).permute(2, 0, 1)
    flags = torch.empty((1, *groups.shape[1:]), dtype=torch.int32, device=rows.device)
    found = Array(flags)
    programs("programs.risky")["risky_weights"](0, Array(groups), found, *bounds)
    return found.whole[0].any(1)
