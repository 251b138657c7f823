"""Blocks of checkpoints (types.py: CHECKPOINT_TYPES), a scale and codes: FP8 as the Open Compute Project's 8-bit
Floating Point Specification defines it, integers as code less the code of 0. One rounded product a weight."""

from __future__ import annotations

from quantmill.qkernels.decode.fields import word_at
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.vocabulary import bits, from_bits, h2f, i2f, ldb, st, where


def float_at(BLOCKS, place):
    """The binary32 at byte `place`."""
    return from_bits(word_at(BLOCKS, place) | (word_at(BLOCKS, place + 2) << 16))


def fp8_e4m3(j, BLOCKS, Y):
    """No infinities; all bits below the sign: NaN."""
    scale = float_at(BLOCKS, 0)
    for i in range(32):
        byte = ldb(BLOCKS, 4 + i)
        u = byte & 127
        magnitude = where(u < 8, i2f(u) * 0.001953125, from_bits((u << 20) + 0x3C000000))
        magnitude = where(u == 127, from_bits(u | 0x7FC00000), magnitude)
        st(Y, i, from_bits(bits(magnitude) | ((byte >> 7) << 31)) * scale)


def fp8_e5m2(j, BLOCKS, Y):
    """The upper byte of a half."""
    scale = float_at(BLOCKS, 0)
    for i in range(32):
        st(Y, i, h2f(ldb(BLOCKS, 4 + i) << 8) * scale)


def int4(j, BLOCKS, Y):
    """Byte m holds code 2m and, above it, code 2m + 1."""
    scale = float_at(BLOCKS, 0)
    zero = word_at(BLOCKS, 4)
    for m in range(16):
        byte = ldb(BLOCKS, 6 + m)
        st(Y, 2 * m, scale * i2f((byte & 15) - zero))
        st(Y, 2 * m + 1, scale * i2f((byte >> 4) - zero))


def int8(j, BLOCKS, Y):
    scale = float_at(BLOCKS, 0)
    zero = word_at(BLOCKS, 4)
    for i in range(32):
        st(Y, i, scale * i2f(ldb(BLOCKS, 6 + i) - zero))


DECODERS = {
    "FP8_E4M3": Decoder(fp8_e4m3),
    "FP8_E5M2": Decoder(fp8_e5m2),
    "INT4": Decoder(int4),
    "INT8": Decoder(int8),
}
