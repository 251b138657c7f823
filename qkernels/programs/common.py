"""Steps that several families share: sums of squares, importance weights, extremes, the search for scales of scales."""

from __future__ import annotations

from quantmill.qkernels.lanes.vocabulary import (
    any_,
    bits,
    cst,
    div,
    fabs,
    full,
    i2f,
    imin,
    ld,
    nint,
    sqrt,
    st,
    where,
    zeros,
)


def add_squares(total, A, first, N):
    for i in range(N):
        x = ld(A, first + i)
        total = total + x * x
    return total


def sum_of_squares(A, first, N):
    return add_squares(zeros(ld(A, first)), A, first, N)


def block_sigma(j, X, SIGMA, FACTOR, N):
    """Mean square of the block times the factor in the table (1/256 or 2/256; powers of two, so nothing rounds)."""
    s = sum_of_squares(X, 0, N)
    st(SIGMA, 0, s * full(s, cst(FACTOR, 0)))


def importance_weights(j, X, IMPORTANCE, SIGMA, WEIGHT, TOTAL, N):
    """w = importance · sqrt(sigma + x²) over sub-block j, and their sum."""
    sigma = ld(SIGMA, 0)
    total = zeros(sigma)
    for i in range(N):
        x = ld(X, j * N + i)
        w = ld(IMPORTANCE, j * N + i) * sqrt(sigma + x * x)
        st(WEIGHT, j * N + i, w)
        total = total + w
    st(TOTAL, j, total)


def square_weights(j, X, WEIGHT, N):
    """Without importance several types weigh by x²."""
    for i in range(N):
        x = ld(X, j * N + i)
        st(WEIGHT, j * N + i, x * x)


def row_weights(j, X, IMPORTANCE, ROW_SIGMA, WEIGHT, N):
    """Types of 32 weights: w = importance · sqrt(mean square of the whole row + x²)."""
    sigma = ld(ROW_SIGMA, 0)
    for i in range(N):
        x = ld(X, i)
        st(WEIGHT, i, ld(IMPORTANCE, i) * sqrt(sigma + x * x))


def signed_extreme(A, first, N):
    """Magnitude and signed value of the element of largest magnitude; the first of equals."""
    largest = zeros(ld(A, first))
    value = largest
    for i in range(N):
        x = ld(A, first + i)
        a = fabs(x)
        up = a > largest
        largest = where(up, a, largest)
        value = where(up, x, value)
    return largest, value


def running_max(A, N):
    """Maximum starting from zero, kept on ties."""
    m = zeros(ld(A, 0))
    for i in range(N):
        x = ld(A, i)
        m = where(x > m, x, m)
    return m


def positive_search(X, first, W, wfirst, CODE, LADDER, N, NMAX):
    """Scale and codes 0…NMAX for data that is not negative (ggml-quants.c: make_qp_quants).

    CODE receives the codes, laid out as X, as floats modulo 256: the reference keeps them in unsigned bytes, so a
    negative value wraps. LADDER is the table of NMAX + 0.1·k for k = -4 … 4 without 0, then NMAX, then 1.
    """
    top = zeros(ld(X, first))
    for i in range(N):
        x = ld(X, first + i)
        top = where(top > x, top, x)
    live = top >= 1e-15
    inverse = div(full(top, cst(LADDER, 8)), top)
    scale = div(full(top, cst(LADDER, 9)), inverse)
    best = zeros(top)
    for i in range(N):
        x = ld(X, first + i)
        d = x - scale * i2f(nint(inverse * x) & 255)
        best = best + ld(W, wfirst + i) * d * d
    for k in range(8):
        candidate = div(full(top, cst(LADDER, k)), top)
        step = div(full(top, cst(LADDER, 9)), candidate)
        error = zeros(top)
        for i in range(N):
            x = ld(X, first + i)
            d = x - step * i2f(imin(nint(candidate * x), NMAX))
            error = error + ld(W, wfirst + i) * d * d
        up = error < best
        best = where(up, error, best)
        inverse = where(up, candidate, inverse)
    sxl = zeros(top)
    sll = zeros(top)
    for i in range(N):
        x = ld(X, first + i)
        w = ld(W, wfirst + i)
        n = imin(nint(inverse * x), NMAX)
        l = i2f(n)
        st(CODE, first + i, i2f(n & 255))
        sxl = sxl + w * x * l
        sll = sll + w * l * l
    moving = live
    for _sweep in range(5):
        if any_(moving):
            moved = top != top
            for i in range(N):
                x = ld(X, first + i)
                w = ld(W, wfirst + i)
                old = ld(CODE, first + i)
                a = sxl - w * x * old
                b = sll - w * old * old
                n = imin(nint(div(x * b, a)), NMAX)
                new = i2f(n)
                a2 = a + w * x * new
                b2 = b + w * new * new
                up = moving & (a > 0.0) & (b > 0.0) & (new != old) & (a2 * a2 * sll > sxl * sxl * b2)
                st(CODE, first + i, where(up, i2f(n & 255), old))
                sxl = where(up, a2, sxl)
                sll = where(up, b2, sll)
                moved = moved | up
            moving = moved
    for i in range(N):
        st(CODE, first + i, where(live, ld(CODE, first + i), zeros(top)))
    return where(live & (sll > 0.0), div(sxl, sll), zeros(top))


def truth(v):
    """C's truth of a float: everything but the two zeros, NaN included."""
    return (bits(v) & 0x7FFFFFFF) != 0


def above_zero(v):
    """v > 0, asked of its bits, for what becomes zero then and else keeps the sign of its zero.

    Of `where(v > 0.0, zeros(v), v)` NVIDIA's assembler makes a minimum, which of -0 and +0 gives +0.
    """
    pattern = bits(v)
    return (pattern > 0) & (pattern <= 0x7F800000)
