"""The search for a scale and a minimum, x ≈ scale·code - min, and the weights it uses without importance."""

from __future__ import annotations

from quantmill.qkernels.lanes.vocabulary import (
    cst,
    div,
    fabs,
    full,
    get,
    ld,
    lev,
    neg,
    put,
    sqrt,
    st,
    where,
    zeros,
)
from quantmill.qkernels.programs.common import above_zero, sum_of_squares


def level(v, NMAX):
    return lev(v, 0, NMAX)


def squared_error(X, W, LEVEL, first, scale, base, inverse, origin, N, NMAX):
    total = zeros(scale)
    for i in range(N):
        x = ld(X, first + i)
        d = scale * get(LEVEL, i, level(inverse * (x - origin), NMAX)) + base - x
        total = total + ld(W, first + i) * (d * d)
    return total


def absolute_error(X, W, LEVEL, first, scale, base, inverse, origin, N, NMAX):
    total = zeros(scale)
    for i in range(N):
        x = ld(X, first + i)
        d = scale * get(LEVEL, i, level(inverse * (x - origin), NMAX)) + base - x
        total = total + ld(W, first + i) * fabs(d)
    return total


def scale_min_search(j, X, W, LEVEL, SCALE, MIN, INVERSE, ORIGIN, LADDER, N, NMAX, TRIALS, ABSOLUTE):
    """Scale and minimum of sub-block j (ggml-quants.c: make_qkx2_quants, make_qkx3_quants).

    An accepted trial moves the minimum, and later trials start from the moved one, so they cannot run side by side.
    The codes of the best trial are not kept but can be computed again: level(INVERSE · (x - ORIGIN)).
    LADDER: the trials' numerators, then NMAX, then 1.
    """
    first = j * N
    x = ld(X, first)
    w = ld(W, first)
    low = x
    high = x
    sw = w
    sx = w * x
    for i in range(1, N):
        x = ld(X, first + i)
        w = ld(W, first + i)
        low = where(x < low, x, low)
        high = where(x > high, x, high)
        sw = sw + w
        sx = sx + w * x
    low = where(above_zero(low), zeros(low), low)
    floor = low
    live = high > low
    inverse = div(full(low, cst(LADDER, TRIALS)), high - low)
    scale = div(full(low, cst(LADDER, TRIALS + 1)), inverse)
    for i in range(N):
        put(LEVEL, i, level(inverse * (ld(X, first + i) - low), NMAX))
    if ABSOLUTE:
        best = absolute_error(X, W, LEVEL, first, scale, low, inverse, low, N, NMAX)
    else:
        best = squared_error(X, W, LEVEL, first, scale, low, inverse, low, N, NMAX)
    best_inverse = inverse
    origin = low
    for t in range(TRIALS):
        inverse = div(full(low, cst(LADDER, t)), high - low)
        sl = zeros(low)
        sll = zeros(low)
        sxl = zeros(low)
        for i in range(N):
            x = ld(X, first + i)
            l = level(inverse * (x - low), NMAX)
            put(LEVEL, i, l)
            wl = ld(W, first + i) * l
            sl = sl + wl
            sll = sll + wl * l
            sxl = sxl + wl * x
        determinant = sw * sll - sl * sl
        trial_scale = div(sw * sxl - sx * sl, determinant)
        trial_low = div(sll * sx - sl * sxl, determinant)
        positive = above_zero(trial_low)
        trial_scale = where(positive, div(sxl, sll), trial_scale)
        trial_low = where(positive, zeros(low), trial_low)
        if ABSOLUTE:
            error = absolute_error(X, W, LEVEL, first, trial_scale, trial_low, inverse, low, N, NMAX)
        else:
            error = squared_error(X, W, LEVEL, first, trial_scale, trial_low, inverse, low, N, NMAX)
        up = (determinant > 0.0) & (error < best)
        best = where(up, error, best)
        scale = where(up, trial_scale, scale)
        best_inverse = where(up, inverse, best_inverse)
        origin = where(up, low, origin)
        low = where(up, trial_low, low)
    st(SCALE, j, where(live, scale, zeros(low)))
    st(MIN, j, neg(where(live, low, floor)))
    st(INVERSE, j, where(live, best_inverse, zeros(low)))
    st(ORIGIN, j, origin)


def magnitude_weights(j, X, WEIGHT, N):
    """Q2_K without importance weighs by |x|."""
    for i in range(N):
        st(WEIGHT, j * N + i, fabs(ld(X, j * N + i)))


def spread_weights(j, X, WEIGHT, N):
    """Q4_K and Q5_K without importance weigh by rms + |x|."""
    rms = sqrt(sum_of_squares(X, j * N, N) * 0.03125)
    for i in range(N):
        st(WEIGHT, j * N + i, rms + fabs(ld(X, j * N + i)))
