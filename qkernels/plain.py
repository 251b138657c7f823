"""F32, F16 and BF16 rows as they are stored. numpy only."""

from __future__ import annotations

import numpy as np

from quantmill.qkernels.types import QuantType

# The elements of these types in numpy's words; bfloat16 is its bits.
ELEMENTS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# The bits of an exponent that only infinities and NaN have.
_INFINITIES = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_PIECE = 1 << 17  # words that stay in a cache between two steps
_PAGE = 4096  # no more bytes than a page of memory has


def all_finite(raw: np.ndarray, type: QuantType) -> bool:
    """Whether u8 [n_rows, row_bytes] of a plain type holds neither NaN nor infinity."""
    words, least = raw.view(ELEMENTS[type.name].replace("f", "u")).reshape(-1), _INFINITIES[type.name]
    signless = words.dtype.type(2 ** (8 * words.itemsize - 1) - 1)
    pieces = (words[first : first + _PIECE] for first in range(0, len(words), _PIECE))
    return all((piece & signless).max() < least for piece in pieces)


def read_in(raw: np.ndarray) -> np.ndarray:
    """The same rows, in memory: a mapped file is read here, not where it is used."""
    raw.reshape(-1)[::_PAGE].max(initial=0)
    return raw
