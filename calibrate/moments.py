"""Sums over the two streams of what enters one place of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantmill.models.summing import Seen

FITTED, HELD = 0, 1


@dataclass(frozen=True)
class MomentsOf:
    """Makes Moments, for [n_mat, n_cols] of a place. every: the last of so many batches is held back.

    part: of these columns only, and without the residual.
    """

    n_mat: int
    n_cols: int
    every: int
    two_streams: bool
    device: torch.device
    part: slice | None = None

    def __call__(self) -> Moments:
        return Moments(self)


def is_held(batch: int, every: int) -> bool:
    return batch % every == every - 1


class Moments:
    """Second moments, of the chunks that codes are fitted to and of those held back to judge: first index 0 and 1.

    With x what the original has and y what the changed stream has, rows of the same tokens, and r what the original
    carries past the matrix less what the changed stream does:
    square:   [2, n_mat, n_cols, n_cols] f32, Σ yyᵀ
    cross:    the same, Σ (x − y)yᵀ; None when there is one stream
    residual: [2, n_mat, n_out, n_cols] f32, Σ ryᵀ; None where the product is not simply added to the stream
    counts:   [2, n_mat] i64, tokens
    """

    def __init__(self, of: MomentsOf) -> None:
        self._of = of
        n_cols = of.n_cols if of.part is None else of.part.stop - of.part.start
        self.square = torch.zeros(2, of.n_mat, n_cols, n_cols, device=of.device)
        self.cross = torch.zeros_like(self.square) if of.two_streams else None
        self.residual: torch.Tensor | None = None
        self.counts = torch.zeros(2, of.n_mat, dtype=torch.int64, device=of.device)

    def add(self, batch: int, seen: Seen) -> None:
        part, x, y = int(is_held(batch, self._of.every)), seen.original, seen.changed
        columns = self._of.part
        if columns is not None:
            x, y = x[..., columns], y[..., columns]
        products = [(self.square, y)]
        if self.cross is not None:
            products.append((self.cross, x - y))
        if seen.residual is not None and columns is None:
            if self.residual is None:
                n_mat = self.square.shape[1]
                self.residual = y.new_zeros(2, n_mat, seen.residual.shape[-1], y.shape[-1])
            products.append((self.residual, seen.residual))
        for sums, left in products:
            if len(seen.experts) == 1:
                sums[part, seen.experts[0]].addmm_(left[0].T, y[0])
            else:
                experts = torch.tensor(seen.experts, device=y.device)
                sums[part].index_add_(0, experts, left.mT @ y)
        for expert, count in zip(seen.experts, seen.counts, strict=True):
            self.counts[part, expert] += count

    def join(self, other: Moments) -> None:
        self.square += other.square
        self.counts += other.counts
        if self.cross is not None and other.cross is not None:
            self.cross += other.cross
        if other.residual is not None:
            self.residual = other.residual if self.residual is None else self.residual + other.residual

    def columns(self, index: torch.Tensor) -> Moments:
        """Of a matrix that takes these columns of the input, in this order."""
        chosen = object.__new__(Moments)
        chosen.square = self.square[..., index, :][..., index]
        chosen.cross = None if self.cross is None else self.cross[..., index, :][..., index]
        chosen.residual = None if self.residual is None else self.residual[..., index]
        chosen.counts = self.counts
        return chosen

    def error(self, part: int, difference: torch.Tensor) -> float:
        """difference [n_mat, n_rows, n_cols] f32 → Σ |E y|² over the tokens of a part."""
        return float(((difference @ self.square[part]) * difference).sum(dtype=torch.float64))
