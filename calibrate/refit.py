"""Scales under given codes: least squares in the full metric, on the grid that the format allows.

Source: the formats' own decoders; every step is kept only where it lowers tr(E H Eᵀ).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantmill.calibrate.gram import Metric
from quantmill.calibrate.rounding import State
from quantmill.qkernels.lattices import Choice, GridChoice, GridLattice, ScalarLattice


@dataclass(frozen=True)
class Ranges:
    """Which whole numbers scale and minimum may be; odd: of scales only the odd ones."""

    scales: tuple[int, int]
    mins: tuple[int, int] | None = None
    odd: bool = False

    def snapped(self, scales: torch.Tensor) -> torch.Tensor:
        whole = ((scales - 1) / 2).round() * 2 + 1 if self.odd else scales.round()
        return whole.clamp(*self.scales)


class Scales:
    """The stored scales of a batch of matrices: [n_mat, n_blocks (, n_groups), n_rows] f32, as they are decoded.

    ranges: None where scales are no whole numbers; table: all that a scale can be, where a byte says which.
    """

    def __init__(
        self,
        lattice: ScalarLattice | GridLattice,
        choice: Choice | GridChoice,
        n_mat: int,
    ) -> None:
        self.block, self.group = lattice.block, lattice.group
        self.table: tuple[float, ...] | None = None
        self.ranges: Ranges | None = None
        if isinstance(lattice, GridLattice):
            self.ranges = Ranges((1, lattice.last), odd=True)
        else:
            self.table = lattice.scale_table
            if lattice.whole is not None:
                self.ranges = Ranges(lattice.whole.scale_range, lattice.whole.min_range)

        def turned(part: torch.Tensor | None) -> torch.Tensor | None:
            """[n_mat * n_rows, …] → [n_mat, …, n_rows] f32."""
            if part is None:
                return None
            return part.float().view(n_mat, -1, *part.shape[1:]).movedim(1, -1).contiguous()

        self.d, self.scales = turned(choice.d), turned(choice.scales)
        lows = (None, None) if isinstance(choice, GridChoice) else (choice.dmin, choice.mins)
        self.dmin, self.mins = map(turned, lows)

    def steps(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale and minimum of every group, [n_mat, n_groups, n_rows]."""
        if self.table is not None:
            assert self.scales is not None
            table = torch.tensor(self.table, device=self.scales.device)
            return table[self.scales.long()].flatten(1, 2), None
        assert self.d is not None
        if self.scales is None:
            return self.d, self.dmin
        scale = (self.d[:, :, None] * self.scales).flatten(1, 2)
        if self.dmin is None or self.mins is None:
            return scale, None
        return scale, (self.dmin[:, :, None] * self.mins).flatten(1, 2)

    def rows(self) -> tuple[torch.Tensor | None, ...]:
        """d, dmin, scales, mins row by row, as a lattice packs them: [n_mat * n_rows, n_blocks (, n_groups)]."""

        def back(part: torch.Tensor | None, whole: bool) -> torch.Tensor | None:
            if part is None:
                return None
            rows = part.movedim(-1, 1).flatten(0, 1).contiguous()
            return rows.to(torch.int16) if whole else rows

        return back(self.d, False), back(self.dmin, False), back(self.scales, True), back(self.mins, True)


class _Fit:
    """Error and slope of a state, kept in step while groups of columns are changed."""

    def __init__(self, state: State, metric: Metric) -> None:
        self.moments = metric.moments
        self.slope = self.moments @ (state.weights() - state.target)

    def parts(self, at: slice, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """direction z [n_mat, n, n_rows] on columns `at` → zᵀHz, zᵀ·slope [n_mat, n_rows], and Hz."""
        turned = self.moments[:, at, at] @ direction
        curve = (direction * turned).sum(1)
        return curve, (direction * self.slope[:, at]).sum(1), turned

    def move(self, at: slice, change: torch.Tensor) -> None:
        self.slope.baddbmm_(self.moments[:, :, at], change)


def refit(state: State, metric: Metric, scales: Scales) -> None:
    """One round: the groups' whole numbers, then the blocks' d and dmin. state.scale and state.low follow."""
    fit = _Fit(state, metric)
    if scales.table is not None:
        _refit_table(state, fit, scales)
    else:
        if scales.ranges is not None:
            _refit_whole(state, fit, scales, scales.ranges)
        _refit_blocks(state, fit, scales)
    state.scale, state.low = scales.steps()


def _ratio(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return torch.where(where, a / torch.where(where, b, torch.ones_like(b)), torch.zeros_like(a))


def _refit_whole(state: State, fit: _Fit, scales: Scales, ranges: Ranges) -> None:
    """Each group's multiple of d (and of dmin): the best near the least squares solution, the others as they are."""
    assert scales.d is not None
    assert scales.scales is not None
    group, n_groups = state.group, scales.scales.shape[2]
    for k in range(state.values.shape[1] // group):
        block, j = divmod(k, n_groups)
        at = slice(k * group, (k + 1) * group)
        z = state.values[:, at]
        d, old = scales.d[:, block], scales.scales[:, block, j]
        curve, slope, turned = fit.parts(at, z)
        if scales.mins is None or scales.dmin is None or ranges.mins is None:
            new = ranges.snapped(old + _ratio(-slope, curve * d, (curve > 0) & (d != 0)))
            step = (new - old) * d
            keep = 2 * slope * step + curve * step * step < 0
            scales.scales[:, block, j] = torch.where(keep, new, old)
            fit.move(at, torch.where(keep, step, torch.zeros_like(step))[:, None] * z)
            continue
        dmin, old_min = scales.dmin[:, block], scales.mins[:, block, j]
        curve_min = fit.moments[:, at, at].sum((1, 2))[:, None]
        slope_min, cross = -fit.slope[:, at].sum(1), -turned.sum(1)
        free = curve * curve_min - cross * cross
        sound = free > 1e-9 * curve * curve_min
        start = old + _ratio(cross * slope_min - curve_min * slope, free * d, sound & (d != 0))
        start = ranges.snapped(start)
        best = torch.zeros_like(curve)
        new, new_min = old, old_min
        for away in (-1, 0, 1):
            one = (start + away).clamp(*ranges.scales)
            step = (one - old) * d
            wanted = _ratio(-(slope_min + cross * step), curve_min * dmin, dmin != 0)
            one_min = (old_min + wanted).round().clamp(*ranges.mins)
            step_min = (one_min - old_min) * dmin
            gain = 2 * (slope * step + slope_min * step_min) + curve * step * step
            gain += 2 * cross * step * step_min + curve_min * step_min * step_min
            better = gain < best
            best = torch.where(better, gain, best)
            new, new_min = torch.where(better, one, new), torch.where(better, one_min, new_min)
        fit.move(at, ((new - old) * d)[:, None] * z - ((new_min - old_min) * dmin)[:, None])
        scales.scales[:, block, j], scales.mins[:, block, j] = new, new_min


def _refit_blocks(state: State, fit: _Fit, scales: Scales) -> None:
    """d (and dmin) of each block, binary16."""
    assert scales.d is not None
    size = scales.block
    for b in range(scales.d.shape[1]):
        at = slice(b * size, (b + 1) * size)
        z = state.values[:, at]
        if scales.scales is not None:
            z = z * state.spread(scales.scales[:, b])
        d = scales.d[:, b]
        curve, slope, turned = fit.parts(at, z)
        alone = _ratio(-slope, curve, curve > 0)
        if scales.dmin is None:
            new = (d + alone).half().float()
            step = new - d
            keep = (2 * slope * step + curve * step * step < 0) & new.isfinite()
            scales.d[:, b] = torch.where(keep, new, d)
            fit.move(at, torch.where(keep, step, torch.zeros_like(step))[:, None] * z)
            continue
        dmin = scales.dmin[:, b]
        y = -torch.ones_like(z) if scales.mins is None else -state.spread(scales.mins[:, b])
        curve_min, slope_min, _ = fit.parts(at, y)
        cross = (y * turned).sum(1)
        free = curve * curve_min - cross * cross
        sound = (free > 1e-6 * curve * curve_min) & (curve > 0)
        step = torch.where(sound, _ratio(cross * slope_min - curve_min * slope, free, sound), alone)
        step_min = _ratio(cross * slope - curve * slope_min, free, sound)
        new, new_min = (d + step).half().float(), (dmin + step_min).half().float()
        step, step_min = new - d, new_min - dmin
        gain = 2 * (slope * step + slope_min * step_min) + curve * step * step
        gain += 2 * cross * step * step_min + curve_min * step_min * step_min
        keep = (gain < 0) & new.isfinite() & new_min.isfinite()
        zero = torch.zeros_like(step)
        fit.move(
            at, torch.where(keep, step, zero)[:, None] * z + torch.where(keep, step_min, zero)[:, None] * y
        )
        scales.d[:, b], scales.dmin[:, b] = torch.where(keep, new, d), torch.where(keep, new_min, dmin)


def _refit_table(state: State, fit: _Fit, scales: Scales) -> None:
    """The position of each group's scale in the table of legal ones."""
    assert scales.table is not None
    assert scales.scales is not None
    table = torch.tensor(scales.table, device=state.values.device)
    group, n_groups = state.group, scales.scales.shape[2]
    for k in range(state.values.shape[1] // group):
        block, j = divmod(k, n_groups)
        at = slice(k * group, (k + 1) * group)
        z = state.values[:, at]
        curve, slope, _ = fit.parts(at, z)
        old = scales.scales[:, block, j]
        before = table[old.long()]
        above = torch.searchsorted(table, (before + _ratio(-slope, curve, curve > 0)).contiguous())
        best, new = torch.zeros_like(curve), old
        for position in (above - 1, above):
            one = position.clamp(0, len(table) - 1)
            step = table[one] - before
            gain = 2 * slope * step + curve * step * step
            better = gain < best
            best, new = torch.where(better, gain, best), torch.where(better, one.float(), new)
        scales.scales[:, block, j] = new
        fit.move(at, (table[new.long()] - before)[:, None] * z)
