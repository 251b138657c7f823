"""Types with one signed scale, x ≈ scale·code: Q4_0 and Q5_0 with importance, Q3_K, Q6_K."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qkernels.lanes.encoder import Encoder, Phase, constants
from qkernels.lanes.vocabulary import (
    any_,
    cst,
    div,
    f2h,
    full,
    h2f,
    i2f,
    imax,
    imin,
    izeros,
    ld,
    ldb,
    nint,
    rnear,
    st,
    stb,
    where,
    zeros,
)
from qkernels.programs.common import (
    block_sigma,
    importance_weights,
    row_weights,
    signed_extreme,
    truth,
)
from qkernels.programs.layout import (
    pack_fifth_bits,
    pack_high_bits,
    pack_nibbles,
    pack_quarters,
    pack_scales_3bit_high,
    store_half,
)


def signed_level(v, NMAX):
    """Code -NMAX … NMAX-1 of a value known to be within 2^22, as a float."""
    l = rnear(v)
    l = where(l > NMAX - 1, full(l, NMAX - 1), l)
    return where(l < -NMAX, full(l, -NMAX), l)


def weigh_products(X, first, W, wfirst, WX, N):
    for i in range(N):
        st(WX, i, ld(W, wfirst + i) * ld(X, first + i))


def square_products(X, first, WEIGHT, WX, N):
    """Without importance the weights are x²."""
    for i in range(N):
        x = ld(X, first + i)
        w = x * x
        st(WEIGHT, first + i, w)
        st(WX, i, w * x)


def signed_scale(X, first, W, wfirst, WX, LADDER, N, NMAX):
    """Scale, the inverse step of its codes, and whether the data is alive (ggml-quants.c: make_qx_quants).

    LADDER: -NMAX, then -(NMAX + 0.1·t) for t = -9 … 9 without 0. Codes are level(inverse · x); of dead data they
    are all zero before NMAX is added.
    """
    largest, extreme = signed_extreme(X, first, N)
    live = largest >= 1e-15
    inverse = div(full(extreme, cst(LADDER, 0)), extreme)
    s1 = zeros(extreme)
    s2 = zeros(extreme)
    for i in range(N):
        l = signed_level(inverse * ld(X, first + i), NMAX)
        s1 = s1 + ld(WX, i) * l
        s2 = s2 + ld(W, wfirst + i) * l * l
    scale = where(truth(s2), div(s1, s2), zeros(s1))
    best = scale * s1
    best_inverse = inverse
    for t in range(1, 19):
        inverse = div(full(extreme, cst(LADDER, t)), extreme)
        s1 = zeros(extreme)
        s2 = zeros(extreme)
        for i in range(N):
            l = signed_level(inverse * ld(X, first + i), NMAX)
            s1 = s1 + ld(WX, i) * l
            s2 = s2 + ld(W, wfirst + i) * l * l
        up = (s2 > 0.0) & (s1 * s1 > best * s2)
        if any_(up):
            trial = div(s1, s2)
            scale = where(up, trial, scale)
            best = where(up, trial * s1, best)
            best_inverse = where(up, inverse, best_inverse)
    return where(live, scale, zeros(scale)), best_inverse, live


def keep_search(j, scale, inverse, live, SCALE, INVERSE, LIVE):
    st(SCALE, j, scale)
    st(INVERSE, j, inverse)
    st(LIVE, j, where(live, izeros(scale) + 1, izeros(scale)))


def scale_search(j, X, W, WX, SCALE, INVERSE, LIVE, LADDER, N, NMAX):
    """Scale of sub-block j with given weights."""
    weigh_products(X, j * N, W, j * N, WX, N)
    scale, inverse, live = signed_scale(X, j * N, W, j * N, WX, LADDER, N, NMAX)
    keep_search(j, scale, inverse, live, SCALE, INVERSE, LIVE)


def plain_scale_search(j, X, WEIGHT, WX, SCALE, INVERSE, LIVE, LADDER, N, NMAX):
    """Scale of sub-block j weighted by x²."""
    square_products(X, j * N, WEIGHT, WX, N)
    scale, inverse, live = signed_scale(X, j * N, WEIGHT, j * N, WX, LADDER, N, NMAX)
    keep_search(j, scale, inverse, live, SCALE, INVERSE, LIVE)


def searched_level(x, inverse, live, NMAX):
    code = imin(imax(nint(inverse * x), -NMAX), NMAX - 1) + NMAX
    return where(live, code, izeros(code))


def searched_codes(j, X, INVERSE, LIVE, CODE, N, NMAX):
    """The search's own codes of sub-block j, computed again."""
    inverse = ld(INVERSE, j)
    live = ld(LIVE, j) > 0
    for i in range(N):
        stb(CODE, j * N + i, searched_level(ld(X, j * N + i), inverse, live, NMAX))


def descent_search(j, X, WEIGHT, LEVEL, SCALE, CODE, N, NMAX):
    """Scale and codes of sub-block j by coordinate descent, weighted by x² (ggml-quants.c: make_q3_quants)."""
    first = j * N
    largest, extreme = signed_extreme(X, first, N)
    live = largest >= 1e-15
    inverse = div(full(extreme, -NMAX), extreme)
    s1 = zeros(extreme)
    s2 = zeros(extreme)
    for i in range(N):
        x = ld(X, first + i)
        w = x * x
        l = signed_level(inverse * x, NMAX)
        st(WEIGHT, i, w)
        st(LEVEL, i, l)
        s1 = s1 + w * x * l
        s2 = s2 + w * l * l
    moving = live
    for _sweep in range(5):
        if any_(moving):
            moved = extreme != extreme
            for i in range(N):
                x = ld(X, first + i)
                w = ld(WEIGHT, i)
                old = ld(LEVEL, i)
                a = s1 - w * x * old
                b = s2 - w * old * old
                new = i2f(imin(imax(nint(div(x * b, a)), -NMAX), NMAX - 1))
                a2 = a + w * x * new
                b2 = b + w * new * new
                up = moving & (a > 0.0) & (new != old) & (b2 > 0.0) & (a2 * a2 * s2 > s1 * s1 * b2)
                st(LEVEL, i, where(up, new, old))
                s1 = where(up, a2, s1)
                s2 = where(up, b2, s2)
                moved = moved | up
            moving = moved
    st(SCALE, j, where(live & (s2 > 0.0), div(s1, s2), zeros(s1)))
    for i in range(N):
        code = nint(ld(LEVEL, i)) + NMAX
        stb(CODE, first + i, where(live, code, izeros(code)))


def requantize(j, X, SC, CODE, N, NMAX):
    """Final codes of sub-block j from the stored scale; where it is zero the search's own codes stay."""
    d = ld(SC, j)
    dead = d == 0.0
    for i in range(N):
        code = imin(imax(nint(div(ld(X, j * N + i), d)), -NMAX), NMAX - 1) + NMAX
        if any_(dead):
            code = where(dead, ldb(CODE, j * N + i), code)
        stb(CODE, j * N + i, code)


def searched_scales_q3_k(j, SCALE, TOTAL, WX, LADDER, SC, BITS, OUT):
    """Q3_K with importance: the sixteen scales searched like weights, 64 levels."""
    weigh_products(SCALE, 0, TOTAL, 0, WX, 16)
    d, inverse, live = signed_scale(SCALE, 0, TOTAL, 0, WX, LADDER, 16, 32)
    h = f2h(d)
    store_half(OUT, 108, h)
    step = h2f(h)
    for k in range(16):
        code = searched_level(ld(SCALE, k), inverse, live, 32)
        st(BITS, k, code)
        st(SC, k, step * i2f(code - 32))
    pack_scales_3bit_high(BITS, OUT, 96)


def plain_scales_q3_k(j, SCALE, SC, BITS, OUT):
    """Q3_K without importance: scales rounded against the largest."""
    _, extreme = signed_extreme(SCALE, 0, 16)
    some = truth(extreme)
    inverse = div(full(extreme, -32.0), extreme)
    d = where(some, div(full(extreme, 1.0), inverse), zeros(extreme))
    h = f2h(d)
    store_half(OUT, 108, h)
    step = h2f(h)
    for k in range(16):
        n = nint(inverse * ld(SCALE, k)) & 255
        n = where(n > 127, n - 256, n)
        code = where(some, imin(imax(n, -32), 31) + 32, izeros(n))
        st(BITS, k, code)
        st(SC, k, step * i2f(code - 32))
    pack_scales_3bit_high(BITS, OUT, 96)


def pack_q3_k(j, CODE, OUT):
    pack_high_bits(CODE, OUT, 0, 2)
    pack_quarters(CODE, OUT, 32)


def scales_q6_k(j, SCALE, SC, ALIVE, OUT):
    """Sixteen signed bytes against the largest scale; a super-block without one is all zero bytes."""
    largest, extreme = signed_extreme(SCALE, 0, 16)
    alive = largest >= 1e-15
    inverse = div(full(extreme, -128.0), extreme)
    h = f2h(div(full(extreme, 1.0), inverse))
    h = where(alive, h, izeros(h))
    st(ALIVE, 0, where(alive, izeros(h) + 1, izeros(h)))
    store_half(OUT, 208, h)
    d = h2f(h)
    for k in range(16):
        n = imin(nint(inverse * ld(SCALE, k)), 127) & 255
        n = where(alive, n, izeros(n))
        stb(OUT, 192 + k, n)
        st(SC, k, d * i2f(where(n > 127, n - 256, n)))


def pack_q6_k(j, CODE, ALIVE, OUT):
    """ql[128] low four bits, qh[64] high two bits of codes 0 … 63."""
    alive = ld(ALIVE, 0) > 0
    for h in range(2):
        for m in range(32):
            c0 = where(alive, ldb(CODE, 128 * h + m), 0)
            c1 = where(alive, ldb(CODE, 128 * h + 32 + m), 0)
            c2 = where(alive, ldb(CODE, 128 * h + 64 + m), 0)
            c3 = where(alive, ldb(CODE, 128 * h + 96 + m), 0)
            stb(OUT, 64 * h + m, (c0 & 15) | ((c2 & 15) << 4))
            stb(OUT, 64 * h + 32 + m, (c1 & 15) | ((c3 & 15) << 4))
            stb(OUT, 128 + 32 * h + m, (c0 >> 4) | ((c1 >> 4) << 2) | ((c2 >> 4) << 4) | ((c3 >> 4) << 6))


def pack_scale(j, SCALE, CODE, OUT, FIFTH):
    """Q4_0: d, nibbles. Q5_0: d, the fifth bits, nibbles."""
    store_half(OUT, 0, f2h(ld(SCALE, 0)))
    if FIFTH:
        pack_fifth_bits(CODE, OUT, 2)
        pack_nibbles(CODE, 0, OUT, 6, 16)
    else:
        pack_nibbles(CODE, 0, OUT, 2, 16)


def _ladder(levels: int) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        t = np.array([t for t in range(-9, 10) if t], np.float32)
        return -np.append(np.float32(levels), np.float32(levels) + np.float32(0.1) * t).astype(np.float32)

    return make


def _of_32(levels: int, fifth: int) -> Encoder:
    found = ("scale", "inverse", "live")
    return Encoder(
        family="scale",
        scratch={
            "weight": (32, "f32"),
            "wx": (32, "f32"),
            "scale": (1, "f32"),
            "inverse": (1, "f32"),
            "live": (1, "i32"),
            "code": (32, "u8"),
        },
        tables={"trials": _ladder(levels)},
        uses_importance=True,
        uses_row_sigma=True,
        phases=(
            Phase("row_weights", ("x", "importance", "row_sigma", "weight", 32)),
            Phase("scale_search", ("x", "weight", "wx", *found, "trials", 32, levels)),
            Phase("searched_codes", ("x", "inverse", "live", "code", 32, levels)),
            Phase("pack_scale", ("scale", "code", "out", fifth)),
        ),
    )


_SCRATCH = {
    "sigma": (1, "f32"),
    "weight": (256, "f32"),
    "w": (16, "f32"),
    "wx": (16, "f32"),
    "level": (16, "f32"),
    "scale": (16, "f32"),
    "inverse": (16, "f32"),
    "live": (16, "i32"),
    "total": (16, "f32"),
    "sc": (16, "f32"),
    "bits": (16, "i32"),
    "alive": (1, "i32"),
    "code": (256, "u8"),
}


def _of_256(levels: int, weighted: bool, before: tuple[Phase, ...], after: tuple[Phase, ...]) -> Encoder:
    return Encoder(
        family="scale",
        scratch=_SCRATCH,
        private=frozenset({"w", "wx", "level"}),
        tables={"trials": _ladder(levels), "ladder": _ladder(32), "factor": constants(2 / 256)},
        uses_importance=weighted,
        phases=(*before, after[0], Phase("requantize", ("x", "sc", "code", 16, levels), 16), *after[1:]),
    )


_FOUND = ("scale", "inverse", "live")
_CODES_3 = Phase("searched_codes", ("x", "inverse", "live", "code", 16, 4), 16)
_CODES_6 = Phase("searched_codes", ("x", "inverse", "live", "code", 16, 32), 16)
_AFTER_6 = (
    Phase("scales_q6_k", ("scale", "sc", "alive", "out")),
    Phase("pack_q6_k", ("code", "alive", "out")),
)

ENCODERS = {
    ("Q4_0", True): _of_32(8, 0),
    ("Q5_0", True): _of_32(16, 1),
    ("Q3_K", False): _of_256(
        4,
        False,
        (Phase("descent_search", ("x", "w", "level", "scale", "code", 16, 4), 16),),
        (Phase("plain_scales_q3_k", ("scale", "sc", "bits", "out")), Phase("pack_q3_k", ("code", "out"))),
    ),
    ("Q3_K", True): _of_256(
        4,
        True,
        (
            Phase("block_sigma", ("x", "sigma", "factor", 256)),
            Phase("importance_weights", ("x", "importance", "sigma", "weight", "total", 16), 16),
            Phase("scale_search", ("x", "weight", "wx", *_FOUND, "trials", 16, 4), 16),
            _CODES_3,
        ),
        (
            Phase("searched_scales_q3_k", ("scale", "total", "wx", "ladder", "sc", "bits", "out")),
            Phase("pack_q3_k", ("code", "out")),
        ),
    ),
    ("Q6_K", False): _of_256(
        32,
        False,
        (Phase("plain_scale_search", ("x", "weight", "wx", *_FOUND, "trials", 16, 32), 16), _CODES_6),
        _AFTER_6,
    ),
    ("Q6_K", True): _of_256(
        32,
        True,
        (Phase("scale_search", ("x", "importance", "wx", *_FOUND, "trials", 16, 32), 16), _CODES_6),
        _AFTER_6,
    ),
}
