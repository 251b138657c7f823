"""Codes and scales of a matrix that undo each other's errors, in the metric of what enters the matrix.

    start, blocks = solve(target, metric, "Q4_K", EFFORTS["normal"])

The block scales start from llama.cpp's own search, for types where that ignores importance from the thorough one:
others lose more in the end from the better start, or hardly less. Columns are then fixed with feedback, codes go down
coordinate by coordinate, scales are refitted on the format's grid, in turns (effort says how often).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quantmill.calibrate.columns import Levels
from quantmill.calibrate.gram import Metric
from quantmill.calibrate.grids import UnitFeedback, improved_grid
from quantmill.calibrate.refit import Scales, refit
from quantmill.calibrate.rounding import State, descend, feed_back
from quantmill.qkernels.guarded import quantize_there
from quantmill.qkernels.lattices import GRIDS, LATTICES, Choice, lattice_of
from quantmill.qkernels.types import TYPES, Search

ShareOut = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]  # map in threads, in order
# Of one piece of work: rows of a matrix, and weights of all its matrices together. Part of what decides the bytes.
ROWS = {"cpu": 1024}
ROWS_ON_DEVICE = 1 << 16
WEIGHTS = {"cpu": 1 << 21}
WEIGHTS_ON_DEVICE = 1 << 28


@dataclass(frozen=True)
class Effort:
    """rounds: refits of scales, each with `sweeps` of descent after it; before the first refit `sweeps` too."""

    sweeps: int
    rounds: int


EFFORTS = {"fast": Effort(0, 0), "normal": Effort(2, 2), "thorough": Effort(4, 4)}


def solvable(type: str) -> bool:
    """Whether codes of this type can be chosen here; otherwise it is quantized plainly."""
    return type in LATTICES or type in GRIDS


def solve(
    target: torch.Tensor, metric: Metric, type: str, effort: Effort, share_out: ShareOut | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """target f32 [n_mat, n_rows, n_cols], the metric of each matrix → blocks u8 [n_mat, n_rows, row_bytes].

    Two of them: llama.cpp's, by the metric's diagonal, and the solved ones. A single matrix is cut into rows, a stack
    into matrices, shared out to threads where there are: the bytes do not depend on it.
    Raises QuantizeError for a type that is not solvable or weights its scales cannot hold.
    """
    map_all = _one_by_one if share_out is None else share_out
    stack, rows = _cuts(target)
    made = []
    if len(stack) == 1:
        work = _Rows(metric, _feedback(metric, type), type, effort)
        made.append(map_all(work, [target[:, at] for at in rows]))
    else:
        parts = [(target[matrices], metric.part(matrices)) for matrices in stack]
        made = map_all(_Matrices(rows, type, effort), parts)
    start, solved = (torch.cat([torch.cat([two[i] for two in part], 1) for part in made]) for i in (0, 1))
    return start, solved


@dataclass(frozen=True, eq=False)
class _Rows:
    """Work on rows of matrices that are solved together. It can be carried to another process, as _Matrices can."""

    metric: Metric
    feedback: UnitFeedback | None
    type: str
    effort: Effort

    def __call__(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _piece(target, self.metric, self.feedback, self.type, self.effort)


@dataclass(frozen=True)
class _Matrices:
    """Work on some matrices of a stack."""

    rows: Sequence[slice]
    type: str
    effort: Effort

    def __call__(self, part: tuple[torch.Tensor, Metric]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        target, metric = part
        on_rows = _Rows(metric, _feedback(metric, self.type), self.type, self.effort)
        return [on_rows(target[:, at]) for at in self.rows]


def _one_by_one(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [work(item) for item in items]


def _cuts(target: torch.Tensor) -> tuple[list[slice], list[slice]]:
    """Matrices of a stack that are solved together, and rows."""
    n_mat, n_rows, n_cols = target.shape
    kind = target.device.type
    step = min(n_rows, ROWS.get(kind, ROWS_ON_DEVICE))
    together = max(1, WEIGHTS.get(kind, WEIGHTS_ON_DEVICE) // (step * n_cols))
    stack = [slice(first, min(first + together, n_mat)) for first in range(0, n_mat, together)]
    return stack, [slice(first, min(first + step, n_rows)) for first in range(0, n_rows, step)]


def _feedback(metric: Metric, type: str) -> UnitFeedback | None:
    """What all rows share, worked out once: of the metric itself for scalar types."""
    if type in GRIDS:
        return UnitFeedback(metric)
    _ = metric.feedback
    return None


def _piece(
    target: torch.Tensor, metric: Metric, feedback: UnitFeedback | None, type: str, effort: Effort
) -> tuple[torch.Tensor, torch.Tensor]:
    theirs = plain(target, metric.diagonal, type)
    start = theirs
    if TYPES[type].importance == "none":
        start = plain(target, metric.diagonal, type, "thorough")
    if feedback is not None:
        grid = GRIDS[type]
        solved = improved_grid(target, start, metric, feedback, grid, effort.sweeps, effort.rounds)
    else:
        solved = _improved(target, start, metric, type, effort)
    return theirs, solved


def plain(
    target: torch.Tensor, diagonal: torch.Tensor, type: str, search: Search = "default"
) -> torch.Tensor:
    """Blocks of target [n_mat, n_rows, n_cols] f32 by importance alone: diagonal [n_mat, n_cols]. llama.cpp's where
    the search is the default. Raises DeviceFault for a device that fails or whose blocks are not the CPU's."""
    weights = diagonal.float()
    made = [
        quantize_there(matrix.contiguous(), type, weight.contiguous(), search)
        for matrix, weight in zip(target, weights, strict=True)
    ]
    return torch.stack(made)


def _improved(
    target: torch.Tensor, blocks: torch.Tensor, metric: Metric, type: str, effort: Effort
) -> torch.Tensor:
    lattice = lattice_of(type)
    n_mat, n_rows, n_cols = target.shape
    levels = Levels(lattice, target.device)
    start = lattice.unpack(blocks.flatten(0, 1))
    scales = Scales(lattice, start, n_mat)
    columns = target.transpose(1, 2).contiguous()
    values = levels.values[start.codes.long()].view(n_mat, n_rows, n_cols).transpose(1, 2).contiguous()
    state = State(columns, values, *scales.steps(), lattice.group)
    feed_back(state, metric, levels)
    if effort.sweeps:
        descend(state, metric, levels, effort.sweeps)
    for _ in range(effort.rounds):
        refit(state, metric, scales)
        descend(state, metric, levels, effort.sweeps)
    codes = levels.positions(state.values).transpose(1, 2).contiguous()
    return lattice.pack(Choice(codes.flatten(0, 1), *scales.rows())).view(n_mat, n_rows, -1)
