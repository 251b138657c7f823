"""Types of one to three levels a weight, rounded against one scale a block: TQ1_0, TQ2_0, Q1_0, Q2_0."""

from __future__ import annotations

from quantmill.qkernels.lanes.encoder import Encoder, Phase
from quantmill.qkernels.lanes.vocabulary import f2h, fabs, ld, stb, where, zeros
from quantmill.qkernels.programs.layout import store_half
from quantmill.qkernels.programs.rounding import inverse_or_zero


def largest_magnitude(A, first, N):
    top = zeros(ld(A, first))
    for i in range(N):
        a = fabs(ld(A, first + i))
        top = where(a > top, a, top)
    return top


def trit(v, LOST):
    """0, 1, 2 for |v| ≤ 1, halves away from zero.

    1/d overflows for a block below 2^-128; LOST is what C's conversion makes of a product that is not finite.
    """
    return where(fabs(v) < 2.0, where(v >= 0.5, 2, where(v <= -0.5, 0, 1)), LOST)


def five_trits(X, inverse, first, STEP, COUNT):
    """COUNT weights STEP apart as digits of base 3, most significant first; v/243 of 256, rounded up.

    (256·v + 242) // 243 = v + (13·v + 242) // 243, and 270 / 2^16 divides exactly in this range.
    """
    v = trit(ld(X, first) * inverse, 1)
    for n in range(1, COUNT):
        v = v * 3 + trit(ld(X, first + STEP * n) * inverse, 1)
    if COUNT == 4:
        v = v * 3
    return v + (((v * 13 + 242) * 270) >> 16)


def pack_tq1_0(X, inverse, OUT):
    for m in range(32):
        stb(OUT, m, five_trits(X, inverse, m, 32, 5))
    for m in range(16):
        stb(OUT, 32 + m, five_trits(X, inverse, 160 + m, 16, 5))
    for m in range(4):
        stb(OUT, 48 + m, five_trits(X, inverse, 240 + m, 4, 4))


def encode_tq1_0(j, X, OUT):
    d = largest_magnitude(X, 0, 256)
    pack_tq1_0(X, inverse_or_zero(d), OUT)
    store_half(OUT, 52, f2h(d))


def four_trits(X, inverse, first, STEP, LOST):
    """Four weights STEP apart in a byte, the first in the low bits."""
    low = trit(ld(X, first) * inverse, LOST) | (trit(ld(X, first + STEP) * inverse, LOST) << 2)
    high = trit(ld(X, first + 2 * STEP) * inverse, LOST) | (
        trit(ld(X, first + 3 * STEP) * inverse, LOST) << 2
    )
    return low | (high << 4)


def pack_tq2_0(X, inverse, OUT):
    for h in range(2):
        for m in range(32):
            stb(OUT, 32 * h + m, four_trits(X, inverse, 128 * h + m, 32, 1))


def encode_tq2_0(j, X, OUT):
    d = largest_magnitude(X, 0, 256)
    pack_tq2_0(X, inverse_or_zero(d), OUT)
    store_half(OUT, 64, f2h(d))


def encode_q2_0(j, X, OUT):
    d = largest_magnitude(X, 0, 64)
    inverse = inverse_or_zero(d)
    store_half(OUT, 0, f2h(d))
    for m in range(16):
        stb(OUT, 2 + m, four_trits(X, inverse, 4 * m, 1, 0))


def encode_q1_0(j, X, OUT):
    """A sign bit a weight, set for both zeros; d is the mean magnitude."""
    total = zeros(ld(X, 0))
    for m in range(16):
        byte = where(ld(X, 8 * m) >= 0.0, 1, 0)
        total = total + fabs(ld(X, 8 * m))
        for b in range(1, 8):
            x = ld(X, 8 * m + b)
            total = total + fabs(x)
            byte = byte | (where(x >= 0.0, 1, 0) << b)
        stb(OUT, 2 + m, byte)
    store_half(OUT, 0, f2h(total * 0.0078125))


ENCODERS = {
    ("TQ1_0", False): Encoder(family="ternary", phases=(Phase(encode_tq1_0),)),
    ("TQ2_0", False): Encoder(family="ternary", phases=(Phase(encode_tq2_0),)),
    ("Q1_0", False): Encoder(family="ternary", phases=(Phase(encode_q1_0),)),
    ("Q2_0", False): Encoder(family="ternary", phases=(Phase(encode_q2_0),)),
}
