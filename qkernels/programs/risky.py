"""Which weights a device must not search that makes zero of numbers below 2^-126, as GPUs may."""

from __future__ import annotations

from quantmill.qkernels.lanes.vocabulary import bits, imax, izeros, ld, st, where

# Bits of 2^-44, 2^-26 and 2^100. A weight below the first, or sixteen that are all below the second, may meet such
# numbers: squares and their products with weights of importance are summed, and sums multiplied. Zeros are no risk.
LEAST, LEAST_TOP, MOST = ((127 + exponent) << 23 for exponent in (-44, -26, 100))


def risky_weights(j, X, RISK, SMALL, SMALL_TOP, LARGE):
    """Thirty-two weights; RISK becomes 1 if they are at risk. By their bits, which nothing flushes."""
    risk = izeros(ld(X, 0))
    for half in range(2):
        top = risk - risk
        for i in range(16):
            size = bits(ld(X, 16 * half + i)) & 0x7FFFFFFF
            risk = risk | where(((size != 0) & (size < SMALL)) | (size > LARGE), 1, 0)
            top = imax(top, size)
        risk = risk | where((top != 0) & (top < SMALL_TOP), 1, 0)
    st(RISK, 0, risk)
