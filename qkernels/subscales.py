"""The whole numbers that stand for the scales of a block's groups, read and written in place, in torch, on any device.

Types of single weights know theirs (lattices/types.py); those of the grid types are runs of bits among others.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from quantmill.qkernels.lattices.grid import GRIDS
from quantmill.qkernels.lattices.scalar import Whole
from quantmill.qkernels.lattices.types import LATTICES
from quantmill.qkernels.types import get_type


@dataclass(frozen=True)
class SubScales:
    """n groups in a block of `type`, each with a scale in `range`, only odd ones where `odd`, and with a minimum in
    `min_range` where there are minimums.

    bits, places: width of each, and its first bit in the block; none for types whose lattice knows.
    """

    type: str
    n: int
    range: tuple[int, int]
    min_range: tuple[int, int] | None = None
    odd: bool = False
    bits: int = 0
    places: tuple[int, ...] = ()

    def read(self, fields: torch.Tensor) -> torch.Tensor:
        """fields [..., n_blocks, bytes] u8 → [..., n_blocks, n or 2 n] f32: scales, then minimums."""
        if self.places:
            return 2 * self._stored(fields).float() + 1
        scales, mins = _whole(self.type).read(LATTICES[self.type].parts(fields))
        return (scales if mins is None else torch.cat([scales, mins], -1)).float()

    def write(self, fields: torch.Tensor, values: torch.Tensor) -> None:
        """Put values, as `read` gives them, into fields [..., n_blocks, bytes]: each the nearest that there is.

        What is not zero does not become zero, from where it could not move again.
        """
        scales = _nearest(values[..., : self.n], self.range, self.odd)
        if self.places:
            self._store(fields, (scales.int() - 1) // 2)
            return
        mins = None
        if self.min_range is not None:
            mins = _nearest(values[..., self.n :], self.min_range, False).to(torch.int16)
        parts = LATTICES[self.type].parts(fields)
        for name, data in _whole(self.type).write(scales.to(torch.int16), mins).items():
            parts[name].copy_(data)

    def _stored(self, fields: torch.Tensor) -> torch.Tensor:
        first, shift = self._where(fields.device)
        following = (first + 1).clamp_max(fields.shape[-1] - 1)
        both = fields[..., first].int() | fields[..., following].int() << 8
        return both >> shift & ((1 << self.bits) - 1)

    def _store(self, fields: torch.Tensor, stored: torch.Tensor) -> None:
        first, shift = self._where(fields.device)
        flips = (stored ^ self._stored(fields)) << shift
        found = torch.zeros_like(fields)
        found.index_add_(-1, first, (flips & 255).to(torch.uint8))  # of bits apart a sum is a union
        found.index_add_(-1, (first + 1).clamp_max(fields.shape[-1] - 1), (flips >> 8).to(torch.uint8))
        fields ^= found

    def _where(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.tensor(self.places, dtype=torch.int32, device=device)
        return places >> 3, places & 7


@functools.cache
def sub_scales_of(type: str) -> SubScales | None:
    """The sub-scales of a type; None where a scale serves the block, or each share of it, alone."""
    if type in LATTICES:
        lattice = LATTICES[type]
        if lattice.whole is None:
            return None
        whole = lattice.whole
        return SubScales(type, get_type(type).block // lattice.group, whole.scale_range, whole.min_range)
    if type not in _GRID_PLACES:
        return None
    grid, (bits, places) = GRIDS[type], _GRID_PLACES[type]
    return SubScales(type, grid.block // grid.group, (1, grid.last), None, True, bits, tuple(places))


def _halves_of_bytes(first: int, n: int) -> list[int]:
    return [8 * first + 4 * group for group in range(n)]


# Width and first bits: the highest bits of every fourth byte of the signs, nibbles of bytes of their own, or of words.
_GRID_PLACES = {
    "IQ2_XXS": (4, [8 * (9 + 8 * group) + 4 for group in range(8)]),
    "IQ2_XS": (4, _halves_of_bytes(66, 16)),
    "IQ2_S": (4, _halves_of_bytes(74, 16)),
    "IQ3_XXS": (4, [8 * (69 + 4 * group) + 4 for group in range(8)]),
    "IQ3_S": (4, _halves_of_bytes(106, 8)),
    "IQ1_S": (3, [8 * (35 + 2 * group) + 4 for group in range(8)]),
    "IQ1_M": (3, [8 * 48 + 16 * word + 3 * k for word in range(4) for k in range(4)]),
}


def _whole(type: str) -> Whole:
    whole = LATTICES[type].whole
    assert whole is not None
    return whole


def _nearest(values: torch.Tensor, within: tuple[int, int], odd: bool) -> torch.Tensor:
    if odd:
        return (((values - 1) / 2).round() * 2 + 1).clamp(*within)
    found = values.round().clamp(*within)
    return torch.where(found == 0, values.sign().clamp(*within), found)
