"""Types of a grid of ternary groups of eight, shifted up or down by an eighth: IQ1_S and IQ1_M.

The sub-block is sorted; a split of the sorted weights in three is a choice of digits 0, 1, 2, and all splits are tried
with both shifts. A digit's value is digit - 1 + 1/8 or digit - 1 - 1/8. `signs` has a bit for each group of eight, set
where the group is shifted down.
"""

from __future__ import annotations

from qkernels.lanes.encoder import Encoder, Phase, constants
from qkernels.lanes.vocabulary import (
    any_,
    cst,
    div,
    f2h,
    fabs,
    full,
    i2f,
    imax,
    imin,
    izeros,
    ld,
    nearest_shifted,
    nint,
    st,
    stb,
    take,
    where,
    zeros,
)
from qkernels.programs.common import block_sigma, importance_weights, running_max, square_weights
from qkernels.programs.grid import _index, _lists, _near
from qkernels.programs.layout import store_half
from qkernels.programs.ternary import largest_magnitude


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


def score_of_split(X, W, base, low, high, N):
    """The best score of one split: with both halves shifted alike, or for IQ1_M as they like."""
    half = N // 2
    ux0, uq0, dx0, dq0 = shifted_sums(X, W, base, low, high, half)
    ux1, uq1, dx1, dq1 = shifted_sums(X, W, base + half, low, high, half)
    best = larger_score(zeros(low), ux0 + ux1, uq0 + uq1)
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
    score = score_of_split(X, W, base, guess * -0.53, guess * 0.88, N)
    other = score_of_split(X, W, base, guess * -0.88, guess * 0.53, N)
    score = where(other > score, other, score)
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


def place_of(SX, ORDER, base, place, N):
    """Value and first place of the sorted element at a place that each lane has its own; beyond all at N."""
    x = full(ld(SX, base), 3.4028234663852886e38)
    order = izeros(x) + N
    for i in range(N):
        here = place == i
        x = where(here, ld(SX, base + i), x)
        order = where(here, ld(ORDER, base + i), order)
    return x, order


def lowest(signs, g):
    """The value of digit 0 in group g."""
    return where(((signs >> g) & 1) != 0, full(i2f(signs), -1.125), -0.875)


def snap_to_grid(j, X, WEIGHT, SX, ORDER, SCALE, CHOICE, SIGNS, CODE, NOTES, LISTS, NEAR, LEAST, N):
    """Codes of the split's groups, moved to the grid, and the scale fitted to them if a group was off the grid."""
    groups = N // 8
    base = j * N
    choice = ld(CHOICE, j)
    scale = ld(SCALE, j)
    dead = (choice < 0) | (largest_magnitude(X, base, N) < cst(LEAST, 0))
    x1, order1 = place_of(SX, ORDER, base, choice >> 10, N)
    x2, order2 = place_of(SX, ORDER, base, (choice >> 4) & 63, N)
    turned = scale < 0.0
    scale = where(turned, -scale, scale)
    signs = (choice & ((1 << groups) - 1)) ^ where(turned, (1 << groups) - 1, 0)
    off = izeros(scale)
    sqx = zeros(scale)
    sqq = sqx
    for g in range(groups):
        place = base + 8 * g
        low = lowest(signs, g)
        split = izeros(scale)
        for i in range(8):
            x = ld(X, place + i)
            above1 = (x > x1) | ((x == x1) & (order1 <= 8 * g + i))
            above2 = (x > x2) | ((x == x2) & (order2 <= 8 * g + i))
            digit = where(above1, 1, 0) + where(above2, 1, 0)
            split = split | (where(turned, 2 - digit, digit) << (2 * i))
        split = where(dead, izeros(split), split)
        code = nearest_shifted(split, X, WEIGHT, place, scale, low, LISTS, NEAR, NOTES)
        off = off | (code ^ split)
        st(CODE, j * groups + g, code)
        for i in range(8):
            w = ld(WEIGHT, place + i)
            q = i2f((code >> (2 * i)) & 3) + low
            sqx = sqx + w * q * ld(X, place + i)
            sqq = sqq + w * q * q
    scale = where((off != 0) & (sqx > 0.0) & (sqq > 0.0), div(sqx, sqq), scale)
    st(SCALE, j, where(dead, zeros(scale), scale))
    st(SIGNS, j, where(dead, izeros(signs), signs))


def scale_code(inverse, scale):
    return imin(imax(nint((inverse * scale - 1.0) * 0.5), 0), 7)


def pack_iq1_s(j, SCALE, SIGNS, CODE, INDEX, OUT):
    """d, the low bytes of the indices, then a word of their high bits, scale and shift for each sub-block."""
    top = running_max(SCALE, 8)
    d = div(top, full(top, 15.0))
    some = top != 0.0
    inverse = div(full(d, 1.0), d)
    store_half(OUT, 0, where(some, f2h(d * 1.125), 0))
    for b in range(8):
        word = where(some, scale_code(inverse, ld(SCALE, b)) | (ld(SIGNS, b) & 8), 0) << 12
        for k in range(4):
            index = take(INDEX, ld(CODE, 4 * b + k))
            stb(OUT, 2 + 4 * b + k, index)
            word = word | ((index >> 8) << (3 * k))
        stb(OUT, 34 + 2 * b, word)
        stb(OUT, 35 + 2 * b, word >> 8)


def pack_iq1_m(j, X, WEIGHT, SCALE, SIGNS, CODE, INDEX, OUT):
    """Low bytes of the indices, their high bits and shifts, then scales of three bits with the bits of d above them.

    d is fitted once more to the whole super-block with the final scales.
    """
    top = running_max(SCALE, 16)
    some = top != 0.0
    d = div(top, full(top, 15.0))
    inverse = div(full(d, 1.0), d)
    sqx = zeros(top)
    sqq = zeros(top)
    for b in range(16):
        code = scale_code(inverse, ld(SCALE, b))
        signs = ld(SIGNS, b)
        high = where(some, ((signs & 1) << 3) | ((signs & 2) << 6), 0)
        for k in range(2):
            entry = ld(CODE, 2 * b + k)
            index = take(INDEX, entry)
            stb(OUT, 2 * b + k, index)
            high = high | ((index >> 8) << (4 * k))
            low = lowest(signs, k)
            for i in range(8):
                at = 16 * b + 8 * k + i
                w = ld(WEIGHT, at)
                q = (i2f((entry >> (2 * i)) & 3) + low) * i2f(code * 2 + 1)
                sqx = sqx + w * q * ld(X, at)
                sqq = sqq + w * q * q
        stb(OUT, 32 + b, high)
    d = where(sqq > 0.0, div(sqx, sqq), d)
    half = f2h(d * 1.1125)
    for b in range(4):
        word = ((half >> (4 * b)) & 15) << 12
        for s in range(4):
            word = word | (scale_code(inverse, ld(SCALE, 4 * b + s)) << (3 * s))
        word = where(some, word, 0)
        stb(OUT, 48 + 2 * b, word)
        stb(OUT, 49 + 2 * b, word >> 8)


_S = ("px", "pw", "upx", "downx", "upw", "downw")
_M = ("px0", "px1", "pa0", "pa1", "pb0", "pb1")


def _encoder(
    n: int, split: str, prefixes: tuple[str, ...], pack: Phase, least: float, weighted: bool
) -> Encoder:
    subs = 256 // n
    if weighted:
        weigh: tuple[Phase, ...] = (
            Phase("block_sigma", ("x", "sigma", "factor", 256)),
            Phase("importance_weights", ("x", "importance", "sigma", "weight", "total", n), subs),
        )
    else:
        weigh = (Phase("square_weights", ("x", "weight", n), subs),)
    order = ("order",) if n == 16 else ()
    search = ("x", "weight", "sx", "order", "scale", "choice", "signs", "code", "notes", "lists", "near")
    return Encoder(
        family="ternary_grid",
        scratch={
            **dict.fromkeys(("weight", "sx", "sw"), (256, "f32")),
            **dict.fromkeys(prefixes, (subs * (n + 1), "f32")),
            **dict.fromkeys(("scale", "total"), (subs, "f32")),
            **dict.fromkeys(("choice", "signs"), (subs, "i32")),
            "order": (256, "i32"),
            "sigma": (1, "f32"),
            "code": (32, "i32"),
            "notes": (4, "i32"),
        },
        tables={
            "factor": constants(2 / 256),
            "least": constants(least),
            "lists": _lists("IQ1_S"),
            "near": _near("IQ1_S"),
            "index": _index("IQ1_S"),
        },
        uses_importance=weighted,
        phases=(
            *weigh,
            Phase("sort_weights", ("x", "weight", "sx", "sw", "order", n, n.bit_length() - 1), subs),
            Phase(split, ("x", "weight", "sx", "sw", *order, *prefixes, "scale", "choice"), subs),
            Phase("snap_to_grid", (*search, "least", n), subs),
            pack,
        ),
    )


_PACK_S = Phase("pack_iq1_s", ("scale", "signs", "code", "index", "out"))
_PACK_M = Phase("pack_iq1_m", ("x", "weight", "scale", "signs", "code", "index", "out"))

ENCODERS = {
    ("IQ1_S", True): _encoder(32, "split_32", _S, _PACK_S, 1e-12, True),
    ("IQ1_M", False): _encoder(16, "split_16", _M, _PACK_M, 1e-7, False),
    ("IQ1_M", True): _encoder(16, "split_16", _M, _PACK_M, 1e-7, True),
}
