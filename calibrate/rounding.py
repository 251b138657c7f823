"""Codes under given scales: column by column with feedback, then coordinate descent.

Weights stand column-major, [n_mat, n_cols, n_rows] f32: a step treats one column of all rows of all matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantmill.calibrate.gram import Metric
from quantmill.qkernels.lattices import ScalarLattice

COLUMNS = 64  # fixed one by one; what they owe to all other columns follows as one matmul


class Levels:
    """The legal values of a code, on a device."""

    def __init__(self, lattice: ScalarLattice, device: torch.device) -> None:
        self.values = torch.tensor(lattice.levels, device=device)
        self._even = lattice.even
        self._first, self._last = lattice.levels[0], lattice.levels[-1]
        self._between = (self.values[1:] + self.values[:-1]) / 2

    def nearest(self, wanted: torch.Tensor) -> torch.Tensor:
        """The legal value next to each wanted one, in units of the scale."""
        if self._even:
            return wanted.sub(self._first).round_().add_(self._first).clamp_(self._first, self._last)
        return self.values[torch.bucketize(wanted.contiguous(), self._between)]

    def positions(self, values: torch.Tensor) -> torch.Tensor:
        """Legal values → their positions, u8."""
        return torch.searchsorted(self.values, values.contiguous()).to(torch.uint8)


@dataclass
class State:
    """A matrix being rounded: its weights are value * scale - low.

    target: [n_mat, n_cols, n_rows]; values: the chosen levels, the same shape
    scale, low: [n_mat, n_groups, n_rows]; low may be None; group: columns that share them
    """

    target: torch.Tensor
    values: torch.Tensor
    scale: torch.Tensor
    low: torch.Tensor | None
    group: int

    def spread(self, of_groups: torch.Tensor) -> torch.Tensor:
        """[n_mat, n_groups, n_rows] → the same for every column."""
        return of_groups.repeat_interleave(self.group, 1)

    def weights(self) -> torch.Tensor:
        """[n_mat, n_cols, n_rows]."""
        out = self.values * self.spread(self.scale)
        return out if self.low is None else out - self.spread(self.low)


def reciprocal(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale; 0 for 0, under which every code gives the same weight."""
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)


def feed_back(state: State, metric: Metric, levels: Levels) -> None:
    """Choose all values anew: each column's rounding error is carried to the columns that are still free.

    The order and the feedback are those of `metric` (GPTQ, or Babai's nearest plane on the lattice of codes).
    """
    n_mat, n_cols, n_rows = state.target.shape
    order, factor = metric.order, metric.feedback
    column = order[:, :, None].expand(-1, -1, n_rows)
    group = (order // state.group)[:, :, None].expand(-1, -1, n_rows)
    left = state.target.gather(1, column)
    scale = state.scale.gather(1, group)
    inverse = reciprocal(scale)
    low = None if state.low is None else state.low.gather(1, group)
    weight_of = 1 / factor.diagonal(dim1=-2, dim2=-1)
    chosen = torch.empty_like(left)
    for begin in range(0, n_cols, COLUMNS):
        end = min(begin + COLUMNS, n_cols)
        errors = left.new_empty(n_mat, end - begin, n_rows)
        for i in range(begin, end):
            x = left[:, i]
            value = levels.nearest((x if low is None else x + low[:, i]) * inverse[:, i])
            chosen[:, i] = value
            made = value * scale[:, i]
            error = (x - made if low is None else x - made + low[:, i]) * weight_of[:, i, None]
            errors[:, i - begin] = error
            if i + 1 < end:
                left[:, i + 1 : end].addcmul_(factor[:, i, i + 1 : end, None], error[:, None], value=-1)
        if end < n_cols:
            left[:, end:].baddbmm_(factor[:, begin:end, end:].transpose(1, 2), errors, alpha=-1)
    state.values = torch.empty_like(chosen).scatter_(1, column, chosen)


def descend(state: State, metric: Metric, levels: Levels, sweeps: int) -> None:
    """Cyclic coordinate descent: each value in turn is the best one while all others stay. Never makes it worse.

    Ends early when a sweep changes nothing.
    """
    moments = metric.moments
    weight_of = 1 / metric.diagonal
    n_cols = state.target.shape[1]
    error = state.weights() - state.target
    slope = moments @ error
    inverse = reciprocal(state.scale)
    for _ in range(sweeps):
        changed = False
        for begin in range(0, n_cols, COLUMNS):
            end = min(begin + COLUMNS, n_cols)
            before = error[:, begin:end].clone()
            for i in range(begin, end):
                k = i // state.group
                # what the column should be, less its target
                wanted = error[:, i] - slope[:, i] * weight_of[:, i, None] + state.target[:, i]
                if state.low is not None:
                    wanted += state.low[:, k]
                value = levels.nearest(wanted * inverse[:, k])
                step = (value - state.values[:, i]) * state.scale[:, k]
                state.values[:, i] = value
                error[:, i] += step
                slope[:, begin:end].addcmul_(moments[:, begin:end, i, None], step[:, None])
            moved = error[:, begin:end] - before
            if bool(moved.any()):
                changed = True
                for part in (slice(0, begin), slice(end, n_cols)):
                    slope[:, part].baddbmm_(moments[:, part, begin:end], moved)
        if not changed:
            return
