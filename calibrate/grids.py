"""Codebook entries and signs under given scales: eight columns at a time with feedback, then descent.

A unit is eight columns. Its metric is what an error there costs when all columns after it may still answer: the Schur
block of H, which the feedback factor holds. Entries are compared by that metric, all of them (block LDLQ,
arXiv 2402.04396). Weights stand column-major, [n_mat, n_cols, n_rows] f32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantmill.calibrate.columns import COLUMNS
from quantmill.calibrate.gram import Metric, feedback_factor
from quantmill.calibrate.refit import Scales, refit
from quantmill.calibrate.rounding import State, reciprocal
from quantmill.qkernels.lattices import GridChoice, GridLattice
from quantmill.qkernels.lattices.grid import SHIFT

UNIT = 8


class _Book:
    """The entries of a type on a device, and what their comparison needs."""

    def __init__(self, lattice: GridLattice, device: torch.device) -> None:
        self.lattice, self.dim = lattice, lattice.dim
        self.grid = lattice.grid(device)
        self.first, self.second = torch.triu_indices(self.dim, self.dim, device=device)
        twice = torch.where(self.first == self.second, 1.0, 2.0)
        # products of an entry's values, pair by pair
        self.pairs = (self.grid[:, self.first] * self.grid[:, self.second] * twice).T.contiguous()

    def signed(
        self, wanted: torch.Tensor, weights: torch.Tensor, negative: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """wanted [n_mat, dim, n_rows] in units of the scale, weights [n_mat, dim, dim], negative as wanted → the best
        entry [n_mat, n_rows] and its values [n_mat, dim, n_rows]."""
        sign = torch.where(negative, -1.0, 1.0)
        linear = (weights @ wanted) * sign
        square = weights[:, self.first, self.second, None] * sign[:, self.first] * sign[:, self.second]
        cost = square.transpose(1, 2) @ self.pairs
        cost.baddbmm_(linear.transpose(1, 2), self.grid.T.expand(len(wanted), -1, -1), alpha=-2)
        entry = cost.argmin(-1)
        return entry, self.grid[entry].transpose(1, 2) * sign

    def shifted(
        self, wanted: torch.Tensor, weights: torch.Tensor, down: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same for entries that are shifted; down [n_mat, n_rows]: how, None: as is best. Gives entry, down and
        values."""
        linear = (weights @ wanted).transpose(1, 2)
        costs = []
        for shift in (SHIFT, -SHIFT):
            moved = self.grid + shift
            own = ((moved @ weights) * moved).sum(-1)
            costs.append((own[:, None] - 2 * (linear @ moved.T)).min(-1))
        (up_cost, up), (down_cost, below) = costs
        if down is None:
            down = down_cost < up_cost
        entry = torch.where(down, below, up)
        values = self.grid[entry] + torch.where(down, -SHIFT, SHIFT)[..., None]
        return entry, down, values.transpose(1, 2)


@dataclass
class _Unit:
    """What was chosen for eight columns: values [n_mat, 8, n_rows], entries [n_mat, 8 / dim, n_rows], down or None."""

    values: torch.Tensor
    entries: torch.Tensor
    down: torch.Tensor | None


def _signs(wanted: torch.Tensor, weights: torch.Tensor, even: bool) -> torch.Tensor:
    """Those of the wanted weights; where an even number must be negative, the cheapest to be wrong is turned."""
    negative = wanted < 0
    if not even:
        return negative
    odd = negative.sum(1) % 2 == 1
    cheapest = (wanted.square() * weights.diagonal(dim1=-2, dim2=-1)[..., None]).argmin(1, keepdim=True)
    turned = negative.scatter(1, cheapest, ~negative.gather(1, cheapest))
    return torch.where(odd[:, None], turned, negative)


class _Factors:
    """Of every unit: the triangular factor [n_mat, n_units, 8, 8], and for each part of an entry's size the metric
    and what turns its error into feedback."""

    def __init__(self, blocks: torch.Tensor, dim: int) -> None:
        self.blocks, self.dim = blocks, dim
        self.whole = torch.linalg.inv(blocks.transpose(-1, -2).double() @ blocks.double()).float()
        self.metrics, self.turns = [], []
        for at in range(0, UNIT, dim):
            part = blocks[..., at : at + dim, at : at + dim].double()
            inverse = torch.linalg.inv(part)
            self.metrics.append((inverse @ inverse.transpose(-1, -2)).float())
            self.turns.append(inverse.transpose(-1, -2).float())


def _round_unit(
    book: _Book, factors: _Factors, unit: int, wanted: torch.Tensor, down: torch.Tensor | None
) -> _Unit:
    """wanted [n_mat, 8, n_rows] in units of the scale → what is nearest in the unit's metric, part by part."""
    dim, left = book.dim, wanted.clone()
    values, entries = torch.empty_like(wanted), []
    negative = None
    if not book.lattice.shared:
        negative = _signs(wanted, factors.whole[:, unit], book.lattice.even)
    for part, begin in enumerate(range(0, UNIT, dim)):
        at = slice(begin, begin + dim)
        weights = factors.metrics[part][:, unit]
        if negative is None:
            entry, down, chosen = book.shifted(left[:, at], weights, down)
        else:
            signs = negative[:, at] if book.lattice.even else left[:, at] < 0
            entry, chosen = book.signed(left[:, at], weights, signs)
        values[:, at] = chosen
        entries.append(entry)
        if begin + dim < UNIT:
            error = factors.turns[part][:, unit] @ (left[:, at] - chosen)
            factor = factors.blocks[:, unit, at, begin + dim :]
            left[:, begin + dim :] -= factor.transpose(1, 2) @ error
    return _Unit(values, torch.stack(entries, 1), down)


@dataclass
class _GridState(State):
    """entries: [n_mat, n_cols / dim, n_rows]; down: [n_mat, n_cols / 8, n_rows] or None."""

    entries: torch.Tensor = None  # type: ignore[assignment]
    down: torch.Tensor | None = None

    def put(self, matrix: torch.Tensor, unit: torch.Tensor, chosen: _Unit) -> None:
        """unit: [n_mat], which unit of each matrix was chosen for."""
        per_unit = chosen.entries.shape[1]
        columns = unit[:, None] * UNIT + torch.arange(UNIT, device=unit.device)
        places = unit[:, None] * per_unit + torch.arange(per_unit, device=unit.device)
        self.values[matrix[:, None], columns] = chosen.values
        self.entries[matrix[:, None], places] = chosen.entries
        if self.down is not None and chosen.down is not None:
            self.down[matrix, unit] = chosen.down


class UnitFeedback:
    """What feedback needs of a metric, whatever the rows: the costliest unit first.

    units [n_mat, n_units]: their order; order [n_mat, n_cols]: of the columns; factor: see Metric.feedback; blocks
    and turn [n_mat, n_units, 8, 8]: the factor's own block of each unit, and what turns its error into feedback.
    """

    def __init__(self, metric: Metric) -> None:
        moments = metric.moments
        n_mat, n_cols = moments.shape[:2]
        cost = metric.diagonal.reshape(n_mat, -1, UNIT).sum(-1)
        self.units = torch.argsort(cost, dim=-1, descending=True, stable=True)
        self.order = (self.units[..., None] * UNIT + torch.arange(UNIT, device=moments.device)).flatten(1)
        self.factor = feedback_factor(moments, self.order)
        own = self.factor.view(n_mat, n_cols // UNIT, UNIT, n_cols // UNIT, UNIT).diagonal(dim1=1, dim2=3)
        self.blocks = own.permute(0, 3, 1, 2).contiguous()
        self.turn = torch.linalg.inv(self.blocks.double()).transpose(-1, -2).float()


def _feed_back(state: _GridState, feedback: UnitFeedback, book: _Book) -> None:
    n_mat, n_cols, n_rows = state.target.shape
    device = state.target.device
    units, order, factor, turn = feedback.units, feedback.order, feedback.factor, feedback.turn
    factors = _Factors(feedback.blocks, book.dim)
    left = state.target.gather(1, order[:, :, None].expand(-1, -1, n_rows))
    matrix = torch.arange(n_mat, device=device)
    for begin in range(0, n_cols, COLUMNS):
        end = min(begin + COLUMNS, n_cols)
        errors = left.new_empty(n_mat, end - begin, n_rows)
        for i in range(begin, end, UNIT):
            number = i // UNIT
            unit, at = units[:, number], slice(i, i + UNIT)
            scale = state.scale[matrix, unit * UNIT // state.group][:, None]
            kept = None if state.down is None or book.lattice.shared == 1 else state.down[matrix, unit]
            chosen = _round_unit(book, factors, number, left[:, at] * reciprocal(scale), kept)
            state.put(matrix, unit, chosen)
            error = turn[:, number] @ (left[:, at] - chosen.values * scale)
            errors[:, i - begin : i - begin + UNIT] = error
            if i + UNIT < end:
                left[:, i + UNIT : end].baddbmm_(
                    factor[:, at, i + UNIT : end].transpose(1, 2), error, alpha=-1
                )
        if end < n_cols:
            left[:, end:].baddbmm_(factor[:, begin:end, end:].transpose(1, 2), errors, alpha=-1)


def _descend(state: _GridState, metric: Metric, book: _Book, sweeps: int) -> None:
    """Each unit in turn becomes what is best while all others stay, where that is better than what it is."""
    n_mat, n_cols, _ = state.target.shape
    moments = metric.moments
    own = moments.view(n_mat, n_cols // UNIT, UNIT, n_cols // UNIT, UNIT).diagonal(dim1=1, dim2=3)
    own = own.permute(0, 3, 1, 2).contiguous()
    inverse = torch.linalg.inv(own.double())
    factors = _Factors(torch.linalg.cholesky(inverse, upper=True).float(), book.dim)
    matrix = torch.arange(n_mat, device=moments.device)
    slope = moments @ (state.weights() - state.target)
    for _ in range(sweeps):
        changed = False
        for number in range(n_cols // UNIT):
            at = slice(number * UNIT, (number + 1) * UNIT)
            unit = torch.full_like(matrix, number)
            scale = state.scale[:, number * UNIT // state.group][:, None]
            step = inverse[:, number].float() @ slope[:, at]
            wanted = state.values[:, at] - step * reciprocal(scale)
            kept = None if state.down is None or book.lattice.shared == 1 else state.down[:, number]
            chosen = _round_unit(book, factors, number, wanted, kept)
            move = (chosen.values - state.values[:, at]) * scale
            gain = (move * (2 * slope[:, at] + own[:, number] @ move)).sum(1)
            better = (gain < 0)[:, None]
            if not bool(better.any()):
                continue
            changed = True
            entries = state.entries.view(n_mat, -1, UNIT // book.dim, move.shape[-1])[:, number]
            down = chosen.down
            if down is not None and state.down is not None:
                down = torch.where(better[:, 0], down, state.down[:, number])
            values = torch.where(better, chosen.values, state.values[:, at])
            state.put(matrix, unit, _Unit(values, torch.where(better, chosen.entries, entries), down))
            slope.baddbmm_(moments[:, :, at], torch.where(better, move, torch.zeros_like(move)))
        if not changed:
            return


def improved_grid(
    target: torch.Tensor,
    blocks: torch.Tensor,
    metric: Metric,
    feedback: UnitFeedback,
    lattice: GridLattice,
    sweeps: int,
    rounds: int,
) -> torch.Tensor:
    """target f32 [n_mat, n_rows, n_cols], llama.cpp's blocks for it u8 [n_mat, n_rows, row_bytes] → better blocks."""
    n_mat, n_rows, _ = target.shape
    book = _Book(lattice, target.device)
    start = lattice.unpack(blocks.flatten(0, 1))
    scales = Scales(lattice, start, n_mat)

    def turned(part: torch.Tensor) -> torch.Tensor:
        return part.view(n_mat, n_rows, -1).transpose(1, 2).contiguous()

    down = None if start.down is None else turned(start.down)
    state = _GridState(
        turned(target),
        turned(lattice.values(start)),
        *scales.steps(),
        lattice.group,
        turned(start.entries.long()),
        down,
    )
    _feed_back(state, feedback, book)
    _descend(state, metric, book, sweeps)
    for _ in range(rounds):
        refit(state, metric, scales)
        _descend(state, metric, book, sweeps)

    def back(part: torch.Tensor) -> torch.Tensor:
        return part.transpose(1, 2).flatten(0, 1).contiguous()

    d, _, whole, _ = scales.rows()
    assert d is not None
    assert whole is not None
    negative = back(state.values < 0) if start.negative is not None else None
    down = None if state.down is None else back(state.down)
    choice = GridChoice(back(state.entries).to(torch.int16), negative, down, whole, d)
    return lattice.pack(choice).view(n_mat, n_rows, -1)
