"""Types whose weights are chosen in groups: weight = scale * (a codebook's entry with its signs, or shifted)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from quantmill.qkernels.codebooks import codebook
from quantmill.qkernels.lattices import grid_fields
from quantmill.qkernels.lattices.grid_fields import Bytes, GridChoice
from quantmill.qkernels.types import QuantizeError, get_type

SHIFT = 0.125  # of IQ1's entries, up or down


@dataclass(frozen=True, eq=False)
class GridLattice:
    """One type. fields: of a block, in order, with their bytes; group: weights that share a scale.

    unit: d of the choice over d of the block; last: the largest scale. even: signs of eight weights have an even
    number of negatives. shared: groups of eight that must be shifted alike, 0 for types with signs.
    """

    name: str
    fields: Mapping[str, int]
    group: int
    unit: float
    last: int
    read: Callable[[Bytes], GridChoice]
    write: Callable[[GridChoice], Bytes]
    even: bool = False
    shared: int = 0

    @property
    def block(self) -> int:
        return 256

    @property
    def dim(self) -> int:
        """Weights of an entry."""
        return codebook(self.name).dim

    def grid(self, device: torch.device) -> torch.Tensor:
        """[n_entries, dim] f32."""
        book = codebook(self.name)
        return torch.tensor(book.values[book.digits], device=device)

    def unpack(self, blocks: torch.Tensor) -> GridChoice:
        """blocks u8 [n_rows, row_bytes] → what they hold."""
        row = get_type(self.name)
        if blocks.dtype != torch.uint8 or blocks.ndim != 2 or blocks.shape[1] % row.bytes:
            raise QuantizeError(f"{tuple(blocks.shape)} {blocks.dtype}: no whole rows of {self.name} blocks")
        each = blocks.view(len(blocks), -1, row.bytes)
        choice = self.read(dict(zip(self.fields, each.split(list(self.fields.values()), -1), strict=True)))
        choice.d = choice.d * self.unit
        return choice

    def pack(self, choice: GridChoice) -> torch.Tensor:
        """The reverse of `unpack`; d is rounded to binary16. Signs that should be even are taken to be."""
        stored = GridChoice(choice.entries, choice.negative, choice.down, choice.scales, choice.d / self.unit)
        parts = self.write(stored)
        return torch.cat([parts[name] for name in self.fields], -1).view(len(choice.d), -1)

    def values(self, choice: GridChoice) -> torch.Tensor:
        """[n_rows, n_cols] f32: weights in units of their scales."""
        values = self.grid(choice.entries.device)[choice.entries.int()].flatten(1)
        if choice.negative is not None:
            return torch.where(choice.negative, -values, values)
        assert choice.down is not None
        return values + torch.where(choice.down, -SHIFT, SHIFT).repeat_interleave(8, 1)

    def steps(self, choice: GridChoice) -> torch.Tensor:
        """Scale of every group, [n_rows, n_cols / group] f32, as a decoder computes it."""
        d = (choice.d / self.unit).half().float() * self.unit
        return (d[..., None] * choice.scales).flatten(1)

    def decode(self, choice: GridChoice) -> torch.Tensor:
        """[n_rows, n_cols] f32: the weights."""
        return self.values(choice) * self.steps(choice).repeat_interleave(self.group, 1)


_ROWS = (
    GridLattice(
        "IQ2_XXS",
        {"d": 2, "qs": 64},
        32,
        0.125,
        31,
        grid_fields.read_iq2_xxs,
        grid_fields.write_iq2_xxs,
        even=True,
    ),
    GridLattice(
        "IQ2_XS",
        {"d": 2, "qs": 64, "scales": 8},
        16,
        0.125,
        31,
        grid_fields.read_iq2_xs,
        grid_fields.write_iq2_xs,
        even=True,
    ),
    GridLattice(
        "IQ2_S",
        {"d": 2, "qs": 32, "signs": 32, "qh": 8, "scales": 8},
        16,
        0.125,
        31,
        grid_fields.read_iq2_s,
        grid_fields.write_iq2_s,
    ),
    GridLattice(
        "IQ3_XXS",
        {"d": 2, "qs": 64, "signs": 32},
        32,
        0.25,
        31,
        grid_fields.read_iq3_xxs,
        grid_fields.write_iq3_xxs,
        even=True,
    ),
    GridLattice(
        "IQ3_S",
        {"d": 2, "qs": 64, "qh": 8, "signs": 32, "scales": 4},
        32,
        1.0,
        31,
        grid_fields.read_iq3_s,
        grid_fields.write_iq3_s,
    ),
    GridLattice(
        "IQ1_S",
        {"d": 2, "qs": 32, "qh": 16},
        32,
        1.0,
        15,
        grid_fields.read_iq1_s,
        grid_fields.write_iq1_s,
        shared=4,
    ),
    GridLattice(
        "IQ1_M",
        {"qs": 32, "qh": 16, "scales": 8},
        16,
        1.0,
        15,
        grid_fields.read_iq1_m,
        grid_fields.write_iq1_m,
        shared=1,
    ),
)
GRIDS: dict[str, GridLattice] = {row.name: row for row in _ROWS}
