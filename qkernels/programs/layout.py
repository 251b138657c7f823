"""Bit layouts: how codes 0…255, one byte each, become the packed bytes of a block."""

from __future__ import annotations

from quantmill.qkernels.lanes.vocabulary import ld, ldb, stb


def store_half(OUT, place, h):
    stb(OUT, place, h)
    stb(OUT, place + 1, h >> 8)


def pack_nibbles(CODE, first, OUT, place, HALF):
    """byte m = code[m] | code[m + HALF] << 4, low four bits of each."""
    for m in range(HALF):
        low = ldb(CODE, first + m) & 15
        stb(OUT, place + m, low | ((ldb(CODE, first + HALF + m) & 15) << 4))


def pack_pairs(CODE, OUT, place):
    """256 codes of 4 bits → 128 bytes: byte 32c+m = code[64c+m] | code[64c+32+m] << 4."""
    for c in range(4):
        pack_nibbles(CODE, 64 * c, OUT, place + 32 * c, 32)


def pack_quarters(CODE, OUT, place):
    """256 codes of 2 bits → 64 bytes: byte 32h+m holds code[128h + 32n + m] in bits 2n."""
    for h in range(2):
        for m in range(32):
            c = 128 * h + m
            low = (ldb(CODE, c) & 3) | ((ldb(CODE, c + 32) & 3) << 2)
            high = ((ldb(CODE, c + 64) & 3) << 4) | ((ldb(CODE, c + 96) & 3) << 6)
            stb(OUT, place + 32 * h + m, low | high)


def pack_high_bits(CODE, OUT, place, SHIFT):
    """256 codes → 32 bytes: bit b of byte m is bit SHIFT of code[32b + m]."""
    for m in range(32):
        byte = (ldb(CODE, m) >> SHIFT) & 1
        for b in range(1, 8):
            byte = byte | (((ldb(CODE, 32 * b + m) >> SHIFT) & 1) << b)
        stb(OUT, place + m, byte)


def pack_fifth_bits(CODE, OUT, place):
    """32 codes of 5 bits → 4 bytes: bit j of the little-endian word is bit 4 of code[j]."""
    for k in range(4):
        byte = (ldb(CODE, 8 * k) >> 4) & 1
        for b in range(1, 8):
            byte = byte | (((ldb(CODE, 8 * k + b) >> 4) & 1) << b)
        stb(OUT, place + k, byte)


def pack_scales_3bit_high(BITS, OUT, place):
    """Q3_K: sixteen 6-bit scales → 12 bytes: eight of low nibbles, then four of two high bits each."""
    for k in range(8):
        stb(OUT, place + k, (ld(BITS, k) & 15) | ((ld(BITS, k + 8) & 15) << 4))
    for k in range(4):
        low = (ld(BITS, k) >> 4) | ((ld(BITS, k + 4) >> 4) << 2)
        stb(OUT, place + 8 + k, low | ((ld(BITS, k + 8) >> 4) << 4) | ((ld(BITS, k + 12) >> 4) << 6))
