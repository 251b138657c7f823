"""Thorough searches of types with whole-numbered scales of sub-blocks under one half: Q3_K, Q6_K, IQ4_XS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.decode.fields import half_at, signed
from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants, continued
from quantmill.qkernels.lanes.vocabulary import (
    cst,
    div,
    f2h,
    full,
    h2f,
    i2f,
    izeros,
    ld,
    ldb,
    lev,
    nint,
    st,
    stb,
    where,
    zeros,
)
from quantmill.qkernels.programs.codebook import ENCODERS as CODEBOOK
from quantmill.qkernels.programs.codebook import codebook_codes
from quantmill.qkernels.programs.common import signed_extreme
from quantmill.qkernels.programs.layout import pack_scales_3bit_high, store_half
from quantmill.qkernels.programs.rounding import inverse_or_zero
from quantmill.qkernels.programs.scale import ENCODERS as SCALE
from quantmill.qkernels.programs.scale import pack_q3_k, pack_q6_k
from quantmill.qkernels.programs.thorough import (
    begun,
    fit,
    importance,
    inverse_steps,
    level_codes,
    scratch_of,
    spaced,
    widest,
)

_ROUNDS = 3


def read_scales_q3_k(j, OUT, D, SCALES):
    st(D, 0, half_at(OUT, 108))
    for k in range(4):
        high = ldb(OUT, 104 + k)
        for g in range(4):
            low = (ldb(OUT, 96 + 4 * (g & 1) + k) >> (4 * (g >> 1))) & 15
            st(SCALES, 4 * g + k, i2f((low | (((high >> (2 * g)) & 3) << 4)) - 32))


def read_scales_q6_k(j, OUT, D, SCALES):
    st(D, 0, half_at(OUT, 208))
    for k in range(16):
        st(SCALES, k, i2f(signed(ldb(OUT, 192 + k))))


def read_scales_iq4_xs(j, OUT, D, SCALES):
    st(D, 0, half_at(OUT, 0))
    for half in range(2):
        high = ldb(OUT, 2 + half)
        for k in range(4):
            low = (ldb(OUT, 4 + 2 * half + (k >> 1)) >> (4 * (k & 1))) & 15
            st(SCALES, 4 * half + k, i2f((low | (((high >> (2 * k)) & 3) << 4)) - 32))


def wanted_scale(j, X, H, WANTED, NUMERATORS, CELLS, N, LOW, HIGH, TRIALS):
    """The scale that sub-block j would have by itself."""
    _, extreme = signed_extreme(X, j * N, N)
    st(WANTED, j, widest(X, H, j * N, extreme, NUMERATORS, 0, CELLS, N, LOW, HIGH, TRIALS))


def error_of(X, H, d, SCALES, CELLS, SUBS, N, LOW, HIGH):
    """Of a whole block with its nearest codes."""
    total = zeros(d)
    for k in range(SUBS):
        scale = d * ld(SCALES, k)
        error, _, _ = fit(X, H, k * N, scale, inverse_or_zero(scale), CELLS, N, LOW, HIGH)
        total = total + error
    return total


def common_scale(j, X, H, D, SCALES, WANTED, DIVISORS, CELLS, SUBS, N, LOW, HIGH, LEAST, MOST, TRIALS):
    """The default's d and scales, or the largest wanted scale over one of DIVISORS, and the multiples next to all."""
    d = ld(D, 0)
    best = error_of(X, H, d, SCALES, CELLS, SUBS, N, LOW, HIGH)
    _, extreme = signed_extreme(WANTED, 0, SUBS)
    for t in range(TRIALS):
        trial = h2f(f2h(div(extreme, full(extreme, cst(DIVISORS, t)))))
        inverse = inverse_or_zero(trial)
        total = zeros(d)
        for k in range(SUBS):
            scale = trial * lev(inverse * ld(WANTED, k), LEAST, MOST)
            error, _, _ = fit(X, H, k * N, scale, inverse_or_zero(scale), CELLS, N, LOW, HIGH)
            total = total + error
        up = total < best
        best = where(up, total, best)
        d = where(up, trial, d)
        for k in range(SUBS):
            st(SCALES, k, where(up, lev(inverse * ld(WANTED, k), LEAST, MOST), ld(SCALES, k)))
    st(D, 0, d)


def near_scale(j, X, H, D, SCALES, SXQ, SQQ, ERROR, CELLS, N, LOW, HIGH, LEAST, MOST, REACH):
    """Sub-block j's best scale of those up to REACH from the present one, and the sums of its codes."""
    first = j * N
    d = ld(D, 0)
    present = ld(SCALES, j)
    scale = d * present
    kept = present
    best, sxq, sqq = fit(X, H, first, scale, inverse_or_zero(scale), CELLS, N, LOW, HIGH)
    for t in range(2 * REACH + 1):
        s = lev(present + (t - REACH), LEAST, MOST)
        scale = d * s
        error, xq, qq = fit(X, H, first, scale, inverse_or_zero(scale), CELLS, N, LOW, HIGH)
        up = error < best
        best = where(up, error, best)
        kept = where(up, s, kept)
        sxq = where(up, xq, sxq)
        sqq = where(up, qq, sqq)
    st(SCALES, j, kept)
    st(SXQ, j, sxq)
    st(SQQ, j, sqq)
    st(ERROR, j, best)


def refitted_d(j, X, H, D, SCALES, SXQ, SQQ, ERROR, CELLS, SUBS, N, LOW, HIGH):
    """d by least squares for the present codes, where that lowers the error."""
    d = ld(D, 0)
    sxq = zeros(d)
    sqq = zeros(d)
    present = zeros(d)
    for k in range(SUBS):
        s = ld(SCALES, k)
        sxq = sxq + s * ld(SXQ, k)
        sqq = sqq + s * s * ld(SQQ, k)
        present = present + ld(ERROR, k)
    trial = h2f(f2h(div(sxq, sqq)))
    up = error_of(X, H, trial, SCALES, CELLS, SUBS, N, LOW, HIGH) < present
    st(D, 0, where(up, trial, d))


def write_scales_q3_k(j, D, SCALES, BITS, OUT):
    store_half(OUT, 108, f2h(ld(D, 0)))
    for k in range(16):
        st(BITS, k, nint(ld(SCALES, k)) + 32)
    pack_scales_3bit_high(BITS, OUT, 96)


def write_scales_q6_k(j, D, SCALES, ALIVE, OUT):
    d = ld(D, 0)
    store_half(OUT, 208, f2h(d))
    st(ALIVE, 0, where(d != 0.0, izeros(d) + 1, izeros(d)))
    for k in range(16):
        stb(OUT, 192 + k, nint(ld(SCALES, k)))


def write_scales_iq4_xs(j, D, SCALES, OUT):
    d = ld(D, 0)
    store_half(OUT, 0, f2h(d))
    for half in range(2):
        high = izeros(d)
        for k in range(2):
            even = nint(ld(SCALES, 4 * half + 2 * k)) + 32
            odd = nint(ld(SCALES, 4 * half + 2 * k + 1)) + 32
            stb(OUT, 4 + 2 * half + k, (even & 15) | ((odd & 15) << 4))
            high = high | ((even >> 4) << (4 * k)) | ((odd >> 4) << (4 * k + 2))
        stb(OUT, 2 + half, high)


@dataclass(frozen=True)
class _SuperBlock:
    """A type: its sub-blocks, levels (both 0: the codebook's), range of scales, what is tried, how it is stored."""

    n: int
    low: int
    high: int
    scales: int  # -scales … scales - 1
    levels: int  # the largest weight's, of steps that cut nothing off
    steps: int
    reach: int
    read: Callable[..., None]
    write: tuple[Phase, ...]


def _encoder(start: Encoder, row: _SuperBlock, weighted: bool) -> Encoder:
    subs = 256 // row.n
    size = {"N": row.n, "LOW": row.low, "HIGH": row.high}
    cells = "cells" if "cells" in start.tables else "numerators"  # whole numbers need no table
    search: dict[str, str | int] = {"H": importance(weighted), "CELLS": cells, **size}
    whole = {"LEAST": -row.scales, "MOST": row.scales - 1}
    steps = spaced(0.8, 2.5, row.steps, row.levels)
    numerators = [*(-s for s in steps), *steps]
    divisors = [-row.scales * f for f in (1, 0.95, 0.9)] + [(row.scales - 1) * f for f in (1, 0.95, 0.9)]
    near = Phase(near_scale, {**search, **whole, "REACH": row.reach}, subs)
    refit = Phase(refitted_d, {**search, "SUBS": subs})
    codes = Phase(inverse_steps, {}, subs) if row.low == row.high else Phase(level_codes, size, subs)
    return continued(
        start,
        "thorough_super_scale",
        (
            *begun(weighted, 256),
            Phase(row.read),
            Phase(wanted_scale, {**search, "TRIALS": len(numerators)}, subs),
            Phase(common_scale, {**search, **whole, "SUBS": subs, "TRIALS": len(divisors)}),
            *(near, refit) * _ROUNDS,
            codes,
            *row.write,
        ),
        {
            **scratch_of(weighted, 256),
            **dict.fromkeys(("scales", "wanted", "sxq", "sqq", "error", "inverse"), (subs, "f32")),
            "d": (1, "f32"),
            "bits": (16, "i32"),
            "alive": (1, "i32"),
            "code": (256, "u8"),
        },
        {"numerators": constants(*numerators), "divisors": constants(*divisors)},
        weighted,
    )


_ROWS = {
    "Q3_K": _SuperBlock(
        16, -4, 3, 32, 4, 12, 4, read_scales_q3_k, (Phase(write_scales_q3_k), Phase(pack_q3_k))
    ),
    "Q6_K": _SuperBlock(
        16, -32, 31, 128, 32, 24, 6, read_scales_q6_k, (Phase(write_scales_q6_k), Phase(pack_q6_k))
    ),
    "IQ4_XS": _SuperBlock(
        32,
        0,
        0,
        32,
        120,
        24,
        6,
        read_scales_iq4_xs,
        (Phase(write_scales_iq4_xs), Phase(codebook_codes, {"place": 8}, 8)),
    ),
}

ENCODERS = {
    (type, weighted): _encoder({**SCALE, **CODEBOOK}[type, weighted], row, weighted)
    for type, row in _ROWS.items()
    for weighted in (False, True)
}
