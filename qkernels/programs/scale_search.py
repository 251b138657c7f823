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


def fitted_products(X, first, W, wfirst, WX, inverse, N, NMAX):
    """Σ w·x·code and Σ w·code² with the codes of a step."""
    s1 = zeros(inverse)
    s2 = zeros(inverse)
    for i in range(N):
        l = signed_level(inverse * ld(X, first + i), NMAX)
        s1 = s1 + ld(WX, i) * l
        s2 = s2 + ld(W, wfirst + i) * l * l
    return s1, s2


def signed_scale(X, first, W, wfirst, WX, LADDER, N, NMAX):
    """Scale, the inverse step of its codes, and whether the data is alive (ggml-quants.c: make_qx_quants).

    LADDER: -NMAX, then -(NMAX + 0.1·t) for t = -9 … 9 without 0. Codes are level(inverse · x); of dead data they
    are all zero before NMAX is added.
    """
    largest, extreme = signed_extreme(X, first, N)
    live = largest >= 1e-15
    inverse = div(full(extreme, cst(LADDER, 0)), extreme)
    s1, s2 = fitted_products(X, first, W, wfirst, WX, inverse, N, NMAX)
    scale = where(truth(s2), div(s1, s2), zeros(s1))
    best = scale * s1
    best_inverse = inverse
    for t in range(1, 19):
        inverse = div(full(extreme, cst(LADDER, t)), extreme)
        s1, s2 = fitted_products(X, first, W, wfirst, WX, inverse, N, NMAX)
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
