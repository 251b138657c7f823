"""Programs of the thorough searches of types whose groups of weights are entries of a grid.

A step is d·(2·level + 1)·unit; an entry's weights are its digits' values times the step, with signs apart.
"""

from __future__ import annotations

from quantmill.qkernels.decode.fields import even_signs, half_at, turned
from quantmill.qkernels.lanes.vocabulary import (
    cst,
    div,
    f2h,
    fabs,
    full,
    h2f,
    i2f,
    imax,
    imin,
    izeros,
    ld,
    ldb,
    st,
    take,
    where,
    zeros,
)
from quantmill.qkernels.programs.layout import store_half


def read_d(j, OUT, D):
    st(D, 0, half_at(OUT, 0))


def read_iq3_s(j, OUT, D, ENTRY, SIGN):
    """What a decoder finds, which behind a sub-block of zeros is not what the search meant."""
    st(D, 0, half_at(OUT, 0))
    for b in range(8):
        high = ldb(OUT, 66 + b)
        for k in range(8):
            st(ENTRY, 8 * b + k, ldb(OUT, 2 + 8 * b + k) | (((high >> k) & 1) << 8))
        for k in range(4):
            st(SIGN, 4 * b + k, ldb(OUT, 74 + 4 * b + k))


def natural_signs(j, X, V, NATURAL):
    """Magnitudes, and a number whose bit i is set where weight i of group j of eight is negative."""
    sign = izeros(ld(X, 8 * j))
    for i in range(8):
        x = ld(X, 8 * j + i)
        sign = sign | (where(x < 0.0, izeros(sign) + 1, izeros(sign)) << i)
        st(V, 8 * j + i, fabs(x))
    st(NATURAL, j, sign)


def signed_values(j, ENTRY, SIGN, Q, VALUES, DIM, PARITY):
    """What the eight weights of group j are, in units of their step."""
    signs = ld(SIGN, j)
    if PARITY:
        signs = even_signs(signs & 127)
    for half in range(8 // DIM):
        entry = ld(ENTRY, (8 // DIM) * j + half)
        for i in range(DIM):
            at = half * DIM + i
            st(Q, 8 * j + at, turned(take(VALUES, entry * DIM + i), signs, at))


def step_of(d, level, UNIT):
    return d * (i2f(level * 2 + 1) * cst(UNIT, 0))


def values_error(X, H, Q, first, step, N):
    error = zeros(step)
    for i in range(N):
        e = step * ld(Q, first + i) - ld(X, first + i)
        error = error + ld(H, first + i) * (e * e)
    return error


def value_sums(j, X, H, D, LEVEL, Q, SXQ, SQQ, ERROR, UNIT, N):
    """Of sub-block j: Σ h·x·q and Σ h·q² with q in units of d, and its error."""
    level = ld(LEVEL, j)
    d = ld(D, 0)
    unit = step_of(full(d, 1.0), level, UNIT)
    sxq = zeros(d)
    sqq = zeros(d)
    for i in range(N):
        q = unit * ld(Q, j * N + i)
        hq = ld(H, j * N + i) * q
        sxq = sxq + hq * ld(X, j * N + i)
        sqq = sqq + hq * q
    st(SXQ, j, sxq)
    st(SQQ, j, sqq)
    st(ERROR, j, values_error(X, H, Q, j * N, step_of(d, level, UNIT), N))


def total_of(A, SUBS):
    total = ld(A, 0)
    for b in range(1, SUBS):
        total = total + ld(A, b)
    return total


def fitted_d(j, SXQ, SQQ, TRIAL_D, SUBS):
    """d by least squares for what the weights are."""
    st(TRIAL_D, 0, h2f(f2h(div(total_of(SXQ, SUBS), total_of(SQQ, SUBS)))))


def trial_error(j, X, H, TRIAL_D, LEVEL, Q, CHANGED, UNIT, N):
    st(CHANGED, j, values_error(X, H, Q, j * N, step_of(ld(TRIAL_D, 0), ld(LEVEL, j), UNIT), N))


def kept_d(j, D, TRIAL_D, ERROR, CHANGED, SUBS):
    """The fitted d where it lowers the error."""
    up = total_of(CHANGED, SUBS) < total_of(ERROR, SUBS)
    st(D, 0, where(up, ld(TRIAL_D, 0), ld(D, 0)))


def near_level(level, away, MOST):
    return imin(imax(level + away, 0), MOST)


def smaller(a, b):
    return where(a < b, a, b)


def pair_tables(V, H, first, step, COST, FLIP, ONE, DIGITS, DIM, LEVELS, PARITY):
    """For each pair of weights and each pair of digits: the error, and what turning the cheaper sign adds to it."""
    for p in range(DIM // 2):
        for side in range(2):
            x = ld(V, first + 2 * p + side)
            h = ld(H, first + 2 * p + side)
            for v in range(LEVELS):
                value = step * cst(DIGITS, v)
                e = value - x
                st(ONE, side * LEVELS + v, h * (e * e))
                if PARITY:
                    st(ONE, (2 + side) * LEVELS + v, 4.0 * h * (value * x))
        for b in range(LEVELS):
            second = ld(ONE, LEVELS + b)
            for a in range(LEVELS):
                at = (p * LEVELS + b) * LEVELS + a
                st(COST, at, ld(ONE, a) + second)
                if PARITY:
                    st(FLIP, at, smaller(ld(ONE, 2 * LEVELS + a), ld(ONE, 3 * LEVELS + b)))


def every_entry(
    j, V, H, D, LEVEL, FOUND, LOST, FOUND_ODD, LOST_ODD, COST, FLIP, ONE, PAIRS, DIGITS, UNIT, DIM,
    LEVELS, ENTRIES, GROUPS, SHIFT, MOST, REACH, PARITY,
):  # fmt: skip
    """Group j's best entry at each level up to REACH from the present one; _ODD: with one sign turned.

    A sub-block is 2^SHIFT groups. PAIRS: where the pairs of digits of an entry stand in COST and FLIP.
    """
    half = DIM // 2
    level = ld(LEVEL, j >> SHIFT)
    d = ld(D, 0)
    for t in range(2 * REACH + 1):
        step = step_of(d, near_level(level, t - REACH, MOST), UNIT)
        pair_tables(V, H, j * DIM, step, COST, FLIP, ONE, DIGITS, DIM, LEVELS, PARITY)
        best = full(step, 3.4028234663852886e38)
        found = izeros(step)
        best_odd = best
        found_odd = found
        for e in range(ENTRIES):
            at = cst(PAIRS, e * half)
            error = ld(COST, at)
            if PARITY:
                flip = ld(FLIP, at)
            for p in range(1, half):
                at = cst(PAIRS, e * half + p)
                error = error + ld(COST, at)
                if PARITY:
                    flip = smaller(flip, ld(FLIP, at))
            up = error < best
            best = where(up, error, best)
            found = where(up, e, found)
            if PARITY:
                error = error + flip
                up = error < best_odd
                best_odd = where(up, error, best_odd)
                found_odd = where(up, e, found_odd)
        st(FOUND, t * GROUPS + j, found)
        st(LOST, t * GROUPS + j, best)
        if PARITY:
            st(FOUND_ODD, t * GROUPS + j, found_odd)
            st(LOST_ODD, t * GROUPS + j, best_odd)


def is_odd(signs):
    fold = signs ^ (signs >> 4)
    fold = fold ^ (fold >> 2)
    return ((fold ^ (fold >> 1)) & 1) != 0


def turned_half(LOST, LOST_ODD, at, odd, DIM, PARITY):
    """What the eight weights at groups `at` on lose, and which of their groups gives up a sign: 0, 1 or neither, 2."""
    lost = ld(LOST, at)
    none = izeros(lost) + 2
    which = none
    if DIM == 4:
        second = ld(LOST, at + 1)
        if PARITY:
            first_turned = ld(LOST_ODD, at) + second
            second_turned = lost + ld(LOST_ODD, at + 1)
            which = where(odd, where(second_turned < first_turned, none - 1, none - 2), none)
            lost = where(odd, smaller(first_turned, second_turned), lost + second)
        else:
            lost = lost + second
    elif PARITY:
        lost = where(odd, ld(LOST_ODD, at), lost)
        which = where(odd, none - 2, none)
    return lost, which


def best_level(
    j, X, V, H, D, LEVEL, ENTRY, SIGN, NATURAL, Q, FOUND, LOST, FOUND_ODD, LOST_ODD, VALUES, UNIT, DIM,
    GROUPS, N, MOST, REACH, PARITY,
):  # fmt: skip
    """Sub-block j's best level of those tried, with its entries and signs, where that beats the present ones."""
    level = ld(LEVEL, j)
    best = values_error(X, H, Q, j * N, step_of(ld(D, 0), level, UNIT), N)
    chosen = izeros(best) - 1
    for t in range(2 * REACH + 1):
        total = zeros(best)
        for g in range(N // 8):
            odd = is_odd(ld(NATURAL, j * (N // 8) + g))
            at = t * GROUPS + (j * (N // 8) + g) * (8 // DIM)
            lost, which = turned_half(LOST, LOST_ODD, at, odd, DIM, PARITY)
            total = total + lost
        up = total < best
        best = where(up, total, best)
        chosen = where(up, t, chosen)
    up = chosen >= 0
    st(LEVEL, j, where(up, near_level(level, chosen - REACH, MOST), level))
    for t in range(2 * REACH + 1):
        here = chosen == t
        for g in range(N // 8):
            eight = j * (N // 8) + g
            natural = ld(NATURAL, eight)
            at = t * GROUPS + eight * (8 // DIM)
            lost, which = turned_half(LOST, LOST_ODD, at, is_odd(natural), DIM, PARITY)
            sign = natural
            for half in range(8 // DIM):
                entry = ld(FOUND, at + half)
                if PARITY:
                    entry = where(which == half, ld(FOUND_ODD, at + half), entry)
                    least = full(best, 3.4028234663852886e38)
                    flip = izeros(natural)
                    for i in range(DIM):
                        k = half * DIM + i
                        h = ld(H, 8 * eight + k)
                        cost = 4.0 * h * (take(VALUES, entry * DIM + i) * ld(V, 8 * eight + k))
                        less = cost < least
                        least = where(less, cost, least)
                        flip = where(less, izeros(flip) + (1 << k), flip)
                    sign = where(which == half, sign ^ flip, sign)
                st(ENTRY, eight * (8 // DIM) + half, where(here, entry, ld(ENTRY, eight * (8 // DIM) + half)))
            if PARITY:
                sign = sign & 127
            st(SIGN, eight, where(here, sign, ld(SIGN, eight)))


def write_d(j, D, EXTENT, OUT, SUBS):
    """EXTENT: no sub-block is left out."""
    d = ld(D, 0)
    store_half(OUT, 0, f2h(d))
    for b in range(SUBS):
        st(EXTENT, b, full(d, 1.0))
