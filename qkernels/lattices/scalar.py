"""Types whose weights are chosen one by one: weight = scale * level[code] - min, scales shared by a group.

Source: ggml-common.h: block_*; ggml-quants.c: dequantize_row_*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from quantmill.qkernels.lattices.bits import join, read_half, split, write_half
from quantmill.qkernels.types import QuantizeError, get_type

Bytes = dict[str, torch.Tensor]  # field of a block -> [n_rows, n_blocks, bytes] u8


@dataclass
class Choice:
    """What n rows of one type hold.

    codes:  [n_rows, n_cols] u8, positions in the lattice's ascending `levels`
    d:      [n_rows, n_blocks] f32, the block's scale; None where the groups' scales come from a table
    dmin:   the same of minimums; None for a type that has none
    scales: [n_rows, n_blocks, n_groups] i16, whole multiples of d, or positions in `scale_table`; None: 1
    mins:   the same, multiples of dmin
    """

    codes: torch.Tensor
    d: torch.Tensor | None = None
    dmin: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    mins: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Whole:
    """Whole numbers that stand for scales and minimums: the range of each, and how a block holds them."""

    scale_range: tuple[int, int]
    min_range: tuple[int, int] | None
    read: Callable[[Bytes], tuple[torch.Tensor, torch.Tensor | None]]
    write: Callable[[torch.Tensor, torch.Tensor | None], Bytes]


@dataclass(frozen=True, eq=False)
class ScalarLattice:
    """One type. fields: of a block, in order, with their bytes; group: weights that share a scale.

    levels: values of the codes, ascending; stored: what stands for them in a block (None: their positions).
    planes: (field, run, bits) of the codes, lowest bits first, as bits.split has it; None: `trits`.
    min_sign: the factor of `dmin` in the block's `min_field`: -1 where it is what is added; 0: no minimum.
    scale_table: all values a group's scale can have, ascending, where a byte says which.
    """

    name: str
    fields: Mapping[str, int]
    group: int
    levels: tuple[float, ...]
    planes: tuple[tuple[str, int, int], ...]
    stored: tuple[int, ...] | None = None
    min_sign: int = 0
    whole: Whole | None = None
    scale_table: tuple[float, ...] | None = None
    min_field: str = "dmin"

    @property
    def block(self) -> int:
        return get_type(self.name).block

    @property
    def has_min(self) -> bool:
        return self.min_sign != 0

    @property
    def even(self) -> bool:
        """Whether neighbouring levels are one apart."""
        return all(b - a == 1 for a, b in zip(self.levels, self.levels[1:], strict=False))

    def unpack(self, blocks: torch.Tensor) -> Choice:
        """blocks u8 [n_rows, row_bytes] → what they hold. Raises QuantizeError for codes that are not legal."""
        parts = self._parts(blocks)
        stored = self._read_codes(parts)
        choice = Choice(self._positions(stored).reshape(len(blocks), -1))
        if self.scale_table is None:
            choice.d = read_half(parts["d"])[..., 0]
        else:
            choice.scales = parts[next(iter(self.fields))].to(torch.int16)
        if self.has_min:
            choice.dmin = self.min_sign * read_half(parts[self.min_field])[..., 0]
        if self.whole is not None:
            choice.scales, choice.mins = self.whole.read(parts)
        return choice

    def pack(self, choice: Choice) -> torch.Tensor:
        """The reverse of `unpack`: u8 [n_rows, row_bytes]. d and dmin are rounded to binary16."""
        n_rows, n_cols = choice.codes.shape
        codes = choice.codes.view(n_rows, n_cols // self.block, self.block)
        if self.stored is not None:
            codes = torch.tensor(self.stored, dtype=torch.uint8, device=codes.device)[codes.int()]
        parts = self._write_codes(codes)
        if self.scale_table is None:
            assert choice.d is not None
            parts["d"] = write_half(choice.d[..., None])
        else:
            assert choice.scales is not None
            parts[next(iter(self.fields))] = choice.scales.to(torch.uint8)
        if self.has_min:
            assert choice.dmin is not None
            parts[self.min_field] = write_half(self.min_sign * choice.dmin[..., None])
        if self.whole is not None:
            assert choice.scales is not None
            parts |= self.whole.write(choice.scales, choice.mins)
        return torch.cat([parts[name] for name in self.fields], -1).view(n_rows, -1)

    def steps(self, choice: Choice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale and minimum of every group, [n_rows, n_cols / group] f32, as a decoder computes them."""
        if self.scale_table is not None:
            assert choice.scales is not None
            table = torch.tensor(self.scale_table, device=choice.codes.device)
            return table[choice.scales.int()].view(len(choice.codes), -1), None
        assert choice.d is not None
        scale, low = choice.d.half().float(), choice.dmin
        low = None if low is None else low.half().float()
        if choice.scales is not None:
            scale = scale[..., None] * choice.scales
            if low is not None and choice.mins is not None:
                low = low[..., None] * choice.mins
        n_rows = len(choice.codes)
        return scale.reshape(n_rows, -1), None if low is None else low.reshape(n_rows, -1)

    def decode(self, choice: Choice) -> torch.Tensor:
        """[n_rows, n_cols] f32: the weights."""
        scale, low = self.steps(choice)
        levels = torch.tensor(self.levels, device=scale.device)[choice.codes.int()]
        values = levels.view(*scale.shape, self.group) * scale[..., None]
        if low is not None:
            values = values - low[..., None]
        return values.view(len(choice.codes), -1)

    def _parts(self, blocks: torch.Tensor) -> Bytes:
        row = get_type(self.name)
        if blocks.dtype != torch.uint8 or blocks.ndim != 2 or blocks.shape[1] % row.bytes:
            raise QuantizeError(f"{tuple(blocks.shape)} {blocks.dtype}: no whole rows of {self.name} blocks")
        return self.parts(blocks.view(len(blocks), -1, row.bytes))

    def parts(self, each: torch.Tensor) -> dict[str, torch.Tensor]:
        """The fields of blocks [..., bytes] u8, as views."""
        return dict(zip(self.fields, each.split(list(self.fields.values()), -1), strict=True))

    def _read_codes(self, parts: Bytes) -> torch.Tensor:
        if not self.planes:
            return _read_trits(parts)
        codes, shift = None, 0
        for name, run, bits in self.planes:
            plane = split(parts[name], run, bits) << shift
            codes = plane if codes is None else codes | plane
            shift += bits
        assert codes is not None
        return codes

    def _write_codes(self, codes: torch.Tensor) -> Bytes:
        if not self.planes:
            return _write_trits(codes)
        parts, shift = {}, 0
        for name, run, bits in self.planes:
            parts[name] = join(codes >> shift, run, bits)
            shift += bits
        return parts

    def _positions(self, stored: torch.Tensor) -> torch.Tensor:
        """Stored codes → positions in `levels`."""
        table = torch.full((256,), 255, dtype=torch.int16, device=stored.device)
        kept = range(len(self.levels)) if self.stored is None else self.stored
        table[list(kept)] = torch.arange(len(self.levels), dtype=torch.int16, device=stored.device)
        if self.name in ("MXFP4", "NVFP4"):
            table[8] = self.levels.index(0.0)  # a second zero
        found = table[stored.int()]
        if bool((found == 255).any()):
            raise QuantizeError(f"a block of {self.name} holds a code that its quantizer never writes")
        return found.to(torch.uint8)


_POWERS = (81, 27, 9, 3, 1)


def _read_trits(parts: Bytes) -> torch.Tensor:
    """A byte is five trits as a fraction of 256: times 3^k modulo 256, trit k is the carry of times 3."""
    qs, qh = parts["qs"], parts["qh"]
    powers = torch.tensor(_POWERS[::-1], dtype=torch.uint8, device=qs.device).view(5, 1)
    runs = []
    for part, k in ((qs[..., :32], 5), (qs[..., 32:], 5), (qh, 4)):
        turned = (part[..., None, :] * powers[:k]).flatten(-2)
        runs.append(turned.int() * 3 >> 8)
    return torch.cat(runs, -1).to(torch.uint8)


def _write_trits(codes: torch.Tensor) -> Bytes:
    """ggml-quants.c: quantize_row_tq1_0_ref: the number of base 3 as a fraction of 256, rounded up."""
    powers = torch.tensor(_POWERS, device=codes.device).view(5, 1)

    def bytes_of(trits: torch.Tensor, k: int) -> torch.Tensor:
        number = (trits.view(*trits.shape[:-1], k, -1).int() * powers[:k]).sum(-2)
        return ((number * 256 + 242) // 243).to(torch.uint8)

    low, mid, high = codes.split((160, 80, 16), -1)
    return {"qs": torch.cat([bytes_of(low, 5), bytes_of(mid, 5)], -1), "qh": bytes_of(high, 4)}
