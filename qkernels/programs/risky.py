"""Which weights a device must not search that makes zero of numbers below 2^-126, as GPUs may."""

from __future__ import annotations

from quantmill.qkernels.lanes.vocabulary import bits, imax, izeros, ld, st, where


def risky_weights(j, X, RISK, SMALL, SMALL_TOP, LARGE):
    """RISK becomes 1 if one of 32 weights lies below SMALL or above LARGE, or sixteen are all below SMALL_TOP.

    Zeros are no risk. The bounds are bits of floats, and so are the weights here: nothing flushes them.
    """
    risk = izeros(ld(X, 0))
    for half in range(2):
        top = risk - risk
        for i in range(16):
            size = bits(ld(X, 16 * half + i)) & 0x7FFFFFFF
            risk = risk | where(((size != 0) & (size < SMALL)) | (size > LARGE), 1, 0)
            top = imax(top, size)
        risk = risk | where((top != 0) & (top < SMALL_TOP), 1, 0)
    st(RISK, 0, risk)
