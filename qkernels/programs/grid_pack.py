"""From scales, codes and signs of the sub-blocks to the bytes of a block: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S."""

from __future__ import annotations

from quantmill.qkernels.lanes.vocabulary import (
    any_,
    cst,
    div,
    f2h,
    full,
    imax,
    imin,
    izeros,
    ld,
    neg,
    nint,
    st,
    stb,
    take,
    where,
    zeros,
)
from quantmill.qkernels.programs.common import running_max
from quantmill.qkernels.programs.layout import store_half


def grid_entries(j, EXTENT, SCALE, CODE, SIGN, ENTRY, INDEX, N, DIM, MASK):
    """Sub-block j's codes as entries of the grid; a negative scale turns the signs instead. Dead: all zero."""
    live = ld(EXTENT, j) > 0.0
    scale = ld(SCALE, j)
    negative = scale < 0.0
    st(SCALE, j, where(negative, neg(scale), scale))
    none = izeros(scale)
    for g in range(N // DIM):
        entry = take(INDEX, ld(CODE, j * (N // DIM) + g))
        st(ENTRY, j * (N // DIM) + g, where(live, entry, none))
    for g in range(N // 8):
        sign = ld(SIGN, j * (N // 8) + g)
        sign = where(negative, sign ^ MASK, sign)
        st(SIGN, j * (N // 8) + g, where(live, sign, none))


def clear_without_scale(j, SCALE, ENTRY, SIGN, SUBS, GROUPS):
    """Types that write entries and signs last write none if no scale is positive."""
    largest = running_max(SCALE, SUBS)
    live = largest > 0.0
    none = izeros(largest)
    if any_(largest <= 0.0):
        for g in range(GROUPS):
            st(ENTRY, g, where(live, ld(ENTRY, g), none))
        for g in range(32):
            st(SIGN, g, where(live, ld(SIGN, g), none))


def block_scale(j, SCALE, LEVEL, OUT, LADDER, SUBS):
    """d at 0 and a four-bit level for each sub-block, x ≈ d·(2·level + 1)·…; all zero if no scale is positive.

    LADDER: 1, 31, the factor that corrects d for the rounding of the levels.
    """
    largest = running_max(SCALE, SUBS)
    live = largest > 0.0
    d = div(where(live, largest, full(largest, 1.0)), full(largest, cst(LADDER, 1)))
    inverse = div(full(d, cst(LADDER, 0)), d)
    store_half(OUT, 0, f2h(where(live, d * cst(LADDER, 2), zeros(d))))
    for b in range(SUBS):
        level = nint(0.5 * (inverse * ld(SCALE, b) - 1.0))
        st(LEVEL, b, where(live, imin(imax(level, 0), 15), izeros(d)))


def pack_levels(LEVEL, OUT, place, COUNT):
    for k in range(COUNT):
        stb(OUT, place + k, ld(LEVEL, 2 * k) | (ld(LEVEL, 2 * k + 1) << 4))


def pack_signs_and_level(LEVEL, SIGN, b, OUT, place):
    """A word of four times seven signs, and the level of sub-block b in its top four bits."""
    word = ld(SIGN, 4 * b) | (ld(SIGN, 4 * b + 1) << 7) | (ld(SIGN, 4 * b + 2) << 14)
    word = word | (ld(SIGN, 4 * b + 3) << 21) | (ld(LEVEL, b) << 28)
    for k in range(4):
        stb(OUT, place + k, word >> (8 * k))


def pack_iq2_xxs(j, LEVEL, ENTRY, SIGN, OUT):
    """Sub-block j: four entries, then signs and level."""
    for k in range(4):
        stb(OUT, 2 + 8 * j + k, ld(ENTRY, 4 * j + k))
    pack_signs_and_level(LEVEL, SIGN, j, OUT, 6 + 8 * j)


def pack_iq3_xxs(j, LEVEL, ENTRY, SIGN, OUT):
    """Sub-block j: eight entries at 2, signs and level at 66."""
    for k in range(8):
        stb(OUT, 2 + 8 * j + k, ld(ENTRY, 8 * j + k))
    pack_signs_and_level(LEVEL, SIGN, j, OUT, 66 + 4 * j)


def pack_iq2_xs(j, LEVEL, ENTRY, SIGN, OUT):
    """Words of an entry (9 bits) and its signs (7) at 2, levels at 66."""
    for g in range(32):
        store_half(OUT, 2 + 2 * g, ld(ENTRY, g) | (ld(SIGN, g) << 9))
    pack_levels(LEVEL, OUT, 66, 8)


def pack_iq2_s(j, LEVEL, ENTRY, SIGN, OUT):
    """Low bytes of the entries at 2, signs at 34, two high bits of each entry at 66, levels at 74."""
    for g in range(32):
        stb(OUT, 2 + g, ld(ENTRY, g))
        stb(OUT, 34 + g, ld(SIGN, g))
    for k in range(8):
        low = (ld(ENTRY, 4 * k) >> 8) | ((ld(ENTRY, 4 * k + 1) >> 8) << 2)
        stb(OUT, 66 + k, low | ((ld(ENTRY, 4 * k + 2) >> 8) << 4) | ((ld(ENTRY, 4 * k + 3) >> 8) << 6))
    pack_levels(LEVEL, OUT, 74, 8)


def close_gap(A, b, PER, dead):
    """Where sub-block b is dead, its PER values go and those behind move up."""
    for i in range(PER * b, 8 * PER - PER):
        st(A, i, where(dead, ld(A, i + PER), ld(A, i)))
    for i in range(8 * PER - PER, 8 * PER):
        st(A, i, where(dead, izeros(ld(A, i)), ld(A, i)))


def pack_iq3_s(j, LEVEL, ENTRY, SIGN, EXTENT, OUT):
    """Low bytes of the entries at 2, their ninth bits at 66, signs at 74, levels at 106.

    The reference does not advance its pointers to low bytes and signs behind a sub-block of zeros (llama.cpp then
    decodes the block wrongly); the bytes are only the same if ours do not either.
    """
    for b in range(8):
        high = ld(ENTRY, 8 * b) >> 8
        for k in range(1, 8):
            high = high | ((ld(ENTRY, 8 * b + k) >> 8) << k)
        stb(OUT, 66 + b, high)
    for k in range(8):
        dead = ld(EXTENT, 7 - k) <= 0.0
        if any_(dead):
            close_gap(ENTRY, 7 - k, 8, dead)
            close_gap(SIGN, 7 - k, 4, dead)
    for g in range(64):
        stb(OUT, 2 + g, ld(ENTRY, g))
    for g in range(32):
        stb(OUT, 74 + g, ld(SIGN, g))
    pack_levels(LEVEL, OUT, 106, 4)
