"""Codes under given scales: column by column with feedback, then coordinate descent.

Weights stand column-major, [n_mat, n_cols, n_rows] f32: a step treats one column of all rows of all matrices. A block
of columns is done by columns.py, or by kernels that do the same (column_choice.py); between blocks there are matmuls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantmill.calibrate.column_choice import columns_on
from quantmill.calibrate.columns import COLUMNS, Descending, Feeding, Levels
from quantmill.calibrate.gram import Metric


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
    n_cols, n_rows = state.target.shape[1:]
    order, factor = metric.order, metric.feedback
    column = order[:, :, None].expand(-1, -1, n_rows)
    group = (order // state.group)[:, :, None].expand(-1, -1, n_rows)
    left = state.target.gather(1, column)
    scale = state.scale.gather(1, group)
    low = None if state.low is None else state.low.gather(1, group)
    weight_of = 1 / factor.diagonal(dim1=-2, dim2=-1)
    work = Feeding(left, torch.empty_like(left), scale, reciprocal(scale), low, factor, weight_of)
    columns = columns_on(left.device)
    for begin in range(0, n_cols, COLUMNS):
        end = min(begin + COLUMNS, n_cols)
        errors = columns.feed_columns(work, levels, begin, end)
        if end < n_cols:
            left[:, end:].baddbmm_(factor[:, begin:end, end:].transpose(1, 2), errors, alpha=-1)
    state.values = torch.empty_like(work.chosen).scatter_(1, column, work.chosen)


def _waits(device: torch.device) -> bool:
    """Whether to ask what a device has found means to wait for it. There it is asked once a sweep: blocks that did not
    move cost a matmul that changes nothing."""
    return device.type != "cpu"


def descend(state: State, metric: Metric, levels: Levels, sweeps: int) -> None:
    """Cyclic coordinate descent: each value in turn is the best one while all others stay. Never makes it worse.

    Ends early when a sweep changes nothing.
    """
    moments, inverse = metric.moments, reciprocal(state.scale)
    error = state.weights() - state.target
    slope = moments @ error
    given = (state.scale, inverse, state.low, state.group, moments, 1 / metric.diagonal)
    work = Descending(state.target, state.values, error, slope, *given)
    columns = columns_on(error.device)
    waits = _waits(error.device)
    for _ in range(sweeps):
        before = error.clone() if waits else None
        changed = False
        for begin in range(0, error.shape[1], COLUMNS):
            end = min(begin + COLUMNS, error.shape[1])
            moved = columns.descend_columns(work, levels, begin, end)
            if waits or bool(moved.any()):
                changed = True
                for part in (slice(0, begin), slice(end, error.shape[1])):
                    slope[:, part].baddbmm_(moments[:, part, begin:end], moved)
        if not changed or (before is not None and torch.equal(before, error)):
            return
