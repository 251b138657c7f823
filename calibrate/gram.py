"""Second moments of what enters a matrix, and the metric of errors that they make."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True, eq=False)
class Metric:
    """What an error of a weight costs: tr(E H Eᵀ), H [n_mat, n_cols, n_cols] f32, positive definite."""

    moments: torch.Tensor

    @property
    def diagonal(self) -> torch.Tensor:
        """[n_mat, n_cols] f32."""
        return self.moments.diagonal(dim1=-2, dim2=-1)

    @cached_property
    def order(self) -> torch.Tensor:
        """[n_mat, n_cols] i64: columns in the order in which codes are fixed, the costliest first (GPTQ's act-order).

        Scales are fixed beforehand, so that any order is legal in every format.
        """
        return torch.argsort(self.diagonal, dim=-1, descending=True, stable=True)

    @cached_property
    def feedback(self) -> torch.Tensor:
        """[n_mat, n_cols, n_cols] f32, upper triangular: U with UᵀU = H⁻¹ in the order of `order`.

        Row i says how the error of column i is spread over the later ones (GPTQ, arXiv 2210.17323).
        """
        return feedback_factor(self.moments, self.order)

    def part(self, matrices: slice) -> Metric:
        return self if matrices == slice(0, len(self.moments)) else Metric(self.moments[matrices])

    def between(self, factors: torch.Tensor) -> Metric:
        """Of a matrix whose columns are multiplied with factors [n_cols] f32, and what enters divided by them."""
        return Metric(self.moments / factors / factors[:, None])

    def error(self, difference: torch.Tensor) -> torch.Tensor:
        """difference [n_mat, n_rows, n_cols] f32 → tr(E H Eᵀ) [n_mat] f64."""
        return ((difference @ self.moments) * difference).sum((-2, -1), dtype=torch.float64)


def feedback_factor(moments: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """See Metric.feedback. In float64, on the CPU where the device has none (MPS)."""
    work = moments.cpu() if moments.device.type == "mps" else moments
    at = order.to(work.device)
    ordered = torch.stack([matrix[o][:, o] for matrix, o in zip(work, at, strict=True)]).double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    return torch.linalg.cholesky(inverse, upper=True).float().to(moments.device)


def metric_of(sums: torch.Tensor, damping: float) -> Metric:
    """sums [n_mat, n_cols, n_cols]: ΣxxᵀT of each matrix's tokens, or its mean → a metric that is positive definite.

    `damping` times the mean of the live diagonal is added to the diagonal: moments of few tokens are singular. A
    column that never lived costs as much as the mean one, so that its weights keep their plain codes.
    """
    sums = (sums + sums.transpose(-1, -2)) / 2
    diagonal = sums.diagonal(dim1=-2, dim2=-1)
    live = diagonal > 0
    mean = diagonal.sum(-1, keepdim=True) / live.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    added = torch.where(live, damping * mean, mean)
    return Metric(sums + torch.diag_embed(added))


def shrunk(sums: torch.Tensor, counts: torch.Tensor, strength: float) -> torch.Tensor:
    """Moments of experts drawn to their layer's: sums [n_mat, n, n], counts [n_mat] i64 → means [n_mat, n, n].

    An expert with n tokens keeps n / (n + strength) of its own; one that saw nothing gets the layer's.
    """
    if len(sums) == 1:
        return sums / counts.clamp_min(1).view(-1, 1, 1)
    layer = sums.sum(0) / counts.sum().clamp_min(1)
    return (sums + strength * layer) / (counts + strength).view(-1, 1, 1).to(sums.dtype)
