"""Types with a scale and a minimum, x ≈ scale·code - min: Q4_1, Q5_1 with importance; Q2_K, Q4_K, Q5_K."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants, scale_ladder, trial_ladder
from quantmill.qkernels.lanes.vocabulary import (
    any_,
    div,
    f2h,
    full,
    h2f,
    i2f,
    imax,
    imin,
    izeros,
    ld,
    neg,
    nint,
    st,
    stb,
    trunc,
    where,
    zeros,
)
from quantmill.qkernels.programs.common import (
    block_sigma,
    importance_weights,
    positive_search,
    row_weights,
    running_max,
)
from quantmill.qkernels.programs.layout import (
    pack_fifth_bits,
    pack_high_bits,
    pack_nibbles,
    pack_pairs,
    pack_quarters,
    store_half,
)
from quantmill.qkernels.programs.scale_min_search import magnitude_weights, scale_min_search, spread_weights


def searched_scales(j, SCALE, MIN, TOTAL, LS, LM, D, DMIN, LADDER, N, NMAX):
    """Super-block scale and minimum by search, weighted by the sub-blocks' summed weights."""
    st(D, 0, positive_search(SCALE, 0, TOTAL, 0, LS, LADDER, N, NMAX))
    st(DMIN, 0, positive_search(MIN, 0, TOTAL, 0, LM, LADDER, N, NMAX))


def plain_codes(A, CODE, N, NMAX, CLIP):
    """Codes of non-negative values against their maximum, as stored bytes; returns the step."""
    top = running_max(A, N)
    some = top > 0.0
    inverse = where(some, div(full(top, NMAX), top), zeros(top))
    for i in range(N):
        n = nint(inverse * ld(A, i)) & 255
        st(CODE, i, i2f(where(some, imin(n, CLIP), izeros(n))))
    return where(some, div(top, full(top, NMAX)), zeros(top))


def plain_scales(j, SCALE, MIN, LS, LM, D, DMIN, N, NMAX, CLIP):
    """Super-block scale and minimum from the largest of each, without importance."""
    st(D, 0, plain_codes(SCALE, LS, N, NMAX, CLIP))
    st(DMIN, 0, plain_codes(MIN, LM, N, NMAX, CLIP))


def pack_scales_6bit(j, LS, LM, D, DMIN, SC, M, OUT, TOP):
    """d, dmin and the 12-byte table of six-bit scales and minima, then both decoded again into SC and M.

    Wrapped codes spill into their neighbours in the table, and the reference requantizes with what a reader would
    unpack, so SC and M come from the bytes. Q5_K clips codes to 63 first.
    """
    dh = f2h(ld(D, 0))
    mh = f2h(ld(DMIN, 0))
    store_half(OUT, 0, dh)
    store_half(OUT, 2, mh)
    d = h2f(dh)
    dmin = h2f(mh)
    for k in range(4):
        s = imin(trunc(ld(LS, k)), TOP)
        m = imin(trunc(ld(LM, k)), TOP)
        s4 = imin(trunc(ld(LS, k + 4)), TOP)
        m4 = imin(trunc(ld(LM, k + 4)), TOP)
        b0 = (s | ((s4 >> 4) << 6)) & 255
        b4 = (m | ((m4 >> 4) << 6)) & 255
        b8 = (s4 & 15) | ((m4 & 15) << 4)
        stb(OUT, 4 + k, b0)
        stb(OUT, 8 + k, b4)
        stb(OUT, 12 + k, b8)
        st(SC, k, d * i2f(b0 & 63))
        st(M, k, dmin * i2f(b4 & 63))
        st(SC, k + 4, d * i2f((b8 & 15) | ((b0 >> 6) << 4)))
        st(M, k + 4, dmin * i2f((b8 >> 4) | ((b4 >> 6) << 4)))


def pack_scales_4bit(j, LS, LM, D, DMIN, SC, M, OUT):
    """Q2_K: a byte of scale and minimum a sub-block at 0, d and dmin at 80."""
    dh = f2h(ld(D, 0))
    mh = f2h(ld(DMIN, 0))
    store_half(OUT, 80, dh)
    store_half(OUT, 82, mh)
    d = h2f(dh)
    dmin = h2f(mh)
    for k in range(16):
        byte = (trunc(ld(LS, k)) | (trunc(ld(LM, k)) << 4)) & 255
        stb(OUT, k, byte)
        st(SC, k, d * i2f(byte & 15))
        st(M, k, dmin * i2f(byte >> 4))


def requantize(j, X, SC, M, INVERSE, ORIGIN, CODE, N, NMAX):
    """Final codes of sub-block j from the stored scales; where its scale is zero the search's own codes stay."""
    d = ld(SC, j)
    m = ld(M, j)
    dead = d == 0.0
    inverse = ld(INVERSE, j)
    origin = ld(ORIGIN, j)
    for i in range(N):
        x = ld(X, j * N + i)
        code = imin(imax(nint(div(x + m, d)), 0), NMAX)
        if any_(dead):
            code = where(dead, imin(imax(nint(inverse * (x - origin)), 0), NMAX), code)
        stb(CODE, j * N + i, code)


def pack_q2_k(j, CODE, OUT):
    pack_quarters(CODE, OUT, 16)


def pack_q4_k(j, CODE, OUT):
    pack_pairs(CODE, OUT, 16)


def pack_q5_k(j, CODE, OUT):
    pack_high_bits(CODE, OUT, 16, 4)
    pack_pairs(CODE, OUT, 48)


def searched_codes(j, X, INVERSE, ORIGIN, CODE, N, NMAX):
    """Types of 32 weights keep the codes of the search."""
    inverse = ld(INVERSE, 0)
    origin = ld(ORIGIN, 0)
    for i in range(N):
        stb(CODE, i, imin(imax(nint(inverse * (ld(X, i) - origin)), 0), NMAX))


def pack_scale_min(j, SCALE, MIN, CODE, OUT, FIFTH):
    """Q4_1: d, m, nibbles. Q5_1: d, m, the fifth bits, nibbles."""
    store_half(OUT, 0, f2h(ld(SCALE, 0)))
    store_half(OUT, 2, f2h(neg(ld(MIN, 0))))
    if FIFTH:
        pack_fifth_bits(CODE, OUT, 4)
        pack_nibbles(CODE, 0, OUT, 8, 16)
    else:
        pack_nibbles(CODE, 0, OUT, 4, 16)


def _search(n: int, levels: int, trials: int, absolute: int, subs: int) -> Phase:
    shape = {"N": n, "NMAX": levels, "TRIALS": trials, "ABSOLUTE": absolute}
    return Phase(scale_min_search, {"W": "weight", "LADDER": "trials", **shape}, subs)


def _of_32(levels: int, n_bytes_fifth: int) -> Encoder:
    return Encoder(
        family="scale_min",
        scratch={
            "weight": (32, "f32"),
            "level": (32, "f32"),
            "scale": (1, "f32"),
            "min": (1, "f32"),
            "inverse": (1, "f32"),
            "origin": (1, "f32"),
            "code": (32, "u8"),
        },
        tables={"trials": trial_ladder(-0.9, 0.05, 37, levels)},
        uses_importance=True,
        uses_row_sigma=True,
        phases=(
            Phase(row_weights, {"N": 32}),
            _search(32, levels, 37, 0, 1),
            Phase(searched_codes, {"N": 32, "NMAX": levels}),
            Phase(pack_scale_min, {"FIFTH": n_bytes_fifth}),
        ),
    )


@dataclass(frozen=True)
class _SuperBlock:
    """The numbers in which Q2_K, Q4_K and Q5_K differ."""

    n: int  # weights a sub-block
    levels: int
    scale_levels: int
    weigh: Callable[..., None]  # weights without importance
    first: float  # trials without importance: levels + first + 0.1·k, k = 0 … trials-1
    trials: int
    absolute: int
    sigma: float  # mean square times this / 256
    clip: int  # what scale codes are limited to before packing, with importance
    pack_scales: Phase
    pack_codes: Callable[..., None]


def _of_256(s: _SuperBlock, weighted: bool) -> Encoder:
    subs = 256 // s.n
    trials = 37 if weighted else s.trials
    of_scales = {"N": subs, "NMAX": s.scale_levels}
    if weighted:
        weigh: tuple[Phase, ...] = (
            Phase(block_sigma, {"N": 256}),
            Phase(importance_weights, {"N": s.n}, subs),
        )
        scales = Phase(searched_scales, of_scales)
        ladder = trial_ladder(-0.9, 0.05, 37, s.levels)
    else:
        weigh = (Phase(s.weigh, {"N": s.n}, subs),)
        scales = Phase(plain_scales, {**of_scales, "CLIP": s.clip})
        ladder = trial_ladder(s.first, 0.1, trials, s.levels)
    per_sub = dict.fromkeys(
        ("scale", "min", "inverse", "origin", "total", "ls", "lm", "sc", "m"), (subs, "f32")
    )
    return Encoder(
        family="scale_min",
        scratch={
            "sigma": (1, "f32"),
            "weight": (256, "f32"),
            "level": (s.n, "f32"),
            **per_sub,
            "d": (1, "f32"),
            "dmin": (1, "f32"),
            "code": (256, "u8"),
        },
        tables={
            "trials": ladder,
            "ladder": scale_ladder(s.scale_levels),
            "factor": constants(s.sigma / 256),
        },
        uses_importance=weighted,
        phases=(
            *weigh,
            _search(s.n, s.levels, trials, 0 if weighted else s.absolute, subs),
            scales,
            s.pack_scales,
            Phase(requantize, {"N": s.n, "NMAX": s.levels}, subs),
            Phase(s.pack_codes),
        ),
    )


_Q2_K = _SuperBlock(16, 3, 15, magnitude_weights, -0.5, 16, 1, 1.0, 255, Phase(pack_scales_4bit), pack_q2_k)


_Q4_K = _SuperBlock(
    32,
    15,
    63,
    spread_weights,
    -1.0,
    21,
    0,
    2.0,
    63,
    Phase(pack_scales_6bit, {"TOP": 255}),
    pack_q4_k,
)


_Q5_K = _SuperBlock(
    32,
    31,
    63,
    spread_weights,
    -0.5,
    16,
    0,
    2.0,
    63,
    Phase(pack_scales_6bit, {"TOP": 63}),
    pack_q5_k,
)


ENCODERS = {
    ("Q4_1", True): _of_32(15, 0),
    ("Q5_1", True): _of_32(31, 1),
    ("Q2_K", False): _of_256(_Q2_K, False),
    ("Q2_K", True): _of_256(_Q2_K, True),
    ("Q4_K", False): _of_256(_Q4_K, False),
    ("Q4_K", True): _of_256(_Q4_K, True),
    ("Q5_K", False): _of_256(_Q5_K, False),
    ("Q5_K", True): _of_256(_Q5_K, True),
}
