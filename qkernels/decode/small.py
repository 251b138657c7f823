"""Types of 32 weights: x = d·(code - offset), or d·code + m (ggml-quants.c: dequantize_row_q4_0 … q8_0)."""

from __future__ import annotations

from quantmill.qkernels.decode.fields import half_at, signed
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.vocabulary import i2f, ldb, st


def q4_0(j, BLOCKS, Y):
    d = half_at(BLOCKS, 0)
    for m in range(16):
        byte = ldb(BLOCKS, 2 + m)
        st(Y, m, d * i2f((byte & 15) - 8))
        st(Y, 16 + m, d * i2f((byte >> 4) - 8))


def q4_1(j, BLOCKS, Y):
    d = half_at(BLOCKS, 0)
    low = half_at(BLOCKS, 2)
    for m in range(16):
        byte = ldb(BLOCKS, 4 + m)
        st(Y, m, d * i2f(byte & 15) + low)
        st(Y, 16 + m, d * i2f(byte >> 4) + low)


def q5_0(j, BLOCKS, Y):
    d = half_at(BLOCKS, 0)
    for k in range(2):
        first = ldb(BLOCKS, 2 + k)
        second = ldb(BLOCKS, 4 + k)
        for i in range(8):
            byte = ldb(BLOCKS, 6 + 8 * k + i)
            st(Y, 8 * k + i, d * i2f(((byte & 15) | (((first >> i) & 1) << 4)) - 16))
            st(Y, 16 + 8 * k + i, d * i2f(((byte >> 4) | (((second >> i) & 1) << 4)) - 16))


def q5_1(j, BLOCKS, Y):
    d = half_at(BLOCKS, 0)
    low = half_at(BLOCKS, 2)
    for k in range(2):
        first = ldb(BLOCKS, 4 + k)
        second = ldb(BLOCKS, 6 + k)
        for i in range(8):
            byte = ldb(BLOCKS, 8 + 8 * k + i)
            st(Y, 8 * k + i, d * i2f((byte & 15) | (((first >> i) & 1) << 4)) + low)
            st(Y, 16 + 8 * k + i, d * i2f((byte >> 4) | (((second >> i) & 1) << 4)) + low)


def q8_0(j, BLOCKS, Y):
    d = half_at(BLOCKS, 0)
    for i in range(32):
        st(Y, i, d * i2f(signed(ldb(BLOCKS, 2 + i))))


DECODERS = {
    "Q4_0": Decoder(q4_0),
    "Q4_1": Decoder(q4_1),
    "Q5_0": Decoder(q5_0),
    "Q5_1": Decoder(q5_1),
    "Q8_0": Decoder(q8_0),
}
