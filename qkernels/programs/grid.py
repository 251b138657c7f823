"""Types whose codes are points of a grid, with signs apart: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants, scale_ladder
from quantmill.qkernels.neighbours import codebook_tables
from quantmill.qkernels.programs.common import block_sigma, importance_weights, square_weights
from quantmill.qkernels.programs.grid_pack import (
    block_scale,
    clear_without_scale,
    grid_entries,
    pack_iq2_s,
    pack_iq2_xs,
    pack_iq2_xxs,
    pack_iq3_s,
    pack_iq3_xxs,
)
from quantmill.qkernels.programs.grid_search import (
    extent_from_largest,
    extent_from_search,
    grid_search,
    raised_square_weights,
    signs_and_magnitudes,
    weight_terms,
)


@dataclass(frozen=True)
class _Grid:
    """The numbers in which the five types differ."""

    name: str
    n: int  # weights a sub-block
    dim: int  # weights a group
    sigma: float  # mean square times this / 256
    weigh: Callable[..., None] | None  # weights without importance; None where importance is required
    parity: int  # whether only seven of eight signs are stored
    least: float  # a sub-block whose largest magnitude is below this is dead
    step: float  # trials: (top + step·t) / extent, t = -reach … reach
    reach: int
    redo: int  # grid_search: which groups the best scale projects once more
    factor: float  # corrects d
    clear: int  # whether a block without a scale stores neither entries nor signs

    @property
    def digit_bits(self) -> int:
        return 2 if self.dim == 8 else 3

    @property
    def top(self) -> int:
        return 5 if self.dim == 8 else 15


def _trials(grid: _Grid) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        t = np.arange(-grid.reach, grid.reach + 1, dtype=np.float32)
        return np.append(np.float32(grid.top) + t * np.float32(grid.step), np.float32(1))

    return make


def _weights(grid: _Grid, weighted: bool) -> tuple[Phase, ...]:
    sigma = Phase(block_sigma, {"N": 256})
    subs = 256 // grid.n
    if weighted:
        return (sigma, Phase(importance_weights, {"N": grid.n}, subs))
    assert grid.weigh is not None
    weigh = Phase(grid.weigh, {"N": grid.n}, subs)
    return (sigma, weigh) if "sigma" in weigh.arguments else (weigh,)


def _extent(grid: _Grid) -> Phase:
    if grid.redo == 2:
        return Phase(extent_from_search, {"CODE": "levels", "N": grid.n}, 256 // grid.n)
    return Phase(extent_from_largest, {"N": grid.n}, 256 // grid.n)


def _encoder(grid: _Grid, pack: Phase, weighted: bool) -> Encoder:
    subs, groups = 256 // grid.n, 256 // grid.dim
    shape = {"N": grid.n, "DIM": grid.dim}
    trials = {"BITS": grid.digit_bits, "TRIALS": 2 * grid.reach + 1, "REDO": grid.redo}
    clear = (Phase(clear_without_scale, {"SUBS": subs, "GROUPS": groups}),) if grid.clear else ()
    return Encoder(
        family="grid",
        scratch={
            **dict.fromkeys(("weight", "v", "root", "product", "levels"), (256, "f32")),
            **dict.fromkeys(("scale", "extent", "total"), (subs, "f32")),
            **dict.fromkeys(("code", "wanted", "trial", "entry"), (groups, "i32")),
            "sigma": (1, "f32"),
            "sign": (32, "i32"),
            "level": (subs, "i32"),
            "notes": (4 * grid.n // grid.dim + 2, "i32"),
        },
        tables={
            **codebook_tables(grid.name),
            "factor": constants(grid.sigma / 256),
            "limits": constants(grid.least, 3 if grid.redo == 2 else grid.top),
            "ladder": scale_ladder(4),
            "trials": _trials(grid),
            "correction": constants(1, 31, grid.factor),
        },
        uses_importance=weighted,
        phases=(
            *_weights(grid, weighted),
            Phase(signs_and_magnitudes, {"PARITY": grid.parity}, 32),
            Phase(weight_terms, {"N": grid.n}, subs),
            _extent(grid),
            Phase(grid_search, {"LADDER": "trials", **shape, **trials}, subs),
            Phase(grid_entries, {**shape, "MASK": 127 if grid.parity else 255}, subs),
            *clear,
            Phase(block_scale, {"LADDER": "correction", "SUBS": subs}),
            pack,
        ),
    )


_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
_GRIDS = (
    (
        _Grid("IQ2_XXS", 32, 8, 1, None, 1, 1e-15, 0.1, 6, 2, 1, 1),
        Phase(pack_iq2_xxs, lanes=8),
    ),
    (
        _Grid("IQ2_XS", 16, 8, 1, None, 1, 1e-15, 0.1, 9, 0, 1, 1),
        Phase(pack_iq2_xs),
    ),
    (
        _Grid("IQ2_S", 16, 8, 2, raised_square_weights, 0, 1e-8, 0.1, 9, 0, 0.9875, 0),
        Phase(pack_iq2_s),
    ),
    (
        _Grid("IQ3_XXS", 32, 4, 2, square_weights, 1, 1e-8, 0.2, 15, 0, 1.0125, 1),
        Phase(pack_iq3_xxs, lanes=8),
    ),
    (
        _Grid("IQ3_S", 32, 4, 2, square_weights, 0, _SMALLEST, 0.2, 9, 1, 1.033, 0),
        Phase(pack_iq3_s),
    ),
)

ENCODERS = {
    (grid.name, weighted): _encoder(grid, pack, weighted)
    for grid, pack in _GRIDS
    for weighted in (False, True)
    if weighted or grid.weigh
}
