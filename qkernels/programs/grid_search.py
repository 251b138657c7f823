"""Search for the scale and the codebook entries of a sub-block, for the types whose codes name points of a grid.

A sub-block of N weights falls into groups of DIM; a group's code is DIM digits of BITS bits, digit l standing for
(2l + 1)·scale, and only codes that are in the type's codebook may be stored. Signs are kept apart.
"""

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
    nearest,
    neg,
    nhalf,
    sqrt,
    st,
    where,
    zeros,
)
from quantmill.qkernels.programs.common import positive_search


def raised_square_weights(j, X, SIGMA, WEIGHT, N):
    """IQ2_S without importance: a quarter of (twice) the mean square, plus x²."""
    raised = ld(SIGMA, 0) * 0.25
    for i in range(N):
        x = ld(X, j * N + i)
        st(WEIGHT, j * N + i, raised + x * x)


def signs_and_magnitudes(j, X, WEIGHT, V, SIGN, PARITY):
    """Group j of eight: V = |x|, and bit i of SIGN for a negative x_i.

    With PARITY only seven signs are stored and the eighth makes their number even: where it is odd, the weight that
    matters least changes sides, and its V becomes negative.
    """
    sign = izeros(ld(X, 8 * j))
    for i in range(8):
        x = ld(X, 8 * j + i)
        negative = x < 0.0
        sign = sign | where(negative, izeros(x) + (1 << i), izeros(x))
        st(V, 8 * j + i, where(negative, neg(x), x))
    if PARITY:
        x = ld(X, 8 * j)
        least = ld(WEIGHT, 8 * j) * x * x
        flip = izeros(x) + 1
        for i in range(1, 8):
            x = ld(X, 8 * j + i)
            cost = ld(WEIGHT, 8 * j + i) * x * x
            less = cost < least
            least = where(less, cost, least)
            flip = where(less, izeros(x) + (1 << i), flip)
        odd = sign ^ (sign >> 4)
        odd = odd ^ (odd >> 2)
        odd = (odd ^ (odd >> 1)) & 1
        flip = where(odd == 1, flip, izeros(x))
        sign = (sign ^ flip) & 127
        for i in range(8):
            v = ld(V, 8 * j + i)
            st(V, 8 * j + i, where((flip & (1 << i)) != 0, neg(v), v))
    st(SIGN, j, sign)


def weight_terms(j, V, WEIGHT, ROOT, PRODUCT, N):
    """The roots that distances are weighted with, and w·v, which every trial needs."""
    for i in range(N):
        w = ld(WEIGHT, j * N + i)
        st(ROOT, j * N + i, sqrt(w))
        st(PRODUCT, j * N + i, w * ld(V, j * N + i))


def largest_of(V, first, N):
    largest = ld(V, first)
    for i in range(1, N):
        v = ld(V, first + i)
        largest = where(largest > v, largest, v)
    return largest


def extent_from_largest(j, V, SCALE, EXTENT, LIMITS, N):
    """What the trials divide by, and the scale to start from. LIMITS: smallest live extent, levels of the start."""
    largest = largest_of(V, j * N, N)
    live = largest >= cst(LIMITS, 0)
    st(EXTENT, j, where(live, largest, zeros(largest)))
    st(SCALE, j, where(live, div(largest, full(largest, cst(LIMITS, 1))), zeros(largest)))


def extent_from_search(j, V, WEIGHT, CODE, SCALE, EXTENT, LIMITS, LADDER, N):
    """IQ2_XXS: the scale that four positive levels would take, times three."""
    largest = largest_of(V, j * N, N)
    scale = positive_search(V, j * N, WEIGHT, j * N, CODE, LADDER, N, 4)
    extent = scale * cst(LIMITS, 1)
    live = (largest >= cst(LIMITS, 0)) & (extent > 0.0)
    st(EXTENT, j, where(live, extent, zeros(extent)))
    st(SCALE, j, where(live, scale, zeros(scale)))


def plain_code(V, place, inverse, DIM, BITS):
    """The code whose digits are nearest to the weights by themselves, in the grid or not.

    A digit is nint(0.5·(inverse·v - 1)).
    """
    code = izeros(inverse)
    top = 2 if BITS == 2 else 7
    for k in range(DIM):
        digit = nhalf(inverse * ld(V, place + k) - 1.0)
        code = code | (imin(imax(digit, 0), top) << (BITS * k))
    return code


def value(code, k, BITS):
    """2·digit + 1 as a float, for digit k of a code."""
    return i2f((((code << 1) >> (BITS * k)) & ((2 << BITS) - 2)) | 1)


def snap(WANTED, FOUND, at, V, ROOT, place, scale, LISTS, NEAR, NOTES, GROUPS, DIM, BITS):
    """FOUND[at + g] becomes `nearest` to WANTED[at + g]; bit g of the result says where group g was off the grid.

    An engine may have its own word for this, and for `forget`, that remembers in the array NOTES what it found:
    between two calls that no `forget` separates, V and ROOT stay as they are and the scale does not grow.
    """
    off = izeros(scale)
    for g in range(GROUPS):
        wanted = ld(WANTED, at + g)
        found = nearest(wanted, V, ROOT, place + g * DIM, scale, LISTS, NEAR, DIM, BITS)
        st(FOUND, at + g, found)
        off = off | (where(found != wanted, izeros(off) + 1, izeros(off)) << g)
    return off


def forget(NOTES, GROUPS):
    """What `snap` noted no longer holds."""


def fitted_sums(CODE, first_code, PRODUCT, WEIGHT, first, like, N, DIM, BITS):
    """Σ w·v·q and Σ w·q·q over a sub-block whose codes are in CODE."""
    sqx = zeros(like)
    sqq = sqx
    for g in range(N // DIM):
        code = ld(CODE, first_code + g)
        for k in range(DIM):
            q = value(code, k, BITS)
            sqx = sqx + ld(PRODUCT, first + g * DIM + k) * q
            sqq = sqq + ld(WEIGHT, first + g * DIM + k) * q * q
    return sqx, sqq


def grid_search(
    j,
    V,
    WEIGHT,
    PRODUCT,
    ROOT,
    EXTENT,
    SCALE,
    CODE,
    WANTED,
    TRIAL,
    NOTES,
    LISTS,
    NEAR,
    LADDER,
    N,
    DIM,
    BITS,
    TRIALS,
    REDO,
):
    """Scale and codes of sub-block j (ggml-quants.c: quantize_row_iq2_xxs_impl and its siblings).

    LADDER: the trials' numerators, then 1. REDO says which groups the best scale projects once more: 0 those that
    were off the grid in the best trial; 1 all, if one was (and if no trial was accepted); 2 all, always.
    """
    groups = N // DIM
    first = j * N
    at = j * groups
    extent = ld(EXTENT, j)
    live = extent > 0.0
    extent = where(live, extent, full(extent, 1.0))
    one = full(extent, cst(LADDER, TRIALS))
    scale = where(live, ld(SCALE, j), one)
    best = zeros(extent)
    missed = izeros(extent)
    if REDO == 1:
        missed = missed + 1
    for g in range(groups):
        st(CODE, at + g, izeros(extent))
    forget(NOTES, groups)
    for t in range(TRIALS):
        inverse = div(full(extent, cst(LADDER, t)), extent)
        for g in range(groups):
            st(WANTED, at + g, plain_code(V, first + g * DIM, inverse, DIM, BITS))
        off = snap(
            WANTED, TRIAL, at, V, ROOT, first, div(one, inverse), LISTS, NEAR, NOTES, groups, DIM, BITS
        )
        sqx, sqq = fitted_sums(TRIAL, at, PRODUCT, WEIGHT, first, extent, N, DIM, BITS)
        up = (sqq > 0.0) & (sqx * sqx > best * sqq)
        if any_(up):
            scale = where(up, div(sqx, sqq), scale)
            best = where(up, scale * sqx, best)
            missed = where(up, off, missed)
            for g in range(groups):
                st(CODE, at + g, where(up, ld(TRIAL, at + g), ld(CODE, at + g)))
    again = live & (scale > 0.0)
    if REDO < 2:
        again = again & (missed != 0)
    if any_(again):
        step = where(again, scale, one)
        inverse = div(one, step)
        for g in range(groups):
            st(WANTED, at + g, plain_code(V, first + g * DIM, inverse, DIM, BITS))
        forget(NOTES, groups)
        snap(WANTED, TRIAL, at, V, ROOT, first, step, LISTS, NEAR, NOTES, groups, DIM, BITS)
        for g in range(groups):
            chosen = again
            if REDO == 0:
                chosen = chosen & ((missed & (1 << g)) != 0)
            st(CODE, at + g, where(chosen, ld(TRIAL, at + g), ld(CODE, at + g)))
        sqx, sqq = fitted_sums(CODE, at, PRODUCT, WEIGHT, first, extent, N, DIM, BITS)
        scale = where(again & (sqq > 0.0), div(sqx, sqq), scale)
    st(SCALE, j, where(live, scale, zeros(scale)))
