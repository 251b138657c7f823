"""K types: scales of sub-blocks under one or two halves (ggml-quants.c: dequantize_row_q2_K … q6_K)."""

from __future__ import annotations

from quantmill.qkernels.decode.fields import half_at, signed
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.vocabulary import i2f, ldb, number, st, where


def q2_k(j, BLOCKS, Y):
    """Lane j is a half: run n of its four has scales 8j + 2n and 8j + 2n + 1, sixteen weights each."""
    d = half_at(BLOCKS, 80)
    dmin = half_at(BLOCKS, 82)
    for side in range(2):
        for n in range(4):
            packed = ldb(BLOCKS, 8 * j + 2 * n + side)
            scale = d * i2f(packed & 15)
            low = dmin * i2f(packed >> 4)
            for m in range(16):
                code = (ldb(BLOCKS, 16 + 32 * j + 16 * side + m) >> (2 * n)) & 3
                st(Y, 32 * n + 16 * side + m, scale * i2f(code) - low)


def q3_k(j, BLOCKS, Y):
    """Lane j is a half; its third bits stand in bits 4j … 4j + 3 of all 32 bytes of hmask."""
    d = half_at(BLOCKS, 108)
    for side in range(2):
        for n in range(4):
            t = 2 * n + side
            packed = ldb(BLOCKS, 96 + t)
            half = number(packed, j)
            high = ldb(BLOCKS, 104 + (t & 3)) >> (4 * half + 2 * (t >> 2))
            scale = d * i2f((((packed >> (4 * half)) & 15) | ((high & 3) << 4)) - 32)
            for m in range(16):
                code = (ldb(BLOCKS, 32 + 32 * j + 16 * side + m) >> (2 * n)) & 3
                third = (ldb(BLOCKS, 16 * side + m) >> (4 * half + n)) & 1
                st(Y, 32 * n + 16 * side + m, scale * i2f((code | (third << 2)) - 4))


def six_bit_scales(j, BLOCKS, k):
    """Scale and minimum of sub-block 2j + k: of the first four six bits each, the others' in pieces."""
    s = 2 * (j & 1) + k
    first = ldb(BLOCKS, 4 + s)
    second = ldb(BLOCKS, 8 + s)
    third = ldb(BLOCKS, 12 + s)
    late = number(first, j) > 1
    scale = where(late, (third & 15) | ((first >> 6) << 4), first & 63)
    low = where(late, (third >> 4) | ((second >> 6) << 4), second & 63)
    return i2f(scale), i2f(low)


def pair_of_scales(j, BLOCKS):
    """Scales, then minima, of sub-blocks 2j and 2j + 1."""
    d = half_at(BLOCKS, 0)
    dmin = half_at(BLOCKS, 2)
    scale0, low0 = six_bit_scales(j, BLOCKS, 0)
    scale1, low1 = six_bit_scales(j, BLOCKS, 1)
    return d * scale0, d * scale1, dmin * low0, dmin * low1


def q4_k(j, BLOCKS, Y):
    """Lane j is 64 weights: sub-block 2j in the low nibbles of 32 bytes, 2j + 1 in the high ones."""
    d0, d1, m0, m1 = pair_of_scales(j, BLOCKS)
    for m in range(32):
        byte = ldb(BLOCKS, 16 + 32 * j + m)
        st(Y, m, d0 * i2f(byte & 15) - m0)
        st(Y, 32 + m, d1 * i2f(byte >> 4) - m1)


def q5_k(j, BLOCKS, Y):
    """As Q4_K; bit b of byte m of qh is the fifth bit of weight m of sub-block b."""
    d0, d1, m0, m1 = pair_of_scales(j, BLOCKS)
    for m in range(32):
        byte = ldb(BLOCKS, 48 + 32 * j + m)
        high = ldb(BLOCKS, 16 + m) >> (2 * number(byte, j))
        st(Y, m, d0 * i2f((byte & 15) | ((high & 1) << 4)) - m0)
        st(Y, 32 + m, d1 * i2f((byte >> 4) | ((high & 2) << 3)) - m1)


def q6_k(j, BLOCKS, Y):
    """Lane j is a half: four runs of 32 codes, their low nibbles in 64 bytes of ql, two bits of each in 32 of qh."""
    d = half_at(BLOCKS, 208)
    for side in range(2):
        first = 192 + 8 * j + side
        d0 = d * i2f(signed(ldb(BLOCKS, first)))
        d1 = d * i2f(signed(ldb(BLOCKS, first + 2)))
        d2 = d * i2f(signed(ldb(BLOCKS, first + 4)))
        d3 = d * i2f(signed(ldb(BLOCKS, first + 6)))
        for m in range(16):
            i = 16 * side + m
            a = ldb(BLOCKS, 64 * j + i)
            b = ldb(BLOCKS, 64 * j + 32 + i)
            high = ldb(BLOCKS, 128 + 32 * j + i)
            st(Y, i, d0 * i2f(((a & 15) | ((high & 3) << 4)) - 32))
            st(Y, 32 + i, d1 * i2f(((b & 15) | ((high & 12) << 2)) - 32))
            st(Y, 64 + i, d2 * i2f(((a >> 4) | (high & 48)) - 32))
            st(Y, 96 + i, d3 * i2f(((b >> 4) | ((high & 192) >> 2)) - 32))


DECODERS = {
    "Q2_K": Decoder(q2_k, lanes=2),
    "Q3_K": Decoder(q3_k, lanes=2),
    "Q4_K": Decoder(q4_k, lanes=4),
    "Q5_K": Decoder(q5_k, lanes=4),
    "Q6_K": Decoder(q6_k, lanes=2),
}
