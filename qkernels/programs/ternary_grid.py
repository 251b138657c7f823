"""Types of a grid of ternary groups of eight, shifted up or down by an eighth: IQ1_S and IQ1_M.

The sub-block is sorted; a split of the sorted weights in three is a choice of digits 0, 1, 2, and all splits are tried
with both shifts. A digit's value is digit - 1 + 1/8 or digit - 1 - 1/8. `signs` has a bit for each group of eight, set
where the group is shifted down.
"""

from __future__ import annotations

from collections.abc import Callable

from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants
from quantmill.qkernels.lanes.vocabulary import (
    cst,
    div,
    f2h,
    full,
    i2f,
    imax,
    imin,
    izeros,
    ld,
    nearest_shifted,
    neg,
    nint,
    st,
    stb,
    take,
    where,
    zeros,
)
from quantmill.qkernels.neighbours import codebook_tables
from quantmill.qkernels.programs.common import block_sigma, importance_weights, running_max, square_weights
from quantmill.qkernels.programs.layout import store_half
from quantmill.qkernels.programs.ternary import largest_magnitude
from quantmill.qkernels.programs.ternary_split import sort_weights, split_16, split_32


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
    scale = where(turned, neg(scale), scale)
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
    n: int, split: Callable[..., None], prefixes: tuple[str, ...], pack: Phase, least: float, weighted: bool
) -> Encoder:
    subs = 256 // n
    if weighted:
        weigh: tuple[Phase, ...] = (
            Phase(block_sigma, {"N": 256}),
            Phase(importance_weights, {"N": n}, subs),
        )
    else:
        weigh = (Phase(square_weights, {"N": n}, subs),)
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
            **codebook_tables("IQ1_S"),
            "factor": constants(2 / 256),
            "least": constants(least),
        },
        uses_importance=weighted,
        phases=(
            *weigh,
            Phase(sort_weights, {"N": n, "LOG": n.bit_length() - 1}, subs),
            Phase(split, {}, subs),
            Phase(snap_to_grid, {"N": n}, subs),
            pack,
        ),
    )


_PACK_S = Phase(pack_iq1_s)
_PACK_M = Phase(pack_iq1_m)

ENCODERS = {
    ("IQ1_S", True): _encoder(32, split_32, _S, _PACK_S, 1e-12, True),
    ("IQ1_M", False): _encoder(16, split_16, _M, _PACK_M, 1e-7, False),
    ("IQ1_M", True): _encoder(16, split_16, _M, _PACK_M, 1e-7, True),
}
