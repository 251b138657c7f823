"""Types of four-bit floats, E2M1, under a scale of eight bits: MXFP4 and NVFP4."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants
from quantmill.qkernels.lanes.vocabulary import (
    bits,
    cst,
    div,
    fabs,
    from_bits,
    full,
    i2f,
    imin,
    izeros,
    ld,
    stb,
    take,
    trunc,
    where,
)
from quantmill.qkernels.programs.ternary import largest_magnitude


def nearest_fp4(x, scale, LEVELS):
    """The code 0…15 whose value is nearest: ±LEVELS[code & 7]·scale, the sign in bit 3; the lowest of equals.

    The reference compares all distances, rounded, and keeps the first smallest. With rising levels they fall,
    then rise, so the last fall is the nearest. A scale of 0, or a weight far beyond the largest level, makes them
    equal: nothing falls.
    """
    a = fabs(x)
    before = a
    code = izeros(a)
    for k in range(1, 8):
        distance = fabs(scale * cst(LEVELS, k) - a)
        code = where(distance < before, k, code)
        before = distance
    return code | where((x < 0.0) & (code != 0), 8, 0)


def pack_fp4(X, first, scale, LEVELS, OUT, place, HALF):
    """byte m = code of x[m] | code of x[m + HALF] << 4."""
    for m in range(HALF):
        low = nearest_fp4(ld(X, first + m), scale, LEVELS)
        high = nearest_fp4(ld(X, first + HALF + m), scale, LEVELS)
        stb(OUT, place + m, low | (high << 4))


def floor_log2(a, CLIMB):
    """floor(log2f(a)) for a > 0, with the logarithm rounded as C's: it may reach the next power of two.

    CLIMB[exponent + 149] is the smallest mantissa for which it does. Sub-normal numbers are scaled up first.
    """
    small = a < 1.1754943508222875e-38
    normal = bits(where(small, i2f(bits(a)), a))
    exponent = (normal >> 23) - where(small, 276, 127)
    return exponent + where((normal & 0x7FFFFF) >= take(CLIMB, exponent + 149), 1, 0)


def e8m0_scale(e):
    """2^(e - 128); the two smallest are sub-normal."""
    return from_bits(where(e < 2, (e + 1) << 21, (e - 1) << 23))


def ue4m3_scale(u):
    """Half of what a byte 0…126 of E4M3 without sign stands for."""
    return where(u < 8, i2f(u) * 0.0009765625, from_bits((u << 20) + 0x3B800000))


def encode_mxfp4(j, X, LEVELS, CLIMB, OUT):
    """e: exponent of the largest weight less that of the largest level, modulo 256; scale 2^(e-128)."""
    top = largest_magnitude(X, 0, 32)
    some = top > 0.0
    exponent = floor_log2(where(some, top, full(top, 1.0)), CLIMB)
    e = where(some, (exponent + 125) & 255, 0)
    stb(OUT, 0, e)
    pack_fp4(X, 0, e8m0_scale(e), LEVELS, OUT, 1, 16)


def encode_nvfp4(j, X, LEVELS, OUT):
    """Four sub-blocks of 16, each with a scale in E4M3 without sign."""
    for s in range(4):
        ideal = div(largest_magnitude(X, 16 * s, 16), full(ld(X, 0), 6.0))
        # the three mantissa bits are rounded by the next bit alone, which carries into the exponent
        pattern = bits(ideal)
        u = (pattern >> 20) + ((pattern >> 19) & 1) - 960
        u = where(u >= 120, 126, u)
        u = where(pattern < 0x3C800000, imin(trunc(ideal * 512.0 + 0.5), 7), u)
        stb(OUT, s, u)
        pack_fp4(X, 16 * s, ue4m3_scale(u), LEVELS, OUT, 4 + 8 * s, 8)


def _climb() -> Callable[[], np.ndarray]:
    """For each exponent -149 … 127 the mantissa from which log2f rounds up to the next whole number.

    log2(2^(k+1)·(1 - c/2^24)) is c / (2^24·ln 2) below k + 1; it rounds up when that is less than half the
    spacing of floats just below k + 1, so for c ≤ ln 2 · 2^23 · spacing, and never when that is less than 1.
    """

    def make() -> np.ndarray:
        target = np.arange(-149, 128).astype(np.float32) + np.float32(1)
        spacing = np.abs(target.astype(np.float64) - np.nextafter(target, np.float32(-np.inf)))
        return (2**23 - np.floor(np.log(2) * 2**23 * spacing)).astype(np.int32)

    return make


_LEVELS = constants(0, 1, 2, 3, 4, 6, 8, 12)

ENCODERS = {
    ("MXFP4", False): Encoder(
        family="fp4",
        phases=(Phase(encode_mxfp4),),
        tables={"levels": _LEVELS, "climb": _climb()},
    ),
    ("NVFP4", False): Encoder(family="fp4", phases=(Phase(encode_nvfp4),), tables={"levels": _LEVELS}),
}
