"""Thorough searches of IQ1_S and IQ1_M: every entry of the codebook, with all digits moved up and down by 1/8.

Arrays of the search for grids are used for both: found and lost for digits moved up, found_odd and lost_odd for down.
"""

from __future__ import annotations

import numpy as np

from quantmill.qkernels.codebooks import codebook
from quantmill.qkernels.decode.fields import half_at, word_at
from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants, continued
from quantmill.qkernels.lanes.vocabulary import (
    f2h,
    full,
    h2f,
    i2f,
    izeros,
    ld,
    ldb,
    st,
    stb,
    take,
    where,
    zeros,
)
from quantmill.qkernels.programs.layout import store_half
from quantmill.qkernels.programs.ternary_grid import ENCODERS as TERNARY_GRID
from quantmill.qkernels.programs.thorough import begun, importance, scratch_of
from quantmill.qkernels.programs.thorough_grid import fitting, fitting_scratch, pairs_of, values_of
from quantmill.qkernels.programs.thorough_grid_search import (
    every_entry,
    near_level,
    step_of,
    values_error,
)

_SHIFT = 0.125


def read_iq1_s(j, OUT, D, LEVEL, ENTRY, DOWN):
    st(D, 0, half_at(OUT, 0))
    for b in range(8):
        head = word_at(OUT, 34 + 2 * b)
        st(LEVEL, b, (head >> 12) & 7)
        for k in range(4):
            st(ENTRY, 4 * b + k, ldb(OUT, 2 + 4 * b + k) | (((head >> (3 * k)) & 7) << 8))
            st(DOWN, 4 * b + k, (head >> 15) & 1)


def read_iq1_m(j, OUT, D, LEVEL, ENTRY, DOWN):
    half = izeros(h2f(ldb(OUT, 0)))
    for b in range(4):
        word = word_at(OUT, 48 + 2 * b)
        half = half | ((word >> 12) << (4 * b))
        for s in range(4):
            st(LEVEL, 4 * b + s, (word >> (3 * s)) & 7)
    st(D, 0, h2f(half))
    for k in range(32):
        nibble = (ldb(OUT, 32 + (k >> 1)) >> (4 * (k & 1))) & 15
        st(ENTRY, k, ldb(OUT, k) | ((nibble & 7) << 8))
        st(DOWN, k, nibble >> 3)


def shifted_values(j, ENTRY, DOWN, Q, VALUES):
    """What the eight weights of group j are, in units of their step."""
    entry = ld(ENTRY, j)
    shift = where(ld(DOWN, j) != 0, full(i2f(entry), -0.125), full(i2f(entry), 0.125))
    for i in range(8):
        st(Q, 8 * j + i, take(VALUES, entry * 8 + i) + shift)


def best_shift(LOST, LOST_ODD, at, SHARED):
    """What SHARED groups of eight lose that are moved alike, and whether they are moved down."""
    up = ld(LOST, at)
    down = ld(LOST_ODD, at)
    for g in range(1, SHARED):
        up = up + ld(LOST, at + g)
        down = down + ld(LOST_ODD, at + g)
    return where(down < up, down, up), down < up


def best_shifted_level(
    j, X, H, D, LEVEL, ENTRY, DOWN, Q, FOUND, LOST, FOUND_ODD, LOST_ODD, UNIT, N, SHARED, MOST, REACH
):
    """Sub-block j's best level of those tried, with its entries and shifts, where that beats the present ones."""
    groups = N // 8
    level = ld(LEVEL, j)
    best = values_error(X, H, Q, j * N, step_of(ld(D, 0), level, UNIT), N)
    chosen = izeros(best) - 1
    for t in range(2 * REACH + 1):
        total = zeros(best)
        for g in range(groups // SHARED):
            lost, down = best_shift(LOST, LOST_ODD, t * 32 + j * groups + g * SHARED, SHARED)
            total = total + lost
        up = total < best
        best = where(up, total, best)
        chosen = where(up, t, chosen)
    st(LEVEL, j, where(chosen >= 0, near_level(level, chosen - REACH, MOST), level))
    for t in range(2 * REACH + 1):
        here = chosen == t
        for g in range(groups // SHARED):
            first = j * groups + g * SHARED
            lost, down = best_shift(LOST, LOST_ODD, t * 32 + first, SHARED)
            for k in range(SHARED):
                at = t * 32 + first + k
                entry = where(down, ld(FOUND_ODD, at), ld(FOUND, at))
                st(ENTRY, first + k, where(here, entry, ld(ENTRY, first + k)))
                flag = where(down, izeros(level) + 1, izeros(level))
                st(DOWN, first + k, where(here, flag, ld(DOWN, first + k)))


def write_iq1_s(j, D, LEVEL, ENTRY, DOWN, OUT):
    store_half(OUT, 0, f2h(ld(D, 0)))
    for b in range(8):
        word = (ld(LEVEL, b) << 12) | (ld(DOWN, 4 * b) << 15)
        for k in range(4):
            entry = ld(ENTRY, 4 * b + k)
            stb(OUT, 2 + 4 * b + k, entry)
            word = word | ((entry >> 8) << (3 * k))
        store_half(OUT, 34 + 2 * b, word)


def write_iq1_m(j, D, LEVEL, ENTRY, DOWN, OUT):
    half = f2h(ld(D, 0))
    for b in range(4):
        word = ((half >> (4 * b)) & 15) << 12
        for s in range(4):
            word = word | (ld(LEVEL, 4 * b + s) << (3 * s))
        store_half(OUT, 48 + 2 * b, word)
    for b in range(16):
        first = ld(ENTRY, 2 * b)
        second = ld(ENTRY, 2 * b + 1)
        stb(OUT, 2 * b, first)
        stb(OUT, 2 * b + 1, second)
        low = (first >> 8) | (ld(DOWN, 2 * b) << 3)
        stb(OUT, 32 + b, low | (((second >> 8) | (ld(DOWN, 2 * b + 1) << 3)) << 4))


# Of the default's rounds of levels so many are looked at on each side.
_REACH = (1,)


def _encoder(name: str, n: int, shared: int, read: Phase, write: Phase, weighted: bool) -> Encoder:
    subs = 256 // n
    h: dict[str, str | int] = {"H": importance(weighted)}
    values = Phase(shifted_values, lanes=32)
    fit = fitting(weighted, n)
    shape = {
        "DIM": 8,
        "LEVELS": 3,
        "ENTRIES": 2048,
        "GROUPS": 32,
        "SHIFT": (n // 8).bit_length() - 1,
        "PARITY": 0,
    }
    rounds: list[Phase] = []
    for reach in _REACH:
        entry = {**h, **shape, "V": "x", "MOST": 7, "REACH": reach}
        down = {"FOUND": "found_odd", "LOST": "lost_odd", "DIGITS": "digits_down"}
        rounds += [
            Phase(every_entry, entry, 32),
            Phase(every_entry, {**entry, **down}, 32),
            Phase(best_shifted_level, {**h, "N": n, "SHARED": shared, "MOST": 7, "REACH": reach}, subs),
            values,
            *fit,
        ]
    tried = 32 * (2 * max(_REACH) + 1)
    return continued(
        TERNARY_GRID[name, weighted],
        "thorough_ternary_grid",
        (*begun(weighted, 256), read, values, *fit, *rounds, write),
        {
            **scratch_of(weighted, 256),
            **fitting_scratch(subs),
            "level": (subs, "i32"),
            **dict.fromkeys(("entry", "down"), (32, "i32")),
            **dict.fromkeys(("found", "found_odd"), (tried, "i32")),
            **dict.fromkeys(("lost", "lost_odd"), (tried, "f32")),
            **dict.fromkeys(("cost", "flip"), (36, "f32")),
            "one": (12, "f32"),
        },
        {
            "values": values_of(name),
            "pairs": pairs_of(name),
            "digits": lambda: codebook(name).values + np.float32(_SHIFT),
            "digits_down": lambda: codebook(name).values - np.float32(_SHIFT),
            "unit": constants(1),
        },
        weighted,
        private=frozenset({"cost", "flip", "one"}),
    )


_ROWS = {
    "IQ1_S": (32, 4, Phase(read_iq1_s), Phase(write_iq1_s)),
    "IQ1_M": (16, 1, Phase(read_iq1_m), Phase(write_iq1_m)),
}

ENCODERS = {
    (name, weighted): _encoder(name, *row, weighted)
    for name, row in _ROWS.items()
    for weighted in (False, True)
    if (name, weighted) in TERNARY_GRID
}
