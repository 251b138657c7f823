"""Reading the fields of a block: halves, words, signed bytes, signs."""

from __future__ import annotations

from quantmill.qkernels.lanes.vocabulary import bits, from_bits, h2f, ldb


def word_at(BLOCKS, place):
    """The unsigned 16-bit number at byte `place`."""
    return ldb(BLOCKS, place) | (ldb(BLOCKS, place + 1) << 8)


def half_at(BLOCKS, place):
    """The binary16 at byte `place`."""
    return h2f(word_at(BLOCKS, place))


def signed(byte):
    """A byte as C's int8_t."""
    return (byte ^ 128) - 128


def turned(v, signs, i):
    """-v where bit i of `signs` is set, else v."""
    return from_bits(bits(v) ^ ((signs >> i) << 31))


def even_signs(seven):
    """Eight signs from seven: the eighth makes the number of set bits even."""
    fold = seven ^ (seven >> 4)
    fold = fold ^ (fold >> 2)
    return seven | (((fold ^ (fold >> 1)) & 1) << 7)
