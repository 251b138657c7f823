"""Programs of the thorough searches for scales and minimums, x ≈ scale·code - min, of sub-blocks and super-blocks."""

from __future__ import annotations

from quantmill.qkernels.decode.fields import half_at
from quantmill.qkernels.lanes.vocabulary import (
    cst,
    div,
    f2h,
    full,
    h2f,
    i2f,
    ld,
    ldb,
    lev,
    neg,
    nint,
    st,
    stb,
    where,
    zeros,
)
from quantmill.qkernels.programs.common import above_zero, running_max
from quantmill.qkernels.programs.layout import store_half
from quantmill.qkernels.programs.rounding import inverse_or_zero


def fit_min(X, H, first, scale, inverse, low, N, NMAX):
    """Σ h·(scale·q - low - x)², Σ h·q, Σ h·q² and Σ h·x·q over N weights, q the code nearest to inverse·(x + low)."""
    error = zeros(scale)
    sq = error
    sqq = error
    sxq = error
    for i in range(N):
        x = ld(X, first + i)
        h = ld(H, first + i)
        y = x + low
        q = lev(inverse * y, 0, NMAX)
        d = scale * q - y
        hq = h * q
        error = error + h * (d * d)
        sq = sq + hq
        sqq = sqq + hq * q
        sxq = sxq + hq * x
    return error, sq, sqq, sxq


def least_squares(sw, sx, sq, sqq, sxq):
    """Scale, minimum and what they take from the error, for given codes; the last says whether there is one answer."""
    determinant = sw * sqq - sq * sq
    scale = div(sw * sxq - sx * sq, determinant)
    low = div(sq * sxq - sqq * sx, determinant)
    return scale, low, scale * sxq - low * sx, determinant > 0.0


def sums(j, X, H, SW, SX, N):
    sw = zeros(ld(X, j * N))
    sx = sw
    for i in range(N):
        h = ld(H, j * N + i)
        sw = sw + h
        sx = sx + h * ld(X, j * N + i)
    st(SW, j, sw)
    st(SX, j, sx)


def wanted_pair(j, X, H, SW, SX, WANTED, WANTED_MIN, NUMERATORS, N, NMAX, TRIALS, REFITS, FREE):
    """The scale and minimum that sub-block j would have by itself; a minimum is not negative unless FREE.

    Each step, a numerator over the range, is laid at the smallest weight, the largest and around the mean, and moved
    REFITS times to the scale and minimum that fit its codes best.
    """
    first = j * N
    smallest = ld(X, first)
    largest = smallest
    for i in range(1, N):
        x = ld(X, first + i)
        smallest = where(x < smallest, x, smallest)
        largest = where(x > largest, x, largest)
    if FREE == 0:
        smallest = where(above_zero(smallest), zeros(smallest), smallest)
    sw = ld(SW, j)
    sx = ld(SX, j)
    mean = div(sx, sw)
    top = zeros(sw)
    best_scale = top
    best_low = top
    for place in range(3):
        for t in range(TRIALS):
            inverse = div(full(sw, cst(NUMERATORS, t)), largest - smallest)
            low = neg(smallest)
            if place == 1:
                low = div(full(sw, 0.5 * NMAX), inverse) - mean
            if place == 2:
                low = div(full(sw, 1.0 * NMAX), inverse) - largest
            for _again in range(REFITS):
                _, sq, sqq, sxq = fit_min(X, H, first, sw, inverse, low, N, NMAX)
                scale, low, gain, sound = least_squares(sw, sx, sq, sqq, sxq)
                if FREE == 0:
                    negative = low < 0.0
                    scale = where(negative, div(sxq, sqq), scale)
                    low = where(negative, zeros(low), low)
                    gain = scale * sxq - low * sx
                up = sound & (gain > top)
                top = where(up, gain, top)
                best_scale = where(up, scale, best_scale)
                best_low = where(up, low, best_low)
                inverse = inverse_or_zero(scale)
    st(WANTED, j, best_scale)
    st(WANTED_MIN, j, best_low)


def one_pair(j, X, H, SW, SX, WANTED, WANTED_MIN, D, DMIN, SCALES, MINS, OUT, N, NMAX, REFITS):
    """Q4_1, Q5_1: the default's halves, or the wanted pair moved REFITS times to where it fits the codes it gives."""
    d = half_at(OUT, 0)
    dmin = neg(half_at(OUT, 2))
    best, _, _, _ = fit_min(X, H, 0, d, inverse_or_zero(d), dmin, N, NMAX)
    scale = ld(WANTED, 0)
    low = ld(WANTED_MIN, 0)
    for _again in range(REFITS):
        trial = h2f(f2h(scale))
        trial_min = h2f(f2h(low))
        error, sq, sqq, sxq = fit_min(X, H, 0, trial, inverse_or_zero(trial), trial_min, N, NMAX)
        up = error < best
        best = where(up, error, best)
        d = where(up, trial, d)
        dmin = where(up, trial_min, dmin)
        scale, low, _gain, _sound = least_squares(ld(SW, 0), ld(SX, 0), sq, sqq, sxq)
    st(D, 0, d)
    st(DMIN, 0, dmin)
    st(SCALES, 0, full(d, 1.0))
    st(MINS, 0, full(d, 1.0))
    store_half(OUT, 0, f2h(d))
    store_half(OUT, 2, f2h(neg(dmin)))


def read_scales_4bit(j, OUT, D, DMIN, SCALES, MINS):
    st(D, 0, half_at(OUT, 80))
    st(DMIN, 0, half_at(OUT, 82))
    for k in range(16):
        byte = ldb(OUT, k)
        st(SCALES, k, i2f(byte & 15))
        st(MINS, k, i2f(byte >> 4))


def read_scales_6bit(j, OUT, D, DMIN, SCALES, MINS):
    st(D, 0, half_at(OUT, 0))
    st(DMIN, 0, half_at(OUT, 2))
    for k in range(4):
        first = ldb(OUT, 4 + k)
        second = ldb(OUT, 8 + k)
        third = ldb(OUT, 12 + k)
        st(SCALES, k, i2f(first & 63))
        st(MINS, k, i2f(second & 63))
        st(SCALES, k + 4, i2f((third & 15) | ((first >> 6) << 4)))
        st(MINS, k + 4, i2f((third >> 4) | ((second >> 6) << 4)))


def turned(j, X, TURNED, D, DMIN, SCALES, MINS, SUBS):
    """The weights with the other sign, and scales and minimums to begin with: none."""
    for i in range(256):
        st(TURNED, i, neg(ld(X, i)))
    nothing = zeros(ld(X, 0))
    st(D, 0, nothing)
    st(DMIN, 0, nothing)
    for k in range(SUBS):
        st(SCALES, k, nothing)
        st(MINS, k, nothing)


def error_of(X, H, d, dmin, SCALES, MINS, SUBS, N, NMAX):
    """Of a whole block with its nearest codes."""
    total = zeros(d)
    for k in range(SUBS):
        scale = d * ld(SCALES, k)
        error, _, _, _ = fit_min(X, H, k * N, scale, inverse_or_zero(scale), dmin * ld(MINS, k), N, NMAX)
        total = total + error
    return total


def common_pair(j, X, H, D, DMIN, SCALES, MINS, WANTED, WANTED_MIN, DIVISORS, SUBS, N, NMAX, MOST, TRIALS):
    """What is there, or d and dmin as the largest wanted scale and minimum over each pair of DIVISORS."""
    d = ld(D, 0)
    dmin = ld(DMIN, 0)
    best = error_of(X, H, d, dmin, SCALES, MINS, SUBS, N, NMAX)
    largest = running_max(WANTED, SUBS)
    largest_min = running_max(WANTED_MIN, SUBS)
    for t in range(TRIALS):
        trial = h2f(f2h(div(largest, full(d, cst(DIVISORS, t)))))
        inverse = inverse_or_zero(trial)
        for u in range(TRIALS):
            trial_min = h2f(f2h(div(largest_min, full(d, cst(DIVISORS, u)))))
            inverse_min = inverse_or_zero(trial_min)
            total = zeros(d)
            for k in range(SUBS):
                scale = trial * lev(inverse * ld(WANTED, k), 0, MOST)
                low = trial_min * lev(inverse_min * ld(WANTED_MIN, k), 0, MOST)
                error, _, _, _ = fit_min(X, H, k * N, scale, inverse_or_zero(scale), low, N, NMAX)
                total = total + error
            up = total < best
            best = where(up, total, best)
            d = where(up, trial, d)
            dmin = where(up, trial_min, dmin)
            for k in range(SUBS):
                st(SCALES, k, where(up, lev(inverse * ld(WANTED, k), 0, MOST), ld(SCALES, k)))
                st(MINS, k, where(up, lev(inverse_min * ld(WANTED_MIN, k), 0, MOST), ld(MINS, k)))
    st(D, 0, d)
    st(DMIN, 0, dmin)


def near_pair(j, X, H, D, DMIN, SCALES, MINS, SQ, SQQ, SXQ, ERROR, N, NMAX, MOST, REACH):
    """Sub-block j's best scale and minimum of those up to REACH from the present ones, and the sums of its codes."""
    first = j * N
    d = ld(D, 0)
    dmin = ld(DMIN, 0)
    present = ld(SCALES, j)
    present_min = ld(MINS, j)
    kept = present
    kept_min = present_min
    scale = d * present
    best, sq, sqq, sxq = fit_min(X, H, first, scale, inverse_or_zero(scale), dmin * present_min, N, NMAX)
    for t in range(2 * REACH + 1):
        s = lev(present + (t - REACH), 0, MOST)
        scale = d * s
        inverse = inverse_or_zero(scale)
        for u in range(2 * REACH + 1):
            m = lev(present_min + (u - REACH), 0, MOST)
            error, q, qq, xq = fit_min(X, H, first, scale, inverse, dmin * m, N, NMAX)
            up = error < best
            best = where(up, error, best)
            kept = where(up, s, kept)
            kept_min = where(up, m, kept_min)
            sq = where(up, q, sq)
            sqq = where(up, qq, sqq)
            sxq = where(up, xq, sxq)
    st(SCALES, j, kept)
    st(MINS, j, kept_min)
    st(SQ, j, sq)
    st(SQQ, j, sqq)
    st(SXQ, j, sxq)
    st(ERROR, j, best)


def refitted_pair(j, X, H, D, DMIN, SCALES, MINS, SW, SX, SQ, SQQ, SXQ, ERROR, SUBS, N, NMAX):
    """d and dmin by least squares for the present codes, where that lowers the error."""
    d = ld(D, 0)
    dmin = ld(DMIN, 0)
    nothing = zeros(d)
    mm = nothing
    mx = nothing
    mq = nothing
    qq = nothing
    xq = nothing
    present = nothing
    for k in range(SUBS):
        s = ld(SCALES, k)
        m = ld(MINS, k)
        mm = mm + m * m * ld(SW, k)
        mx = mx - m * ld(SX, k)
        mq = mq - s * m * ld(SQ, k)
        qq = qq + s * s * ld(SQQ, k)
        xq = xq + s * ld(SXQ, k)
        present = present + ld(ERROR, k)
    trial, low, _gain, sound = least_squares(mm, mx, mq, qq, xq)
    trial = h2f(f2h(where(sound, trial, div(xq, qq))))
    trial_min = h2f(f2h(where(sound, neg(low), dmin)))
    up = error_of(X, H, trial, trial_min, SCALES, MINS, SUBS, N, NMAX) < present
    st(D, 0, where(up, trial, d))
    st(DMIN, 0, where(up, trial_min, dmin))


def better_sign(j, X, H, D, DMIN, SCALES, MINS, TURNED, D2, DMIN2, SCALES2, MINS2, SUBS, N, NMAX):
    """Of both searches the better one's scales."""
    d = ld(D, 0)
    dmin = ld(DMIN, 0)
    d2 = ld(D2, 0)
    dmin2 = ld(DMIN2, 0)
    error = error_of(X, H, d, dmin, SCALES, MINS, SUBS, N, NMAX)
    up = error_of(TURNED, H, d2, dmin2, SCALES2, MINS2, SUBS, N, NMAX) < error
    st(D, 0, where(up, neg(d2), d))
    st(DMIN, 0, where(up, neg(dmin2), dmin))
    for k in range(SUBS):
        st(SCALES, k, where(up, ld(SCALES2, k), ld(SCALES, k)))
        st(MINS, k, where(up, ld(MINS2, k), ld(MINS, k)))


def pair_codes(j, X, D, DMIN, SCALES, MINS, CODE, N, NMAX):
    inverse = inverse_or_zero(ld(D, 0) * ld(SCALES, j))
    low = ld(DMIN, 0) * ld(MINS, j)
    for i in range(N):
        stb(CODE, j * N + i, nint(lev(inverse * (ld(X, j * N + i) + low), 0, NMAX)))
