"""The searches for one signed scale, x ≈ scale·code: by trials, and by coordinate descent."""

from __future__ import annotations

from quantmill.qkernels.lanes.vocabulary import (
    any_,
    cst,
    div,
    full,
    i2f,
    imax,
    imin,
    izeros,
    ld,
    nint,
    rnear,
    st,
    stb,
    where,
    zeros,
)
from quantmill.qkernels.programs.common import signed_extreme, truth


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


def fitted_products(X, first, W, wfirst, WX, inverse, N, NMAX, LOW, HIGH):
    """Σ w·x·code and Σ w·code² with the codes of a step.

    LOW, HIGH: whether one might be below -NMAX, above NMAX - 1 before it is clamped.
    """
    s1 = zeros(inverse)
    s2 = zeros(inverse)
    for i in range(N):
        l = rnear(inverse * ld(X, first + i))
        if HIGH:
            l = where(l > NMAX - 1, full(l, NMAX - 1), l)
        if LOW:
            l = where(l < -NMAX, full(l, -NMAX), l)
        s1 = s1 + ld(WX, i) * l
        s2 = s2 + ld(W, wfirst + i) * l * l
    return s1, s2


def signed_scale(X, first, W, wfirst, WX, LADDER, N, NMAX):
    """Scale, the inverse step of its codes, and whether the data is alive (ggml-quants.c: make_qx_quants).

    LADDER: -NMAX, then -(NMAX + 0.1·t) for t = -9 … 9 without 0. Codes are level(inverse · x); of dead data they
    are all zero before NMAX is added. A code is at most NMAX + 0.1·t, rounded: within bounds up to t = -6, not below
    them up to t = 4, with a tenth to spare for the roundings of quotient and product.
    """
    largest, extreme = signed_extreme(X, first, N)
    live = largest >= 1e-15
    inverse = div(full(extreme, cst(LADDER, 0)), extreme)
    s1, s2 = fitted_products(X, first, W, wfirst, WX, inverse, N, NMAX, 0, 1)
    scale = where(truth(s2), div(s1, s2), zeros(s1))
    best = scale * s1
    for t in range(1, 5):
        trial = div(full(extreme, cst(LADDER, t)), extreme)
        s1, s2 = fitted_products(X, first, W, wfirst, WX, trial, N, NMAX, 0, 0)
        scale, best, inverse = better_scale(s1, s2, trial, scale, best, inverse)
    for t in range(5, 14):
        trial = div(full(extreme, cst(LADDER, t)), extreme)
        s1, s2 = fitted_products(X, first, W, wfirst, WX, trial, N, NMAX, 0, 1)
        scale, best, inverse = better_scale(s1, s2, trial, scale, best, inverse)
    for t in range(14, 19):
        trial = div(full(extreme, cst(LADDER, t)), extreme)
        s1, s2 = fitted_products(X, first, W, wfirst, WX, trial, N, NMAX, 1, 1)
        scale, best, inverse = better_scale(s1, s2, trial, scale, best, inverse)
    return where(live, scale, zeros(scale)), inverse, live


def better_scale(s1, s2, trial, scale, best, inverse):
    """The scale, its gain and its inverse step: those of a trial where it is better.

    Not behind an `any_`: some lane mostly is better, and a branch foretold wrongly costs more than the quotient.
    """
    up = (s2 > 0.0) & (s1 * s1 > best * s2)
    fitted = div(s1, s2)
    scale = where(up, fitted, scale)
    best = where(up, fitted * s1, best)
    inverse = where(up, trial, inverse)
    return scale, best, inverse


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


def descent_start(X, first, WEIGHT, WX, LEVEL, at, N, NMAX):
    """Codes against the extreme, Σ w·x·code, Σ w·code² with w = x², and whether the data is alive."""
    largest, extreme = signed_extreme(X, first, N)
    inverse = div(full(extreme, -NMAX), extreme)
    s1 = zeros(extreme)
    s2 = zeros(extreme)
    for i in range(N):
        x = ld(X, first + i)
        w = x * x
        wx = w * x
        l = rnear(inverse * x)
        l = where(l > NMAX - 1, full(l, NMAX - 1), l)  # the extreme itself is at -NMAX: none is below
        st(WEIGHT, at + i, w)
        st(WX, at + i, wx)
        st(LEVEL, at + i, l)
        s1 = s1 + wx * l
        s2 = s2 + w * l * l
    return s1, s2, largest >= 1e-15


def descent_step(X, first, WEIGHT, WX, LEVEL, at, s1, s2, NMAX):
    """The best code of one weight while the others stay; the sums with it, and where it moved."""
    w = ld(WEIGHT, at)
    wx = ld(WX, at)
    old = ld(LEVEL, at)
    a = s1 - wx * old
    b = s2 - w * old * old
    new = i2f(imin(imax(nint(div(ld(X, first) * b, a)), -NMAX), NMAX - 1))
    up = (a > 0.0) & (new != old)
    if any_(up):
        a2 = a + wx * new
        b2 = b + w * new * new
        up = up & (b2 > 0.0) & (a2 * a2 * s2 > s1 * s1 * b2)
        st(LEVEL, at, where(up, new, old))
        s1 = where(up, a2, s1)
        s2 = where(up, b2, s2)
    return s1, s2, up


def descent_end(first, LEVEL, at, s1, s2, live, SCALE, sub, CODE, N, NMAX):
    st(SCALE, sub, where(live & (s2 > 0.0), div(s1, s2), zeros(s1)))
    for i in range(N):
        code = nint(ld(LEVEL, at + i)) + NMAX
        stb(CODE, first + i, where(live, code, izeros(code)))


def descent_search(j, X, WEIGHT, WX, LEVEL, SCALE, CODE, N, NMAX):
    """Scales and codes of sub-blocks 2j and 2j + 1 by coordinate descent (ggml-quants.c: make_q3_quants).

    Weights are x². Each step waits for the one before it, so the two sub-blocks take turns. What did not move in one
    sweep will not in the next, so a lane need not be stopped.
    """
    first = 2 * j * N
    second = first + N
    a1, a2, alive = descent_start(X, first, WEIGHT, WX, LEVEL, 0, N, NMAX)
    b1, b2, blive = descent_start(X, second, WEIGHT, WX, LEVEL, N, N, NMAX)
    moving = alive | blive
    for _sweep in range(5):
        if any_(moving):
            moved = a1 != a1
            for i in range(N):
                a1, a2, aup = descent_step(X, first + i, WEIGHT, WX, LEVEL, i, a1, a2, NMAX)
                b1, b2, bup = descent_step(X, second + i, WEIGHT, WX, LEVEL, N + i, b1, b2, NMAX)
                moved = moved | aup | bup
            moving = moved
    descent_end(first, LEVEL, 0, a1, a2, alive, SCALE, 2 * j, CODE, N, NMAX)
    descent_end(second, LEVEL, N, b1, b2, blive, SCALE, 2 * j + 1, CODE, N, NMAX)
