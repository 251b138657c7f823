"""A block of columns, one after another: as torch operations, a dozen small ones for each column.

What a column owes to the others of its block is paid at once; the rest of the matrix follows as one matmul a block.
Weights stand column-major, [n_mat, n_cols, n_rows] f32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantmill.qkernels.lattices import ScalarLattice

COLUMNS = 64  # fixed one by one; what they owe to all other columns follows as one matmul


class Levels:
    """The legal values of a code, on a device."""

    def __init__(self, lattice: ScalarLattice, device: torch.device) -> None:
        self.values = torch.tensor(lattice.levels, device=device)
        self.legal, self.even = lattice.levels, lattice.even
        self._first, self._last = lattice.levels[0], lattice.levels[-1]
        self.between = (self.values[1:] + self.values[:-1]) / 2

    def nearest(self, wanted: torch.Tensor) -> torch.Tensor:
        """The legal value next to each wanted one, in units of the scale."""
        if self.even:
            return wanted.sub(self._first).round_().add_(self._first).clamp_(self._first, self._last)
        return self.values[torch.bucketize(wanted.contiguous(), self.between)]

    def positions(self, values: torch.Tensor) -> torch.Tensor:
        """Legal values → their positions, u8."""
        return torch.searchsorted(self.values, values.contiguous()).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Feeding:
    """Columns in the order in which they are fixed, each with its own scale.

    left: what they should be by now; chosen: their levels; scale, inverse, low (or None): [n_mat, n_cols, n_rows]
    factor: [n_mat, n_cols, n_cols], see Metric.feedback; weight_of: [n_mat, n_cols], 1 / its diagonal
    """

    left: torch.Tensor
    chosen: torch.Tensor
    scale: torch.Tensor
    inverse: torch.Tensor
    low: torch.Tensor | None
    factor: torch.Tensor
    weight_of: torch.Tensor

    def changed(self, begin: int, end: int) -> list[torch.Tensor]:
        """What work on a block changes, of that block."""
        return [self.left[:, begin:end], self.chosen[:, begin:end]]


@dataclass(frozen=True, eq=False)
class Descending:
    """Columns in the matrix' own order.

    target, values, error (weights - target), slope (moments @ error): [n_mat, n_cols, n_rows]
    scale, inverse, low (or None): [n_mat, n_groups, n_rows], of `group` columns each
    moments: [n_mat, n_cols, n_cols]; weight_of: [n_mat, n_cols], 1 / their diagonal
    """

    target: torch.Tensor
    values: torch.Tensor
    error: torch.Tensor
    slope: torch.Tensor
    scale: torch.Tensor
    inverse: torch.Tensor
    low: torch.Tensor | None
    group: int
    moments: torch.Tensor
    weight_of: torch.Tensor

    def changed(self, begin: int, end: int) -> list[torch.Tensor]:
        """What work on a block changes, of that block."""
        return [part[:, begin:end] for part in (self.values, self.error, self.slope)]


def feed_columns(work: Feeding, levels: Levels, begin: int, end: int) -> torch.Tensor:
    """Fixes columns begin … end-1 → their errors [n_mat, end - begin, n_rows], in units of the factor's rows."""
    left, low, scale = work.left, work.low, work.scale
    errors = left.new_empty(len(left), end - begin, left.shape[2])
    for i in range(begin, end):
        x = left[:, i]
        value = levels.nearest((x if low is None else x + low[:, i]) * work.inverse[:, i])
        work.chosen[:, i] = value
        made = value * scale[:, i]
        error = (x - made if low is None else x - made + low[:, i]) * work.weight_of[:, i, None]
        errors[:, i - begin] = error
        if i + 1 < end:
            left[:, i + 1 : end].addcmul_(work.factor[:, i, i + 1 : end, None], error[:, None], value=-1)
    return errors


def descend_columns(work: Descending, levels: Levels, begin: int, end: int) -> torch.Tensor:
    """Each of columns begin … end-1 takes its best value → by how much their errors moved.

    [n_mat, end - begin, n_rows]. The block's own slopes follow.
    """
    error, slope = work.error, work.slope
    before = error[:, begin:end].clone()
    for i in range(begin, end):
        k = i // work.group
        # what the column should be, less its target
        wanted = error[:, i] - slope[:, i] * work.weight_of[:, i, None] + work.target[:, i]
        if work.low is not None:
            wanted += work.low[:, k]
        value = levels.nearest(wanted * work.inverse[:, k])
        step = (value - work.values[:, i]) * work.scale[:, k]
        work.values[:, i] = value
        error[:, i] += step
        slope[:, begin:end].addcmul_(work.moments[:, begin:end, i, None], step[:, None])
    return error[:, begin:end] - before
