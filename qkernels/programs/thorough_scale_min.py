"""Thorough searches of types with scales and minimums, x ≈ scale·code - min: Q4_1, Q5_1, Q2_K, Q4_K, Q5_K.

A super-block's minimums all have the sign of dmin, which the default's search never makes negative. Here a block is
searched as it is and once more with the signs of its weights turned, which gives a negative d and dmin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants, continued
from quantmill.qkernels.programs.rounding import ENCODERS as ROUNDING
from quantmill.qkernels.programs.rounding import pack_codes_4, pack_codes_5
from quantmill.qkernels.programs.scale_min import ENCODERS as SCALE_MIN
from quantmill.qkernels.programs.scale_min import (
    pack_q2_k,
    pack_q4_k,
    pack_q5_k,
    pack_scales_4bit,
    pack_scales_6bit,
)
from quantmill.qkernels.programs.thorough import begun, importance, scratch_of, spaced
from quantmill.qkernels.programs.thorough_pair import (
    better_sign,
    common_pair,
    near_pair,
    one_pair,
    pair_codes,
    read_scales_4bit,
    read_scales_6bit,
    refitted_pair,
    sums,
    turned,
    wanted_pair,
)

_REFITS = 3


def _numerators(row: _SuperBlock | _OneBlock) -> list[float]:
    return spaced(row.first, row.last, row.steps, row.levels)


@dataclass(frozen=True)
class _OneBlock:
    """Q4_1 or Q5_1: its largest code, and the steps to try as multiples of that over the range."""

    levels: int
    pack: Phase
    first: float = 0.85
    last: float = 2.0
    steps: int = 24


def _of_32(start: Encoder, row: _OneBlock, weighted: bool) -> Encoder:
    shape: dict[str, str | int] = {"N": 32, "NMAX": row.levels}
    h = {"H": importance(weighted)}
    numerators = _numerators(row)
    wanted = {**h, **shape, "TRIALS": len(numerators), "REFITS": 2, "FREE": 1}
    return continued(
        start,
        "thorough_scale_min",
        (
            *begun(weighted, 32),
            Phase(sums, {**h, "N": 32}),
            Phase(wanted_pair, wanted),
            Phase(one_pair, {**h, **shape, "REFITS": _REFITS}),
            Phase(pair_codes, shape),
            row.pack,
        ),
        {
            **scratch_of(weighted, 32),
            **dict.fromkeys(("sw", "sx", "wanted", "wanted_min", "d", "dmin", "scales", "mins"), (1, "f32")),
            "code": (32, "u8"),
        },
        {"numerators": constants(*numerators)},
        weighted,
    )


@dataclass(frozen=True)
class _SuperBlock:
    """Q2_K, Q4_K or Q5_K: weights a sub-block, largest code and scale; steps as above; how far each round looks."""

    n: int
    levels: int
    most: int
    read: Callable[..., None]
    pack: tuple[Phase, ...]
    first: float = 0.85
    last: float = 2.0
    steps: int = 12
    rounds: tuple[int, ...] = (2, 1, 1)


def _search(row: _SuperBlock, weighted: bool, arrays: Mapping[str, str | int]) -> tuple[Phase, ...]:
    """From scales that are there to better ones. `arrays`: where weights and scales are."""
    subs = 256 // row.n
    h: dict[str, str | int] = {"H": importance(weighted)}
    shape: dict[str, str | int] = {**h, "N": row.n, "NMAX": row.levels, **arrays}
    x = {"X": arrays["X"]}
    wanted = {**h, **x, "N": row.n, "NMAX": row.levels, "TRIALS": row.steps, "REFITS": 2, "FREE": 0}
    phases = [
        Phase(sums, {**h, **x, "N": row.n}, subs),
        Phase(wanted_pair, wanted, subs),
        Phase(common_pair, {**shape, "SUBS": subs, "MOST": row.most, "TRIALS": 3}),
    ]
    refit = Phase(refitted_pair, {**shape, "SUBS": subs})
    for reach in row.rounds:
        phases += [Phase(near_pair, {**shape, "MOST": row.most, "REACH": reach}, subs), refit]
    return tuple(phases)


def _of_256(start: Encoder, row: _SuperBlock, weighted: bool) -> Encoder:
    subs = 256 // row.n
    per_sub = (
        "scales",
        "mins",
        "scales2",
        "mins2",
        "sw",
        "sx",
        "wanted",
        "wanted_min",
        "sq",
        "sqq",
        "sxq",
        "error",
    )
    plain = {"X": "x", "D": "d", "DMIN": "dmin", "SCALES": "scales", "MINS": "mins"}
    other = {"X": "turned", "D": "d2", "DMIN": "dmin2", "SCALES": "scales2", "MINS": "mins2"}
    shape = {"N": row.n, "NMAX": row.levels}
    return continued(
        start,
        "thorough_scale_min",
        (
            *begun(weighted, 256),
            Phase(row.read),
            *_search(row, weighted, plain),
            Phase(turned, {**other, "X": "x", "SUBS": subs}),
            *_search(row, weighted, other),
            Phase(better_sign, {"H": importance(weighted), **shape, "SUBS": subs}),
            Phase(pair_codes, shape, subs),
            *row.pack,
        ),
        {
            **scratch_of(weighted, 256),
            **dict.fromkeys(per_sub, (subs, "f32")),
            **dict.fromkeys(("d", "dmin", "d2", "dmin2"), (1, "f32")),
            "turned": (256, "f32"),
            "code": (256, "u8"),
        },
        {
            "numerators": constants(*_numerators(row)),
            "divisors": constants(*(row.most * f for f in (1, 0.93, 0.86))),
        },
        weighted,
    )


_STORED = {"LS": "scales", "LM": "mins"}
_SIX_BITS = Phase(pack_scales_6bit, {**_STORED, "TOP": 63})
_BLOCKS = {
    "Q4_1": _OneBlock(15, Phase(pack_codes_4, {"PLACE": 4})),
    "Q5_1": _OneBlock(31, Phase(pack_codes_5, {"PLACE": 4})),
}
_SUPER_BLOCKS = {
    "Q2_K": _SuperBlock(16, 3, 15, read_scales_4bit, (Phase(pack_scales_4bit, _STORED), Phase(pack_q2_k))),
    "Q4_K": _SuperBlock(32, 15, 63, read_scales_6bit, (_SIX_BITS, Phase(pack_q4_k)), 0.9, 1.5, 14),
    "Q5_K": _SuperBlock(32, 31, 63, read_scales_6bit, (_SIX_BITS, Phase(pack_q5_k)), 0.9, 1.5, 14),
}
_KNOWN = {**ROUNDING, **SCALE_MIN}

ENCODERS = {
    **{(type, w): _of_32(_KNOWN[type, w], row, w) for type, row in _BLOCKS.items() for w in (False, True)},
    **{
        (type, w): _of_256(_KNOWN[type, w], row, w)
        for type, row in _SUPER_BLOCKS.items()
        for w in (False, True)
    },
}
