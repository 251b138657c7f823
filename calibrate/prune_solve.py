"""Least squares for matrices that shall make good what their product is off by: ΔW with Σ ω |r − ΔW y|² least.

A ridge keeps the change small where the text says little. Its strength is chosen on rows that are held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Times the mean of the diagonal of the second moments; tried in turn until held-back rows lose by a stronger one.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_LEAST_GAIN = 0.99  # of the error of held-back rows: with less nothing is changed
_ROUNDS = 12  # of conjugate gradients, for experts whose rows overlap

ShareOut = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Rows:
    """What enters a matrix and what is missing behind it, of one batch; both times the root of the rows' weight ω.

    inputs: [n, n_cols] f32; missing: [n, n_out] f32.
    """

    inputs: torch.Tensor
    missing: torch.Tensor


@dataclass(frozen=True)
class Change:
    """delta: [n_mat, n_out, n_cols] f32, None where none helps. before, after: Σ ω |r|² of the rows held back."""

    delta: torch.Tensor | None
    before: float
    after: float


class Sums:
    """Σ yyᵀ [n_cols, n_cols], Σ ryᵀ [n_out, n_cols] and Σ |r|² over rows."""

    def __init__(self, parts: Sequence[Rows], share_out: ShareOut) -> None:
        def one(rows: Rows) -> tuple[torch.Tensor, torch.Tensor, float]:
            y, r = rows.inputs, rows.missing
            return y.T @ y, r.T @ y, float(r.square().sum(dtype=torch.float64))

        found = share_out(one, parts)
        self.square = torch.stack([square for square, *_ in found]).sum(0)
        self.cross = torch.stack([cross for _, cross, _ in found]).sum(0)
        self.power = sum(power for *_, power in found)

    def error(self, delta: torch.Tensor) -> float:
        """Σ |r − ΔW y|²."""
        gained = 2 * (delta * self.cross).sum(dtype=torch.float64)
        return self.power - float(gained - ((delta @ self.square) * delta).sum(dtype=torch.float64))


def solve_matrix(fitted: Sequence[Rows], held: Sequence[Rows], share_out: ShareOut) -> Change:
    """One matrix that all rows go through."""
    sums, judge = Sums(fitted, share_out), Sums(held, share_out)
    mean = float(sums.square.diagonal().mean())

    def solved(ridge: float) -> tuple[torch.Tensor, float]:
        added = torch.eye(len(sums.square), dtype=torch.float64, device=sums.square.device) * (ridge * mean)
        factor = torch.linalg.cholesky(sums.square.double() + added)
        delta = torch.cholesky_solve(sums.cross.double().T, factor).T.float()
        return delta[None], judge.error(delta)

    return _best(solved, judge.power) if mean > 0 else Change(None, judge.power, judge.power)


def _best(solved: Callable[[float], tuple[torch.Tensor, float]], before: float) -> Change:
    """The change by the ridge that serves held-back rows best; none where that gains too little."""
    found: torch.Tensor | None = None
    least = float("inf")
    for ridge in RIDGES:
        delta, error = solved(ridge)
        if error >= least:
            break
        found, least = delta, error
    return Change(found, before, least) if least < _LEAST_GAIN * before else Change(None, before, before)


@dataclass(frozen=True)
class Routed:
    """What enters the experts of a stack. inputs: of each expert [n, n_cols] f32, times its routing weight and √ω;
    tokens: whose rows those are [n] i64; missing: [n_tokens, n_out] f32, times √ω."""

    inputs: tuple[torch.Tensor, ...]
    tokens: tuple[torch.Tensor, ...]
    missing: torch.Tensor

    def products(self, delta: torch.Tensor, share_out: ShareOut) -> torch.Tensor:
        """Σ over a token's experts of its input times delta [n_mat, n_out, n_cols]: [n_tokens, n_out]."""
        out = torch.zeros_like(self.missing)
        made = share_out(lambda e: self.inputs[e] @ delta[e].T, range(len(self.inputs)))
        for tokens, part in zip(self.tokens, made, strict=True):
            out.index_add_(0, tokens, part)
        return out

    def back(self, rows: torch.Tensor, share_out: ShareOut) -> torch.Tensor:
        """rows [n_tokens, n_out] → what they say of each expert's matrix, [n_mat, n_out, n_cols]."""
        found = share_out(lambda e: rows[self.tokens[e]].T @ self.inputs[e], range(len(self.inputs)))
        return torch.stack(found)

    def error(self, delta: torch.Tensor, share_out: ShareOut) -> float:
        return float((self.missing - self.products(delta, share_out)).square().sum(dtype=torch.float64))


def solve_experts(fitted: Routed, held: Routed, share_out: ShareOut) -> Change:
    """All experts of a stack together, by conjugate gradients: a token's loss is shared by the experts it goes to.

    An expert that few tokens come to stays near what it was.
    """
    squares = torch.stack(share_out(lambda x: x.T @ x, fitted.inputs))
    before = float(held.missing.square().sum(dtype=torch.float64))
    mean = float(squares.diagonal(dim1=-2, dim2=-1).mean())
    wanted = fitted.back(fitted.missing, share_out)

    def solved(ridge: float) -> tuple[torch.Tensor, float]:
        delta = _conjugate(fitted, squares, wanted, ridge * mean, share_out)
        return delta, held.error(delta, share_out)

    return _best(solved, before) if mean > 0 else Change(None, before, before)


def _conjugate(
    rows: Routed, squares: torch.Tensor, wanted: torch.Tensor, added: float, share_out: ShareOut
) -> torch.Tensor:
    """(A + added I) delta = wanted, with each expert's own moments as preconditioner."""
    eye = torch.eye(squares.shape[-1], device=squares.device)
    factors = share_out(lambda square: torch.linalg.cholesky(square + added * eye), list(squares))

    def conditioned(residual: torch.Tensor) -> torch.Tensor:
        solved = share_out(lambda e: torch.cholesky_solve(residual[e].T, factors[e]).T, range(len(factors)))
        return torch.stack(solved)

    delta = torch.zeros_like(wanted)
    residual = wanted.clone()
    z = conditioned(residual)
    direction, size = z, (residual * z).sum(dtype=torch.float64)
    for _ in range(_ROUNDS):
        if not float(size) > 0:
            break
        image = rows.back(rows.products(direction, share_out), share_out) + added * direction
        step = float(size / (direction * image).sum(dtype=torch.float64))
        delta += step * direction
        residual -= step * image
        z = conditioned(residual)
        before, size = size, (residual * z).sum(dtype=torch.float64)
        direction = z + float(size / before) * direction
    return delta
