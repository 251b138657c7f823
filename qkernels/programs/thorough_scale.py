"""Thorough searches of types with one scale a block: Q4_0, Q5_0, Q8_0, IQ4_NL, Q1_0, Q2_0, TQ1_0, TQ2_0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantmill.qkernels.decode.fields import half_at
from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants, continued
from quantmill.qkernels.lanes.vocabulary import div, f2h, fabs, full, h2f, i2f, ld, ldb, st, stb, where, zeros
from quantmill.qkernels.programs.codebook import ENCODERS as CODEBOOK
from quantmill.qkernels.programs.codebook import codebook_codes
from quantmill.qkernels.programs.common import signed_extreme
from quantmill.qkernels.programs.layout import store_half
from quantmill.qkernels.programs.rounding import ENCODERS as ROUNDING
from quantmill.qkernels.programs.rounding import inverse_or_zero, pack_codes_4, pack_codes_5
from quantmill.qkernels.programs.scale import ENCODERS as SCALE
from quantmill.qkernels.programs.ternary import ENCODERS as TERNARY
from quantmill.qkernels.programs.ternary import pack_tq1_0, pack_tq2_0
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

_REFITS = 3


def one_scale(j, X, H, D, SCALES, OUT, NUMERATORS, CELLS, PLACE, N, LOW, HIGH, RUNS, TRIALS, REFITS):
    """The block's scale: of each run of steps the best, moved REFITS times to where it fits the codes it gives best."""
    d = half_at(OUT, PLACE)
    best, _, _ = fit(X, H, 0, d, inverse_or_zero(d), CELLS, N, LOW, HIGH)
    _, extreme = signed_extreme(X, 0, N)
    for run in range(RUNS):
        scale = widest(X, H, 0, extreme, NUMERATORS, run * TRIALS, CELLS, N, LOW, HIGH, TRIALS)
        for _again in range(REFITS):
            trial = h2f(f2h(scale))
            error, sxq, sqq = fit(X, H, 0, trial, inverse_or_zero(trial), CELLS, N, LOW, HIGH)
            up = error < best
            best = where(up, error, best)
            d = where(up, trial, d)
            scale = div(sxq, sqq)
    st(D, 0, d)
    st(SCALES, 0, full(d, 1.0))
    store_half(OUT, PLACE, f2h(d))


def magnitude_error(X, H, d, N):
    error = zeros(d)
    for i in range(N):
        e = d - fabs(ld(X, i))
        error = error + ld(H, i) * (e * e)
    return error


def mean_magnitude(j, X, H, OUT, N):
    """Q1_0: for signs alone the best scale is Σ h·|x| / Σ h; the signs stay."""
    d = half_at(OUT, 0)
    total = zeros(d)
    sh = zeros(d)
    for i in range(N):
        h = ld(H, i)
        total = total + h * fabs(ld(X, i))
        sh = sh + h
    mean = h2f(f2h(div(total, sh)))
    up = magnitude_error(X, H, mean, N) < magnitude_error(X, H, d, N)
    store_half(OUT, 0, f2h(where(up, mean, d)))


def pack_bytes(j, CODE, OUT):
    for i in range(32):
        stb(OUT, 2 + i, ldb(CODE, i) - 127)


def pack_q2_0(j, CODE, OUT):
    """Four weights a byte, the first in the low bits."""
    for m in range(16):
        low = ldb(CODE, 4 * m) | (ldb(CODE, 4 * m + 1) << 2)
        stb(OUT, 2 + m, low | (ldb(CODE, 4 * m + 2) << 4) | (ldb(CODE, 4 * m + 3) << 6))


def trits_of(CODE, TRITS):
    for i in range(256):
        st(TRITS, i, i2f(ldb(CODE, i) - 1))


def pack_trits_by_five(j, CODE, TRITS, D, OUT):
    trits_of(CODE, TRITS)
    pack_tq1_0(TRITS, full(ld(D, 0), 1.0), OUT)


def pack_trits_by_four(j, CODE, TRITS, D, OUT):
    trits_of(CODE, TRITS)
    pack_tq2_0(TRITS, full(ld(D, 0), 1.0), OUT)


@dataclass(frozen=True)
class _OneScale:
    """A type: its block, levels (both 0: the codebook's), where d is, what is tried, and how codes are packed.

    `runs`: lists of numerators of steps, all of one length; a step is a numerator over the largest weight.
    """

    block: int
    low: int
    high: int
    place: int
    runs: tuple[Sequence[float], ...]
    pack: Phase


def _either(numerators: Sequence[float]) -> tuple[Sequence[float], ...]:
    return ([-n for n in numerators], numerators)


def _encoder(start: Encoder, row: _OneScale, weighted: bool) -> Encoder:
    size = {"N": row.block, "LOW": row.low, "HIGH": row.high}
    numerators = [n for run in row.runs for n in run]
    cells = "cells" if "cells" in start.tables else "numerators"  # whole numbers need no table
    search: dict[str, str | int] = {"H": importance(weighted), "CELLS": cells, **size}
    search |= {"PLACE": row.place, "RUNS": len(row.runs), "TRIALS": len(row.runs[0]), "REFITS": _REFITS}
    codes = Phase(inverse_steps) if row.low == row.high else Phase(level_codes, size)
    return continued(
        start,
        "thorough_scale",
        (*begun(weighted, row.block), Phase(one_scale, search), codes, row.pack),
        {
            **scratch_of(weighted, row.block),
            **dict.fromkeys(("d", "scales", "inverse"), (1, "f32")),
            "code": (row.block, "u8"),
            "trits": (row.block, "f32"),
        },
        {"numerators": constants(*numerators)},
        weighted,
    )


def _signs() -> Encoder:
    """Without importance the default's mean magnitude is the best already."""
    mean = Phase(mean_magnitude, {"H": "importance", "N": 128})
    return continued(TERNARY["Q1_0", False], "thorough_scale", (mean,), {}, {}, True)


def _start(type: str, weighted: bool) -> Encoder:
    """The default's encoder, which may ignore importance."""
    known = {**ROUNDING, **SCALE, **CODEBOOK, **TERNARY}
    return known.get((type, weighted)) or known[type, False]


_ROWS = {
    "Q4_0": _OneScale(32, -8, 7, 0, _either(spaced(0.8, 2.5, 24, 8)), Phase(pack_codes_4, {"PLACE": 2})),
    "Q5_0": _OneScale(32, -16, 15, 0, _either(spaced(0.8, 2.5, 24, 16)), Phase(pack_codes_5, {"PLACE": 2})),
    "Q8_0": _OneScale(
        32,
        -127,
        127,
        0,
        (spaced(0.8, 1.02, 24, 127), spaced(1.02, 2.5, 24, 127)),
        Phase(pack_bytes),
    ),
    "IQ4_NL": _OneScale(32, 0, 0, 0, _either(spaced(0.8, 2.5, 24, 120)), Phase(codebook_codes, {"place": 2})),
    "Q2_0": _OneScale(64, -1, 2, 0, _either(spaced(0.8, 10, 24, 1)), Phase(pack_q2_0)),
    "TQ1_0": _OneScale(256, -1, 1, 52, (spaced(0.7, 10, 24, 1),), Phase(pack_trits_by_five)),
    "TQ2_0": _OneScale(256, -1, 1, 64, (spaced(0.7, 10, 24, 1),), Phase(pack_trits_by_four)),
}

ENCODERS = {
    **{
        (type, weighted): _encoder(_start(type, weighted), row, weighted)
        for type, row in _ROWS.items()
        for weighted in (False, True)
    },
    ("Q1_0", True): _signs(),
}
