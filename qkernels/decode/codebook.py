"""Types whose codes name one of sixteen values: IQ4_NL, IQ4_XS, MXFP4, NVFP4 (ggml-quants.c: dequantize_row_*)."""

from __future__ import annotations

from quantmill.qkernels.decode.fields import half_at, word_at
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.encoder import constants
from quantmill.qkernels.lanes.vocabulary import from_bits, i2f, izeros, ldb, number, pick, st, where


def sixteen(scale, BLOCKS, place, Y, VALUES, HALF):
    """Byte m holds code m and, above it, code m + HALF. VALUES repeats after sixteen, so nothing is masked."""
    for m in range(HALF):
        byte = ldb(BLOCKS, place + m)
        st(Y, m, scale * pick(VALUES, 0, byte))
        st(Y, HALF + m, scale * pick(VALUES, 0, byte >> 4))


def iq4_nl(j, BLOCKS, Y, VALUES):
    sixteen(half_at(BLOCKS, 0), BLOCKS, 2, Y, VALUES, 16)


def iq4_xs(j, BLOCKS, Y, VALUES):
    packed = ldb(BLOCKS, 4 + (j >> 1))
    sub = number(packed, j)
    low = (packed >> (4 * (sub & 1))) & 15
    high = (word_at(BLOCKS, 2) >> (2 * sub)) & 3
    scale = half_at(BLOCKS, 0) * i2f((low | (high << 4)) - 32)
    sixteen(scale, BLOCKS, 8 + 16 * j, Y, VALUES, 16)


def mxfp4(j, BLOCKS, Y, VALUES):
    """Half of 2^(e - 127), because VALUES are doubled; the two smallest scales are sub-normal."""
    e = ldb(BLOCKS, 0)
    scale = from_bits(where(e < 2, (e + 1) << 21, (e - 1) << 23))
    sixteen(scale, BLOCKS, 1, Y, VALUES, 16)


def nvfp4(j, BLOCKS, Y, VALUES):
    """Half of a scale in E4M3; all bits below the sign mean none."""
    byte = ldb(BLOCKS, j)
    u = where(byte == 127, izeros(byte), byte & 127)
    scale = where(u < 8, i2f(u) * 0.0009765625, from_bits((u << 20) + 0x3B800000))
    sixteen(scale, BLOCKS, 4 + 8 * j, Y, VALUES, 8)


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice the values of E2M1.
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


DECODERS = {
    "IQ4_NL": Decoder(iq4_nl, tables={"values": constants(*_IQ4, *_IQ4)}),
    "IQ4_XS": Decoder(iq4_xs, lanes=8, tables={"values": constants(*_IQ4, *_IQ4)}),
    "MXFP4": Decoder(mxfp4, tables={"values": constants(*_FP4, *_FP4)}),
    "NVFP4": Decoder(nvfp4, lanes=4, tables={"values": constants(*_FP4, *_FP4)}),
}
