"""What the torch and Triton engines share: a program's arrays as tensors on a device, rows in, packed rows out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from quantmill.qkernels.lanes.encoder import Encoder, most_lanes
from quantmill.qkernels.types import QuantType

DTYPES = {"f32": torch.float32, "i32": torch.int32, "u8": torch.uint8}


@dataclass(frozen=True)
class Tile:
    """The arrays of some rows of one tensor, by the names that the phases use.

    An array is [elements, n_rows, per_row], one block a lane; private scratch [elements, lanes, n_rows, per_row];
    "importance" [block, 1, per_row], because all rows share it. Tables are one-dimensional.
    """

    arrays: Mapping[str, torch.Tensor]
    tables: Mapping[str, torch.Tensor]
    n_rows: int
    per_row: int


@functools.cache
def table_on(make: Callable[[], np.ndarray], device: torch.device) -> torch.Tensor:
    return torch.tensor(make(), device=device)


def _used(encoder: Encoder) -> dict[str, tuple[int, str]]:
    """The scratch that the encoder's phases name; encoders of a family share a table of all of it."""
    named = {argument for phase in encoder.phases for argument in phase.arguments}
    return {name: kind for name, kind in encoder.scratch.items() if name in named}


def bytes_per_block(type: QuantType, encoder: Encoder) -> int:
    """Device memory that encoding takes for each block: rows in, their transpose, scratch, packed bytes twice."""
    scratch = 0
    for name, (count, kind) in _used(encoder).items():
        copies = most_lanes(encoder) if name in encoder.private else 1
        scratch += count * copies * DTYPES[kind].itemsize
    return 2 * 4 * type.block + scratch + 2 * type.bytes


def tile_of(type: QuantType, encoder: Encoder, rows: torch.Tensor, importance: torch.Tensor | None) -> Tile:
    """rows [n_rows, n_cols] f32, importance [n_cols] f32 or None, on one device → the arrays, but "row_sigma"."""
    n_rows, n_cols = rows.shape
    per_row = n_cols // type.block
    arrays = {"out": torch.empty((type.bytes, n_rows, per_row), dtype=torch.uint8, device=rows.device)}
    for name, (count, kind) in _used(encoder).items():
        lanes = [most_lanes(encoder)] if name in encoder.private else []
        arrays[name] = torch.empty((count, *lanes, n_rows, per_row), dtype=DTYPES[kind], device=rows.device)
    arrays["x"] = rows.reshape(n_rows, per_row, type.block).permute(2, 0, 1).contiguous()
    if encoder.uses_importance:
        if importance is None:
            raise TypeError(f"the encoder of {type.name} needs importance")
        arrays["importance"] = importance.reshape(1, per_row, type.block).permute(2, 0, 1).contiguous()
    tables = {name: table_on(make, rows.device) for name, make in encoder.tables.items()}
    return Tile(arrays, tables, n_rows, per_row)


def packed_rows(out: torch.Tensor) -> torch.Tensor:
    """The finished array "out" as blocks [n_rows, row_bytes] u8."""
    return out.permute(1, 2, 0).reshape(out.shape[1], -1)
