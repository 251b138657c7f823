"""Devices that make zero of sub-normal numbers, and what therefore stays with the CPU.

Apple's GPUs do it in binary32 (Metal allows it to all), and no option asks them not to. Where a search meets numbers
below 2^-126, in squares of tiny weights or products with tiny importance, its bytes would differ. Such rows are told
apart by their bits (programs/risky.py) and searched by the CPU engine; in a model they are rare or none.
"""

from __future__ import annotations

import numpy as np
import torch

from quantmill.qkernels.types import QuantType

# Kinds of devices, as torch calls them.
FLUSHING = frozenset({"mps"})
# Between these, products of importance and weights stay normal; zero is no risk.
_LEAST, _MOST = 2.0**-24, 2.0**40
# Scales in binary32 at byte 0 of a block, the least that is no risk times the largest code.
_LEAST_SCALE = 2.0**-60
_SCALED = ("FP8_E4M3", "FP8_E5M2", "INT4", "INT8")
# E8M0 at byte 0: 2^(e - 128) times half the values.
_LEAST_EXPONENT = 128 - 60


def risky_importance(importance: np.ndarray | None) -> bool:
    """Whether importance f32 [n_cols] leaves the whole matrix to the CPU."""
    if importance is None:
        return False
    some = importance[importance != 0]
    return bool(len(some)) and (float(some.min()) < _LEAST or float(some.max()) > _MOST)


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
