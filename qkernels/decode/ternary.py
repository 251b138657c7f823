"""Types of one to two bits: Q1_0, Q2_0, TQ1_0, TQ2_0, IQ1_S, IQ1_M (ggml-quants.c: dequantize_row_*)."""

from __future__ import annotations

import numpy as np

from quantmill.qkernels.codebooks import codebook
from quantmill.qkernels.decode.fields import half_at, word_at
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.vocabulary import full, h2f, i2f, ldb, neg, number, st, take, where


def q1_0(j, BLOCKS, Y):
    d = half_at(BLOCKS, 0)
    for k in range(4):
        byte = ldb(BLOCKS, 2 + 4 * j + k)
        for i in range(8):
            st(Y, 8 * k + i, where(((byte >> i) & 1) != 0, d, neg(d)))


def q2_0(j, BLOCKS, Y):
    d = half_at(BLOCKS, 0)
    for k in range(8):
        byte = ldb(BLOCKS, 2 + 8 * j + k)
        for i in range(4):
            st(Y, 4 * k + i, d * i2f(((byte >> (2 * i)) & 3) - 1))


def tq2_0(j, BLOCKS, Y):
    d = half_at(BLOCKS, 64)
    for m in range(32):
        byte = ldb(BLOCKS, 32 * j + m)
        for n in range(4):
            st(Y, 32 * n + m, d * i2f(((byte >> (2 * n)) & 3) - 1))


def trits(d, BLOCKS, place, COUNT, Y, first, RUNS):
    """A byte is five trits as a fraction of 256: each multiplication by 3 carries the next one out."""
    for m in range(COUNT):
        rest = ldb(BLOCKS, place + m)
        for k in range(RUNS):
            rest = (rest & 255) * 3
            st(Y, first + COUNT * k + m, d * i2f((rest >> 8) - 1))


def tq1_0(j, BLOCKS, Y):
    d = half_at(BLOCKS, 52)
    trits(d, BLOCKS, 0, 32, Y, 0, 5)
    trits(d, BLOCKS, 32, 16, Y, 160, 5)
    trits(d, BLOCKS, 48, 4, Y, 240, 4)


def eight_digits(Y, first, scale, digits, low):
    """scale·(digit + low) for eight digits of two bits; low is -1 moved by 1/8, so the sum is exact."""
    for i in range(8):
        st(Y, first + i, scale * (i2f((digits >> (2 * i)) & 3) + low))


def lowest(flag):
    """What digit 0 stands for: -0.875, or -1.125 where the flag is set."""
    some = flag != 0
    return where(some, full(flag, -1.125), full(flag, -0.875))


def iq1_s(j, BLOCKS, Y, DIGITS):
    head = word_at(BLOCKS, 34 + 2 * j)
    scale = half_at(BLOCKS, 0) * i2f(2 * ((head >> 12) & 7) + 1)
    low = lowest(head & 0x8000)
    for k in range(4):
        entry = ldb(BLOCKS, 2 + 4 * j + k) | (((head >> (3 * k)) & 7) << 8)
        eight_digits(Y, 8 * k, scale, take(DIGITS, entry), low)


def iq1_m(j, BLOCKS, Y, DIGITS):
    """Scales of three bits in four words, the bits of d above them."""
    parts = (ldb(BLOCKS, 49) >> 4) | (ldb(BLOCKS, 51) & 240)
    d = h2f(parts | ((ldb(BLOCKS, 53) & 240) << 4) | ((ldb(BLOCKS, 55) & 240) << 8))
    word = word_at(BLOCKS, 48 + 2 * (j >> 1))
    for side in range(2):
        shift = 6 * (number(word, j) & 1) + 3 * side
        scale = d * i2f(2 * ((word >> shift) & 7) + 1)
        head = ldb(BLOCKS, 32 + 2 * j + side)
        for k in range(2):
            g = 2 * side + k
            entry = ldb(BLOCKS, 4 * j + g) | (((head >> (4 * k)) & 7) << 8)
            eight_digits(Y, 8 * g, scale, take(DIGITS, entry), lowest((head >> (4 * k)) & 8))


def _digits() -> np.ndarray:
    digits = codebook("IQ1_S").digits.astype(np.int32)
    return (digits << 2 * np.arange(8, dtype=np.int32)).sum(1, dtype=np.int32)


DECODERS = {
    "Q1_0": Decoder(q1_0, lanes=4),
    "Q2_0": Decoder(q2_0, lanes=2),
    "TQ1_0": Decoder(tq1_0),
    "TQ2_0": Decoder(tq2_0, lanes=2),
    "IQ1_S": Decoder(iq1_s, lanes=8, tables={"digits": _digits}),
    "IQ1_M": Decoder(iq1_m, lanes=8, tables={"digits": _digits}),
}
