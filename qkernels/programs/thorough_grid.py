"""Thorough searches of types whose groups of weights are entries of a grid: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.

At a given step all entries are compared, with the values that a decoder makes of them, and with the sign that an odd
number of negative weights has to give up. Then d is fitted to what was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.codebooks import codebook
from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants, continued
from quantmill.qkernels.programs.grid import ENCODERS as GRID
from quantmill.qkernels.programs.grid_pack import (
    pack_iq2_s,
    pack_iq2_xs,
    pack_iq2_xxs,
    pack_iq3_s,
    pack_iq3_xxs,
)
from quantmill.qkernels.programs.thorough import begun, importance, scratch_of
from quantmill.qkernels.programs.thorough_grid_search import (
    best_level,
    every_entry,
    fitted_d,
    kept_d,
    natural_signs,
    read_d,
    read_iq3_s,
    signed_values,
    trial_error,
    value_sums,
    write_d,
)


@dataclass(frozen=True)
class _Grid:
    """A type: weights a sub-block, what a level of 2·level + 1 counts, whether the eighth sign is not stored."""

    n: int
    unit: float
    parity: int
    pack: Phase
    read: Callable[..., None] = read_d
    reach: tuple[int, ...] = (3, 1)


def values_of(name: str) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        book = codebook(name)
        return book.values[book.digits].reshape(-1)

    return make


def pairs_of(name: str) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        book = codebook(name)
        levels = len(book.values)
        pairs = book.digits.astype(np.int32).reshape(len(book.digits), -1, 2) @ np.array([1, levels])
        return (pairs + levels * levels * np.arange(book.dim // 2)).astype(np.int32).reshape(-1)

    return make


# Weights a group, values of a digit, entries of the codebook.
_SHAPES = {
    "IQ2_XXS": (8, 3, 256),
    "IQ2_XS": (8, 3, 512),
    "IQ2_S": (8, 3, 1024),
    "IQ3_XXS": (4, 8, 256),
    "IQ3_S": (4, 8, 512),
}
_ROWS = {
    "IQ2_XXS": _Grid(32, 0.125, 1, Phase(pack_iq2_xxs, lanes=8)),
    "IQ2_XS": _Grid(16, 0.125, 1, Phase(pack_iq2_xs)),
    "IQ2_S": _Grid(16, 0.125, 0, Phase(pack_iq2_s)),
    "IQ3_XXS": _Grid(32, 0.25, 1, Phase(pack_iq3_xxs, lanes=8)),
    "IQ3_S": _Grid(32, 1, 0, Phase(pack_iq3_s), read_iq3_s),
}


def fitting(weighted: bool, n: int) -> tuple[Phase, ...]:
    """The phases that fit d to the values of weights, in sub-blocks of n."""
    subs = 256 // n
    h: dict[str, str | int] = {"H": importance(weighted), "N": n}
    return (
        Phase(value_sums, h, subs),
        Phase(fitted_d, {"SUBS": subs}),
        Phase(trial_error, h, subs),
        Phase(kept_d, {"SUBS": subs}),
    )


def fitting_scratch(subs: int) -> dict[str, tuple[int, str]]:
    """What those phases need."""
    per_sub = dict.fromkeys(("sxq", "sqq", "error", "changed"), (subs, "f32"))
    return {**per_sub, "d": (1, "f32"), "trial_d": (1, "f32"), "q": (256, "f32")}


def _encoder(name: str, row: _Grid, weighted: bool) -> Encoder:
    dim, levels, entries = _SHAPES[name]
    subs, groups = 256 // row.n, 256 // dim
    h: dict[str, str | int] = {"H": importance(weighted)}
    parity = {"PARITY": row.parity}
    values = Phase(signed_values, {"DIM": dim, **parity}, 32)
    fit = fitting(weighted, row.n)
    rounds: list[Phase] = []
    for reach in row.reach:
        shape = {**h, "DIM": dim, "GROUPS": groups, "MOST": 15, "REACH": reach, **parity}
        shift = (row.n // dim).bit_length() - 1
        rounds += [
            Phase(every_entry, {**shape, "LEVELS": levels, "ENTRIES": entries, "SHIFT": shift}, groups),
            Phase(best_level, {**shape, "N": row.n}, subs),
            values,
            *fit,
        ]
    tried = groups * (2 * max(row.reach) + 1)
    pairs = dim // 2 * levels * levels
    return continued(
        GRID[name, weighted],
        "thorough_grid",
        (
            *begun(weighted, 256),
            Phase(row.read),
            Phase(natural_signs, lanes=32),
            values,
            *fit,
            *rounds,
            Phase(write_d, {"SUBS": subs}),
            row.pack,
        ),
        {
            **scratch_of(weighted, 256),
            **fitting_scratch(subs),
            "v": (256, "f32"),
            "natural": (32, "i32"),
            **dict.fromkeys(("found", "found_odd"), (tried, "i32")),
            **dict.fromkeys(("lost", "lost_odd"), (tried, "f32")),
            **dict.fromkeys(("cost", "flip"), (pairs, "f32")),
            "one": (4 * levels, "f32"),
        },
        {
            "values": values_of(name),
            "pairs": pairs_of(name),
            "digits": lambda: codebook(name).values,
            "unit": constants(row.unit),
        },
        weighted,
        private=frozenset({"cost", "flip", "one"}),
    )


ENCODERS = {
    (name, weighted): _encoder(name, row, weighted)
    for name, row in _ROWS.items()
    for weighted in (False, True)
    if (name, weighted) in GRID
}
