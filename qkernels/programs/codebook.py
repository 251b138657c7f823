"""Types whose codes name one of 16 fixed values, x ≈ scale·value: IQ4_NL and IQ4_XS."""

from __future__ import annotations

import numpy as np

from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants
from quantmill.qkernels.lanes.vocabulary import (
    bits,
    cst,
    div,
    f2h,
    full,
    i2f,
    imax,
    imin,
    ld,
    neg,
    nint,
    pick,
    st,
    stb,
    where,
    zeros,
)
from quantmill.qkernels.programs.common import (
    block_sigma,
    importance_weights,
    signed_extreme,
    square_weights,
    truth,
)
from quantmill.qkernels.programs.layout import store_half


def cell(v):
    """Which of 32 cells, eight wide, a value lies in; values beyond ±120 (and NaN, high) go to the outer cells.

    Adding 1.5·2^26 rounds to a multiple of eight, whose number then stands in the low mantissa bits.
    """
    inside = where(v < 120.0, v, full(v, 120.0))
    inside = where(inside < -120.0, full(v, -120.0), inside)
    return bits(inside + 100663296.0)


def weighted_sums(X, W, first, inverse, CELLS, N):
    """Σ w·q·x and Σ w·q·q with q the codebook value nearest to inverse·x (upwards from the middle)."""
    sqx = zeros(inverse)
    sqq = sqx
    for i in range(N):
        x = ld(X, first + i)
        v = inverse * x
        c = cell(v)
        q = where(v < pick(CELLS, 0, c), pick(CELLS, 32, c), pick(CELLS, 64, c))
        wq = ld(W, first + i) * q
        sqx = sqx + wq * x
        sqq = sqq + wq * q
    return sqx, sqq


def codebook_search(j, X, W, SCALE, CELLS, LADDER, N, TRIALS):
    """Scale of sub-block j (ggml-quants.c: quantize_row_iq4_nl_impl). LADDER: -127, 1, the trials' numerators."""
    first = j * N
    largest, extreme = signed_extreme(X, first, N)
    live = largest >= 1e-15
    extreme = where(live, extreme, full(extreme, 1.0))
    scale = div(neg(extreme), full(extreme, cst(LADDER, 0)))
    sqx, sqq = weighted_sums(X, W, first, div(full(scale, cst(LADDER, 1)), scale), CELLS, N)
    scale = where(sqq > 0.0, div(sqx, sqq), zeros(scale))
    best = scale * sqx
    for t in range(TRIALS):
        sqx, sqq = weighted_sums(X, W, first, div(full(extreme, cst(LADDER, 2 + t)), extreme), CELLS, N)
        up = (sqq > 0.0) & (sqx * sqx > best * sqq)
        scale = where(up, div(sqx, sqq), scale)
        best = where(up, scale * sqx, best)
    st(SCALE, j, where(live, scale, zeros(scale)))


def reciprocal(d, LADDER):
    """1/d, and 0 for 0."""
    some = truth(d)
    return where(some, div(full(d, cst(LADDER, 1)), where(some, d, full(d, 1.0))), zeros(d))


def code(v, CELLS, CODES):
    c = cell(v)
    return where(v < pick(CELLS, 0, c), pick(CODES, 0, c), pick(CODES, 32, c))


def iq4_nl_scale(j, SCALE, INVERSE, LADDER, OUT):
    d = ld(SCALE, 0)
    store_half(OUT, 0, f2h(d))
    st(INVERSE, 0, reciprocal(d, LADDER))


def iq4_xs_scales(j, SCALE, INVERSE, LADDER, OUT):
    """Six-bit scales: four low bits at 4, two high bits of each in the word at 2. Codes follow the unrounded d."""
    _, extreme = signed_extreme(SCALE, 0, 8)
    d = neg(extreme) * 0.03125
    store_half(OUT, 0, f2h(d))
    inverse = reciprocal(d, LADDER)
    for half in range(2):
        high = bits(zeros(d))
        for k in range(2):
            b = 4 * half + 2 * k
            even = imin(imax(nint(inverse * ld(SCALE, b)), -32), 31)
            odd = imin(imax(nint(inverse * ld(SCALE, b + 1)), -32), 31)
            st(INVERSE, b, reciprocal(d * i2f(even), LADDER))
            st(INVERSE, b + 1, reciprocal(d * i2f(odd), LADDER))
            stb(OUT, 4 + 2 * half + k, ((even + 32) & 15) | (((odd + 32) & 15) << 4))
            high = high | (((even + 32) >> 4) << (4 * k)) | (((odd + 32) >> 4) << (4 * k + 2))
        stb(OUT, 2 + half, high)


def codebook_codes(j, X, INVERSE, CELLS, CODES, OUT, place):
    """Sub-block j's 32 codes as nibbles: byte m = code[m] | code[m + 16] << 4."""
    inverse = ld(INVERSE, j)
    for m in range(16):
        low = code(inverse * ld(X, 32 * j + m), CELLS, CODES)
        high = code(inverse * ld(X, 32 * j + 16 + m), CELLS, CODES)
        stb(OUT, place + 16 * j + m, low | (high << 4))


_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _lower_codes() -> tuple[np.ndarray, np.ndarray]:
    """For each cell, by the low five bits of its number: the middle of two values in it (0 if none) and the code below.

    Middles are at least 11.5 apart, so a cell of eight holds at most one.
    """
    middles = (_VALUES[1:] + _VALUES[:-1]) / 2
    number = np.rint(middles / 8).astype(int)
    assert len(set(number)) == len(number)
    cuts = np.zeros(32, np.float32)
    lower = np.zeros(32, np.int32)
    for c in range(-16, 16):
        lower[c & 31] = np.sum(number < c)
    cuts[number & 31] = middles
    return cuts, lower


def _upper_codes() -> np.ndarray:
    cuts, lower = _lower_codes()
    return lower + (cuts != 0)


def _cells() -> np.ndarray:
    """32 cuts, then the values below and from the cut on."""
    cuts, lower = _lower_codes()
    return np.concatenate([cuts, _VALUES[lower], _VALUES[_upper_codes()]])


def _codes() -> np.ndarray:
    _, lower = _lower_codes()
    return np.concatenate([lower, _upper_codes()]).astype(np.int32)


_TRIALS = 15


def _encoder(block: int, weighted: bool) -> Encoder:
    subs = block // 32
    if weighted:
        weigh: tuple[Phase, ...] = (
            Phase(block_sigma, {"N": block}),
            Phase(importance_weights, {"N": 32}, subs),
        )
    else:
        weigh = (Phase(square_weights, {"N": 32}, subs),)
    scales = iq4_xs_scales if subs > 1 else iq4_nl_scale
    return Encoder(
        family="codebook",
        scratch={
            "sigma": (1, "f32"),
            "weight": (block, "f32"),
            "total": (subs, "f32"),
            "scale": (subs, "f32"),
            "inverse": (subs, "f32"),
        },
        tables={
            "cells": _cells,
            "codes": _codes,
            "ladder": constants(-127, 1, *range(-134, -119)),
            "factor": constants(2 / block),
        },
        uses_importance=weighted,
        phases=(
            *weigh,
            Phase(codebook_search, {"W": "weight", "N": 32, "TRIALS": _TRIALS}, subs),
            Phase(scales),
            Phase(codebook_codes, {"place": 8 if subs > 1 else 2}, subs),
        ),
    )


ENCODERS = {
    ("IQ4_NL", False): _encoder(32, False),
    ("IQ4_NL", True): _encoder(32, True),
    ("IQ4_XS", False): _encoder(256, False),
    ("IQ4_XS", True): _encoder(256, True),
}
