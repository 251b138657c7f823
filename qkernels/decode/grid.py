"""Types whose groups of weights are entries of a grid: IQ2 and IQ3 (ggml-quants.c: dequantize_row_iq2_xxs … iq3_s).

GRID holds the values of four digits of an entry as four bytes; entries of eight digits take two places.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantmill.qkernels.codebooks import codebook
from quantmill.qkernels.decode.fields import even_signs, half_at, turned, word_at
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.vocabulary import i2f, ldb, number, st, take


def four(Y, first, scale, packed, signs, SIGN):
    """Weights first … first + 3 of a lane: the bytes of `packed`, with signs from bit SIGN on."""
    for i in range(4):
        st(Y, first + i, turned(scale * i2f((packed >> (8 * i)) & 255), signs, SIGN + i))


def eight(Y, first, scale, entry, signs, GRID):
    four(Y, first, scale, take(GRID, 2 * entry), signs, 0)
    four(Y, first + 4, scale, take(GRID, 2 * entry + 1), signs, 4)


def packed_signs(BLOCKS, place):
    """A word of four times seven signs under a scale of four bits."""
    return word_at(BLOCKS, place) | (word_at(BLOCKS, place + 2) << 16)


def iq2_xxs(j, BLOCKS, Y, GRID):
    word = packed_signs(BLOCKS, 6 + 8 * j)
    scale = half_at(BLOCKS, 0) * (i2f((word >> 28) & 15) + 0.5) * 0.25
    for k in range(4):
        eight(Y, 8 * k, scale, ldb(BLOCKS, 2 + 8 * j + k), even_signs((word >> (7 * k)) & 127), GRID)


def iq2_xs(j, BLOCKS, Y, GRID):
    scales = ldb(BLOCKS, 66 + j)
    d = half_at(BLOCKS, 0)
    for side in range(2):
        scale = d * (i2f((scales >> (4 * side)) & 15) + 0.5) * 0.25
        for k in range(2):
            g = 2 * side + k
            entry = word_at(BLOCKS, 2 + 8 * j + 2 * g)
            eight(Y, 8 * g, scale, entry & 511, even_signs(entry >> 9), GRID)


def iq2_s(j, BLOCKS, Y, GRID):
    scales = ldb(BLOCKS, 74 + j)
    d = half_at(BLOCKS, 0)
    for side in range(2):
        scale = d * (i2f((scales >> (4 * side)) & 15) + 0.5) * 0.25
        for k in range(2):
            g = 2 * side + k
            entry = ldb(BLOCKS, 2 + 4 * j + g) | (((ldb(BLOCKS, 66 + j) >> (2 * g)) & 3) << 8)
            eight(Y, 8 * g, scale, entry, ldb(BLOCKS, 34 + 4 * j + g), GRID)


def iq3_xxs(j, BLOCKS, Y, GRID):
    word = packed_signs(BLOCKS, 66 + 4 * j)
    scale = half_at(BLOCKS, 0) * (i2f((word >> 28) & 15) + 0.5) * 0.5
    for k in range(4):
        signs = even_signs((word >> (7 * k)) & 127)
        for side in range(2):
            entry = ldb(BLOCKS, 2 + 8 * j + 2 * k + side)
            four(Y, 8 * k + 4 * side, scale, take(GRID, entry), signs, 4 * side)


def iq3_s(j, BLOCKS, Y, GRID):
    packed = ldb(BLOCKS, 106 + (j >> 1))
    high = ldb(BLOCKS, 66 + j)
    scale = half_at(BLOCKS, 0) * i2f(2 * ((packed >> (4 * (number(packed, j) & 1))) & 15) + 1)
    for k in range(4):
        signs = ldb(BLOCKS, 74 + 4 * j + k)
        for side in range(2):
            g = 2 * k + side
            entry = ldb(BLOCKS, 2 + 8 * j + g) | (((high >> g) & 1) << 8)
            four(Y, 8 * k + 4 * side, scale, take(GRID, entry), signs, 4 * side)


def _grid(name: str) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        book = codebook(name)
        return book.values[book.digits].astype(np.uint8).reshape(-1).view("<i4").astype(np.int32)

    return make


DECODERS = {
    name: Decoder(program, lanes=8, tables={"grid": _grid(name)})
    for name, program in (
        ("IQ2_XXS", iq2_xxs),
        ("IQ2_XS", iq2_xs),
        ("IQ2_S", iq2_s),
        ("IQ3_XXS", iq3_xxs),
        ("IQ3_S", iq3_s),
    )
}
