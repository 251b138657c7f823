"""The splits of sorted sub-blocks that IQ1_S and IQ1_M try: sorting, sums up to each place, all splits in order."""

from __future__ import annotations

from quantmill.qkernels.lanes.vocabulary import (
    any_,
    div,
    fabs,
    full,
    izeros,
    ld,
    st,
    where,
    zeros,
)


def exchange(X, W, ORDER, a, b):
    """Put elements a and b in order of value, then of first place."""
    xa = ld(X, a)
    xb = ld(X, b)
    wa = ld(W, a)
    wb = ld(W, b)
    ia = ld(ORDER, a)
    ib = ld(ORDER, b)
    swap = (xa > xb) | ((xa == xb) & (ia > ib))
    st(X, a, where(swap, xb, xa))
    st(X, b, where(swap, xa, xb))
    st(W, a, where(swap, wb, wa))
    st(W, b, where(swap, wa, wb))
    st(ORDER, a, where(swap, ib, ia))
    st(ORDER, b, where(swap, ia, ib))


def sort_weights(j, X, WEIGHT, SX, SW, ORDER, N, LOG):
    """Weights of sub-block j ascending, equal ones in their order: Batcher's merge exchange (Knuth 5.2.2 M)."""
    base = j * N
    for i in range(N):
        x = ld(X, base + i)
        st(SX, base + i, x)
        st(SW, base + i, ld(WEIGHT, base + i))
        st(ORDER, base + i, izeros(x) + i)
    for t in range(LOG):
        p = N >> (t + 1)
        for i in range(N - p):
            if (i & p) == 0:
                exchange(SX, SW, ORDER, base + i, base + i + p)
        for s in range(t):
            d = (N >> (s + 1)) - p
            for i in range(N - d):
                if (i & p) != 0:
                    exchange(SX, SW, ORDER, base + i, base + i + d)


def better(sqx, sqq, best, scale, choice, candidate):
    """Take a candidate whose weighted products with the weights and with itself beat the best so far."""
    up = (sqq > 0.0) & (sqx * sqx > best * sqq)
    if any_(up):
        ratio = div(sqx, sqq)
        scale = where(up, ratio, scale)
        best = where(up, ratio * sqx, best)
        choice = where(up, candidate, choice)
    return best, scale, choice


def shifted_sums(X, W, first, low, high, COUNT):
    """Σ w·x·q and Σ w·q² with all digits up by 1/8, then with all down, for weights split at two values."""
    sx = zeros(low)
    sw = sx
    sxd = sx
    swd = sx
    swdd = sx
    for i in range(COUNT):
        x = ld(X, first + i)
        w = ld(W, first + i)
        digit = where(x < low, full(x, -1.0), where(x < high, 0.0, full(x, 1.0)))
        wd = w * digit
        sx = sx + w * x
        sw = sw + w
        sxd = sxd + wd * x
        swd = swd + wd
        swdd = swdd + wd * digit
    around = swdd + sw * 0.015625
    return sxd + sx * 0.125, around + swd * 0.25, sxd - sx * 0.125, around - swd * 0.25


def larger_score(best, sqx, sqq):
    score = where(sqq > 0.0, div(sqx * sqx, sqq), zeros(best))
    return where(score > best, score, best)


def score_of_split(X, W, base, low, high, best, N):
    """`best`, or the score of one split if it is larger: with both halves shifted alike, for IQ1_M also unlike."""
    half = N // 2
    ux0, uq0, dx0, dq0 = shifted_sums(X, W, base, low, high, half)
    ux1, uq1, dx1, dq1 = shifted_sums(X, W, base + half, low, high, half)
    best = larger_score(best, ux0 + ux1, uq0 + uq1)
    best = larger_score(best, dx0 + dx1, dq0 + dq1)
    if N == 16:
        best = larger_score(best, ux0 + dx1, uq0 + dq1)
        best = larger_score(best, dx0 + ux1, dq0 + uq1)
    return best


def first_best(X, W, base, N):
    """What the search may start from as its best score: what the best split reaches for sure, less 0.2 %.

    The reference starts from the least float, and what is best in the end does not depend on it: a comparison errs
    by less than 6·2^-24, so in 612 or 1122 of them a candidate that starts 0.2 % below the best one cannot hold it
    off. That wants products in the middle of the range of floats; other lanes start where the reference does.
    """
    total = zeros(ld(X, base))
    size = total
    for i in range(N):
        w = ld(W, base + i)
        total = total + w
        size = size + w * fabs(ld(X, base + i))
    guess = div(size, total)
    score = zeros(total)
    for lean in range(2):
        low = guess * (-0.53 - 0.35 * lean)
        high = guess * (0.88 - 0.35 * lean)
        score = score_of_split(X, W, base, low, high, score, N)
    safe = (total > 1e-18) & (total < 1e18) & (score * total > 1e-24) & (score < 1e30) & (size < 1e16)
    return where(safe, score * 0.998, -3.4028234663852886e38)


def split_32(j, X, WEIGHT, SX, SW, PX, PW, UPX, DOWNX, UPW, DOWNW, SCALE, CHOICE):
    """IQ1_S: the best of 561 splits and two shifts (ggml-quants.c: quantize_row_iq1_s_impl).

    PX and PW are prefix sums of w·x and w; the others what digit 2 adds to the sums beyond a place.
    """
    base = j * 32
    row = j * 33
    px = zeros(ld(SX, base))
    pw = px
    st(PX, row, px)
    st(PW, row, pw)
    for i in range(32):
        w = ld(SW, base + i)
        px = px + w * ld(SX, base + i)
        pw = pw + w
        st(PX, row + i + 1, px)
        st(PW, row + i + 1, pw)
    for i in range(33):
        x = px - ld(PX, row + i)
        w = pw - ld(PW, row + i)
        st(UPX, row + i, x * 1.125)
        st(DOWNX, row + i, x * 0.875)
        st(UPW, row + i, w * 1.125 * 1.125)
        st(DOWNW, row + i, w * 0.875 * 0.875)
    best = first_best(X, WEIGHT, base, 32)
    scale = zeros(px)
    choice = izeros(px) - 1
    for i1 in range(33):
        x1 = ld(PX, row + i1)
        w1 = ld(PW, row + i1)
        upx = x1 * -0.875
        downx = x1 * -1.125
        upw = w1 * 0.875 * 0.875
        downw = w1 * 1.125 * 1.125
        for i2 in range(i1, 33):
            x2 = (ld(PX, row + i2) - x1) * 0.125
            w2 = (ld(PW, row + i2) - w1) * 0.125 * 0.125
            xu = upx + x2 + ld(UPX, row + i2)
            qu = upw + w2 + ld(UPW, row + i2)
            xd = downx - x2 + ld(DOWNX, row + i2)
            qd = downw + w2 + ld(DOWNW, row + i2)
            if any_((xu * xu > best * qu) | (xd * xd > best * qd)):
                c = (i1 << 10) | (i2 << 4)
                best, scale, choice = better(xu, qu, best, scale, choice, c)
                best, scale, choice = better(xd, qd, best, scale, choice, c | 15)
    st(SCALE, j, scale)
    st(CHOICE, j, choice)


def split_16(j, X, WEIGHT, SX, SW, ORDER, PX0, PX1, PA0, PA1, PB0, PB1, SCALE, CHOICE):
    """IQ1_M: the best of 153 splits and a shift for each half (ggml-quants.c: quantize_row_iq1_m_impl).

    PX are prefix sums of w·x over the weights of one half, PA and PB of w times 0.75 and 1.25, the differences of
    the digits' squared values.
    """
    base = j * 16
    row = j * 17
    x0 = zeros(ld(SX, base))
    x1 = x0
    w0 = x0
    w1 = x0
    for i in range(17):
        st(PX0, row + i, x0)
        st(PX1, row + i, x1)
        st(PA0, row + i, w0 * 0.75)
        st(PA1, row + i, w1 * 0.75)
        st(PB0, row + i, w0 * 1.25)
        st(PB1, row + i, w1 * 1.25)
        if i < 16:
            w = ld(SW, base + i)
            wx = w * ld(SX, base + i)
            first = ld(ORDER, base + i) < 8
            x0 = where(first, x0 + wx, x0)
            x1 = where(first, x1, x1 + wx)
            w0 = where(first, w0 + w, w0)
            w1 = where(first, w1, w1 + w)
    best = first_best(X, WEIGHT, base, 16)
    scale = zeros(x0)
    choice = izeros(x0) - 1
    for i1 in range(17):
        a0 = ld(PX0, row + i1)
        a1 = ld(PX1, row + i1)
        up0 = w0 * 1.125 * 1.125 + ld(PA0, row + i1)
        up1 = w1 * 1.125 * 1.125 + ld(PA1, row + i1)
        down0 = w0 * 0.875 * 0.875 + ld(PB0, row + i1)
        down1 = w1 * 0.875 * 0.875 + ld(PB1, row + i1)
        for i2 in range(i1, 17):
            s0 = a0 + ld(PX0, row + i2)
            s1 = a1 + ld(PX1, row + i2)
            upx0 = x0 * 1.125 - s0
            upx1 = x1 * 1.125 - s1
            downx0 = x0 * 0.875 - s0
            downx1 = x1 * 0.875 - s1
            upq0 = up0 - ld(PB0, row + i2)
            upq1 = up1 - ld(PB1, row + i2)
            downq0 = down0 - ld(PA0, row + i2)
            downq1 = down1 - ld(PA1, row + i2)
            x00 = upx0 + upx1
            x01 = upx0 + downx1
            x10 = downx0 + upx1
            x11 = downx0 + downx1
            q00 = upq0 + upq1
            q01 = upq0 + downq1
            q10 = downq0 + upq1
            q11 = downq0 + downq1
            even = (x00 * x00 > best * q00) | (x11 * x11 > best * q11)
            if any_(even | (x01 * x01 > best * q01) | (x10 * x10 > best * q10)):
                c = (i1 << 10) | (i2 << 4)
                best, scale, choice = better(x00, q00, best, scale, choice, c)
                best, scale, choice = better(x01, q01, best, scale, choice, c | 2)
                best, scale, choice = better(x10, q10, best, scale, choice, c | 1)
                best, scale, choice = better(x11, q11, best, scale, choice, c | 3)
    st(SCALE, j, scale)
    st(CHOICE, j, choice)
