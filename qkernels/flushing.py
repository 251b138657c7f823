"""Devices that make zero of sub-normal numbers, and what therefore stays with the CPU.

Apple's GPUs do it in binary32 (Metal allows it to all), and no option asks them not to. Where a search meets numbers
below 2^-126, in squares of tiny weights or products with tiny importance, its bytes would differ. Such rows are told
apart by their bits (programs/risky.py) and searched by the CPU engine; in a model they are rare or none.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from quantmill.qkernels.types import QuantType

# Kinds of devices, as torch calls them.
FLUSHING = frozenset({"mps"})
# Scales in binary32 at byte 0 of a block, the least that is no risk times the largest code.
_LEAST_SCALE = 2.0**-60
_SCALED = ("FP8_E4M3", "FP8_E5M2", "INT4", "INT8")
# E8M0 at byte 0: 2^(e - 128) times half the values.
_LEAST_EXPONENT = 128 - 60


# The highest products in the searches are s1·s1·s2 of sums s1 = Σ w·x·l and s2 = Σ w·l·l. With w = x² that is the
# eighth power of the weights, with w = importance·|x| the fifth, times the third of importance. What stays above this
# power of two leaves 30 bits for sums that cancel.
_ROOM = -96
# A weight, and a value of importance, that is smaller may by itself bring a product with the others below 2^-126.
_LEAST, _LEAST_IMPORTANCE = -28, -36
_MOST, _MOST_IMPORTANCE = 100, 40
# Sixteen weights that are all smaller are at risk whatever the importance.
_LEAST_TOP = -24


def bounds(importance: np.ndarray | None) -> tuple[int, int, int] | None:
    """Bits of floats: the least weight that is no risk, the least that the largest of sixteen may be, the most.

    importance: f32 [n_cols], checked, None for a search without. None where the whole matrix is for the CPU.
    """
    top = _ROOM / 8
    if importance is not None and (importance != 0).any():
        some = importance[importance != 0]
        if some.min() < 2.0**_LEAST_IMPORTANCE or some.max() > 2.0**_MOST_IMPORTANCE:
            return None
        tops = importance.reshape(-1, 16).max(1)
        top = max((_ROOM - 3 * math.log2(tops[tops > 0].min())) / 5, _LEAST_TOP)
    return _bits(_LEAST), _bits(top), _bits(_MOST)


def _bits(exponent: float) -> int:
    """Of the float that is this power of two."""
    return int(np.float32(2.0**exponent).view(np.int32))


def risky_blocks(raw: torch.Tensor, source: QuantType) -> torch.Tensor | None:
    """Stored rows u8 [n_rows, row_bytes] → bool [n_rows]: decoding some of their blocks would meet such numbers."""
    if source.name in _SCALED:
        fields = raw.view(len(raw), -1, source.bytes)[:, :, :4].contiguous().view(torch.int32)
        size = fields[..., 0] & 0x7FFFFFFF
        least = int(np.float32(_LEAST_SCALE).view(np.int32))
        return ((size != 0) & (size < least)).any(1)
    if source.name == "MXFP4":
        exponents = raw.view(len(raw), -1, source.bytes)[:, :, 0]
        return (exponents < _LEAST_EXPONENT).any(1)
    return None
