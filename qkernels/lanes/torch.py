"""The torch engine: lane programs on tensors, the readable reference, on any device torch has, MPS among them.

A lane value is a tensor [n_rows, per_row], or [lanes, n_rows, per_row] where a phase splits a block into lanes: `j`
is then the array of lane numbers, and `ld(X, j * N + i)` is a view of every N-th element. Only float32 and integers
up to 32 bits are used, never a number divided by a tensor (torch would multiply by the reciprocal), and no operation
that one of the devices lacks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from qkernels.lanes.encoder import Encoder, Phase
from qkernels.lanes.loader import load
from qkernels.lanes.tensors import Tile, packed_rows, tile_of
from qkernels.types import QuantType

Index = int | np.ndarray


def _at(index: Index) -> Any:
    """What selects the elements of a lane index: a number, a slice (a view, no copy), or a list."""
    if isinstance(index, int):
        return index
    distance = np.diff(index)
    if distance.size and distance[0] > 0 and (distance == distance[0]).all():
        return slice(int(index[0]), int(index[-1]) + 1, int(distance[0]))
    return index.tolist()


def _ld(array: torch.Tensor, index: Index) -> torch.Tensor:
    return array[_at(index)]


def _st(array: torch.Tensor, index: Index, value: torch.Tensor) -> None:
    array[_at(index)] = value


def _ldb(array: torch.Tensor, index: Index) -> torch.Tensor:
    return array[_at(index)].int()


def _stb(array: torch.Tensor, index: Index, value: torch.Tensor | int) -> None:
    low = value & 255
    array[_at(index)] = low.to(torch.uint8) if isinstance(low, torch.Tensor) else low


def _cst(table: torch.Tensor, index: int) -> torch.Tensor:
    return table[index]


def _take(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return table.index_select(0, index.reshape(-1)).view(index.shape)


def _pick(table: torch.Tensor, first: int, index: torch.Tensor) -> torch.Tensor:
    return _take(table, (index & 31) + first)


def _zeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like, dtype=torch.float32)


def _izeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like, dtype=torch.int32)


def _full(like: torch.Tensor, value: torch.Tensor | float) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.expand(like.shape)
    return torch.full_like(like, value, dtype=torch.float32)


def _where(mask: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    chosen = torch.where(mask, a, b)
    # of two Python integers torch makes 64 bits
    return chosen.int() if chosen.dtype == torch.int64 else chosen


def _sqrt(value: torch.Tensor) -> torch.Tensor:
    # torch's CPU kernel for large arrays (MKL) is one unit off for some values; numpy's is correctly rounded
    if value.device.type == "cpu":
        return torch.from_numpy(np.sqrt(value.numpy()))
    return value.sqrt()


def _nint(value: torch.Tensor) -> torch.Tensor:
    return ((value + 12582912.0).view(torch.int32) & 0x7FFFFF) - 0x400000


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


def _nearest(
    u: torch.Tensor,
    weights: torch.Tensor,
    roots: torch.Tensor,
    place: Index,
    scale: torch.Tensor,
    lists: torch.Tensor,
    near: torch.Tensor,
    notes: torch.Tensor,
    slot: int,
    dim: int,
    n_bits: int,
) -> torch.Tensor:
    """`nearest` for the lanes whose code is off the grid, sixteen neighbours of each at a time."""
    listed = _take(lists, u).reshape(-1)
    lanes = listed.nonzero().view(-1)
    values, root, step = (
        torch.stack([array.expand(u.shape).reshape(-1).index_select(0, lanes) for array in arrays])
        for arrays in (
            [_ld(weights, place + k) for k in range(dim)],
            [_ld(roots, place + k) for k in range(dim)],
            [scale],
        )
    )
    listed = listed.index_select(0, lanes)
    start, count = (listed >> 10) * 16, listed & 1023
    found = u.reshape(-1).index_select(0, lanes)
    best = torch.full_like(step[0], torch.finfo(torch.float32).max)
    run = torch.arange(16, dtype=torch.int32, device=u.device)
    longest = int(count.max()) if len(lanes) else 0
    for first in range(0, longest, 16):
        going = (count > first).nonzero().view(-1)
        codes = _take(near, start.index_select(0, going)[:, None] + (run + first))
        distance = torch.zeros_like(codes, dtype=torch.float32)
        for k in range(dim):
            digit = ((codes >> (n_bits * k)) & ((1 << n_bits) - 1)) * 2 + 1
            d = step[0, going, None] * digit - values[k, going, None]
            distance = distance + root[k, going, None] * d * d
        least = distance.amin(1)
        # of equally near neighbours the first; argmin does not promise which
        position = torch.where(distance == least[:, None], run, torch.full_like(run, 16)).amin(1)
        code = codes.gather(1, position.clamp(max=15).long()[:, None]).view(-1)
        nearer = least < best.index_select(0, going)
        best[going] = torch.where(nearer, least, best.index_select(0, going))
        found[going] = torch.where(nearer, code, found.index_select(0, going))
    result = u.reshape(-1).clone()
    result[lanes] = found
    return result.view(u.shape)


WORDS: Mapping[str, Callable[..., Any]] = {
    "ld": _ld,
    "st": _st,
    "ldb": _ldb,
    "stb": _stb,
    "cst": _cst,
    "take": _take,
    "pick": _pick,
    "zeros": _zeros,
    "izeros": _izeros,
    "full": _full,
    "where": _where,
    "div": torch.div,
    "sqrt": _sqrt,
    "fabs": torch.abs,
    "nint": _nint,
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
    "forget": lambda notes, slot: None,
}


@functools.cache
def _programs(family: str) -> dict[str, Any]:
    return load(family, WORDS, lambda function: function)


def _row_sigma(rows: torch.Tensor) -> torch.Tensor:
    """rows [n_rows, n_cols] f32 → [1, n_rows, 1] mean square of each row, added from left to right."""
    n_rows, n_cols = rows.shape
    total = _programs("common")["sum_of_squares"](rows.t().contiguous(), 0, n_cols)
    return torch.div(total, torch.full_like(total, n_cols)).view(1, n_rows, 1)


def _operand(tile: Tile, encoder: Encoder, phase: Phase, argument: str | float) -> torch.Tensor | float:
    if not isinstance(argument, str):
        return argument
    if argument in tile.tables:
        return tile.tables[argument]
    array = tile.arrays[argument]
    if argument in encoder.private:
        return array[:, : phase.lanes] if phase.lanes > 1 else array[:, 0]
    return array


def encode(
    type: QuantType, encoder: Encoder, rows: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """rows [n_rows, n_cols] f32, importance [n_cols] f32 or None → blocks [n_rows, row_bytes] u8, on one device."""
    tile = tile_of(type, encoder, rows, importance)
    if encoder.uses_row_sigma:
        tile = replace(tile, arrays={**tile.arrays, "row_sigma": _row_sigma(rows)})
    functions = _programs(encoder.family)
    for phase in encoder.phases:
        j = np.arange(phase.lanes) if phase.lanes > 1 else 0
        functions[phase.function](j, *(_operand(tile, encoder, phase, a) for a in phase.arguments))
    return packed_rows(tile)
