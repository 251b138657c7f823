"""The table of lattices: one literal row a type."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from quantmill.qkernels.lattices.bits import join, split
from quantmill.qkernels.lattices.scalar import Bytes, ScalarLattice, Whole
from quantmill.qkernels.types import QuantizeError

_FP4 = (-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
_FP4_STORED = (15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7)
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Half of E8M0, because the levels are doubled; 255 is not a number.
_E8M0 = tuple(2.0 ** (byte - 128) for byte in range(255))
# Half of UE4M3, for the same reason.
_UE4M3 = tuple(m * 2.0**-10 for m in range(8)) + tuple(
    (1 + (byte & 7) / 8) * 2.0 ** ((byte >> 3) - 8) for byte in range(8, 127)
)


def _range(first: int, last: int) -> tuple[float, ...]:
    return tuple(float(level) for level in range(first, last + 1))


def _read_nibble_pairs(parts: Bytes) -> tuple[torch.Tensor, torch.Tensor]:
    packed = parts["scales"]
    return (packed & 15).to(torch.int16), (packed >> 4).to(torch.int16)


def _write_nibble_pairs(scales: torch.Tensor, mins: torch.Tensor | None) -> Bytes:
    assert mins is not None
    return {"scales": (scales | (mins << 4)).to(torch.uint8)}


def _read_six_bit_pairs(parts: Bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """Four scales and four minimums in six bits each, the other four of both in pieces."""
    low, mid, high = parts["scales"].split(4, -1)
    scales = torch.cat([low & 63, (high & 15) | (low >> 6 << 4)], -1)
    mins = torch.cat([mid & 63, (high >> 4) | (mid >> 6 << 4)], -1)
    return scales.to(torch.int16), mins.to(torch.int16)


def _write_six_bit_pairs(scales: torch.Tensor, mins: torch.Tensor | None) -> Bytes:
    assert mins is not None
    (scale_a, scale_b), (min_a, min_b) = scales.split(4, -1), mins.split(4, -1)
    low = scale_a | (scale_b >> 4 << 6)
    mid = min_a | (min_b >> 4 << 6)
    high = (scale_b & 15) | ((min_b & 15) << 4)
    return {"scales": torch.cat([low, mid, high], -1).to(torch.uint8)}


def _read_split_six_bits(parts: Bytes) -> tuple[torch.Tensor, None]:
    packed = parts["scales"]
    stored = split(packed[..., :8], 8, 4) | (split(packed[..., 8:], 4, 2) << 4)
    return stored.to(torch.int16) - 32, None


def _write_split_six_bits(scales: torch.Tensor, mins: torch.Tensor | None) -> Bytes:
    stored = (scales + 32).to(torch.uint8)
    return {"scales": torch.cat([join(stored, 8, 4), join(stored >> 4, 4, 2)], -1)}


def _read_low_and_high(parts: Bytes) -> tuple[torch.Tensor, None]:
    stored = split(parts["scales_l"], 1, 4) | (split(parts["scales_h"], 1, 2) << 4)
    return stored.to(torch.int16) - 32, None


def _write_low_and_high(scales: torch.Tensor, mins: torch.Tensor | None) -> Bytes:
    stored = (scales + 32).to(torch.uint8)
    return {"scales_l": join(stored, 1, 4), "scales_h": join(stored >> 4, 1, 2)}


def _read_bytes(parts: Bytes) -> tuple[torch.Tensor, None]:
    return parts["scales"].view(torch.int8).to(torch.int16), None


def _write_bytes(scales: torch.Tensor, mins: torch.Tensor | None) -> Bytes:
    return {"scales": scales.to(torch.int8).view(torch.uint8)}


_NIBBLE_PAIRS = Whole((0, 15), (0, 15), _read_nibble_pairs, _write_nibble_pairs)
_SIX_BIT_PAIRS = Whole((0, 63), (0, 63), _read_six_bit_pairs, _write_six_bit_pairs)
_SPLIT_SIX_BITS = Whole((-32, 31), None, _read_split_six_bits, _write_split_six_bits)
_LOW_AND_HIGH = Whole((-32, 31), None, _read_low_and_high, _write_low_and_high)
_SIGNED_BYTES = Whole((-128, 127), None, _read_bytes, _write_bytes)

_QS16 = (("qs", 16, 4),)
_ROWS = (
    ScalarLattice("Q4_0", {"d": 2, "qs": 16}, 32, _range(-8, 7), _QS16),
    ScalarLattice("Q4_1", {"d": 2, "m": 2, "qs": 16}, 32, _range(0, 15), _QS16, min_sign=-1, min_field="m"),
    ScalarLattice("Q5_0", {"d": 2, "qh": 4, "qs": 16}, 32, _range(-16, 15), (*_QS16, ("qh", 1, 1))),
    ScalarLattice(
        "Q5_1",
        {"d": 2, "m": 2, "qh": 4, "qs": 16},
        32,
        _range(0, 31),
        (*_QS16, ("qh", 1, 1)),
        min_sign=-1,
        min_field="m",
    ),
    # -128 would be legal, but no quantizer writes it and kernels may take it for positive
    ScalarLattice(
        "Q8_0",
        {"d": 2, "qs": 32},
        32,
        _range(-127, 127),
        (("qs", 32, 8),),
        stored=tuple(level & 255 for level in range(-127, 128)),
    ),
    ScalarLattice(
        "Q2_K",
        {"scales": 16, "qs": 64, "d": 2, "dmin": 2},
        16,
        _range(0, 3),
        (("qs", 32, 2),),
        min_sign=1,
        whole=_NIBBLE_PAIRS,
    ),
    ScalarLattice(
        "Q3_K",
        {"hmask": 32, "qs": 64, "scales": 12, "d": 2},
        16,
        _range(-4, 3),
        (("qs", 32, 2), ("hmask", 32, 1)),
        whole=_SPLIT_SIX_BITS,
    ),
    ScalarLattice(
        "Q4_K",
        {"d": 2, "dmin": 2, "scales": 12, "qs": 128},
        32,
        _range(0, 15),
        (("qs", 32, 4),),
        min_sign=1,
        whole=_SIX_BIT_PAIRS,
    ),
    ScalarLattice(
        "Q5_K",
        {"d": 2, "dmin": 2, "scales": 12, "qh": 32, "qs": 128},
        32,
        _range(0, 31),
        (("qs", 32, 4), ("qh", 32, 1)),
        min_sign=1,
        whole=_SIX_BIT_PAIRS,
    ),
    ScalarLattice(
        "Q6_K",
        {"ql": 128, "qh": 64, "scales": 16, "d": 2},
        16,
        _range(-32, 31),
        (("ql", 64, 4), ("qh", 32, 2)),
        whole=_SIGNED_BYTES,
    ),
    ScalarLattice("IQ4_NL", {"d": 2, "qs": 16}, 32, tuple(map(float, _IQ4)), _QS16),
    ScalarLattice(
        "IQ4_XS",
        {"d": 2, "scales_h": 2, "scales_l": 4, "qs": 128},
        32,
        tuple(map(float, _IQ4)),
        _QS16,
        whole=_LOW_AND_HIGH,
    ),
    ScalarLattice("MXFP4", {"e": 1, "qs": 16}, 32, _FP4, _QS16, stored=_FP4_STORED, scale_table=_E8M0),
    ScalarLattice(
        "NVFP4", {"d": 4, "qs": 32}, 16, _FP4, (("qs", 8, 4),), stored=_FP4_STORED, scale_table=_UE4M3
    ),
    ScalarLattice("TQ1_0", {"qs": 48, "qh": 4, "d": 2}, 256, _range(-1, 1), ()),
    ScalarLattice("TQ2_0", {"qs": 64, "d": 2}, 256, _range(-1, 1), (("qs", 32, 2),)),
    ScalarLattice("Q1_0", {"d": 2, "qs": 16}, 128, (-1.0, 1.0), (("qs", 1, 1),)),
    ScalarLattice("Q2_0", {"d": 2, "qs": 16}, 64, _range(-1, 2), (("qs", 1, 2),)),
)

LATTICES: Mapping[str, ScalarLattice] = MappingProxyType({row.name: row for row in _ROWS})


def lattice_of(name: str) -> ScalarLattice:
    """The lattice of a type by its ggml spelling. Raises QuantizeError when its codes are not known here."""
    if name not in LATTICES:
        raise QuantizeError(f"{name}: its codes cannot be chosen one by one; types: {', '.join(LATTICES)}")
    return LATTICES[name]
