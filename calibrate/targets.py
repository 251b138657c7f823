"""What a matrix should be, given that what enters it has changed: the original's output from the changed input.

With x and y the inputs of the original and of the changed stream, W(x − y) is what the matrix cannot give any more.
What of it is linear in y goes into the matrix: W + a·W Σ(x−y)yᵀ (Σyyᵀ)⁻¹ (QEP, arXiv 2504.09629). A matrix that writes
the residual stream can take up what the streams differ by there: + b·Σ r yᵀ (Σyyᵀ)⁻¹ (LoaQ, arXiv 2509.06297).
Of experts each is asked for all of it, their products being added up with weights of sum one.
a and b shrink the corrections, which are fitted to few tokens: the values that serve the held-back chunks best.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantmill.calibrate.gram import Metric
from quantmill.calibrate.moments import FITTED, HELD, Moments

TOKENS_PER_COLUMN = 4  # an expert that saw fewer keeps its weights for a target


@dataclass(frozen=True)
class Shares:
    """How much of each correction a target took: a and b of the module's docstring, 0 to 1."""

    input: float = 0.0
    residual: float = 0.0


NO_SHARES = Shares()


def target_of(
    weights: torch.Tensor, moments: Moments, metric: Metric, strength: float, alpha: float | None
) -> tuple[torch.Tensor, Shares]:
    """weights f32 [n_mat, n_rows, n_cols] → the target, the same shape, and the shares taken.

    metric: of the fitted part, as it is damped; strength: tokens of the layer added to each expert's (gram.shrunk).
    alpha: both shares; None: chosen on the held-back part.
    """
    if moments.cross is None or alpha == 0:
        return weights, NO_SHARES
    n_mat = len(weights)
    counts = moments.counts[FITTED]
    scale = 1 / (counts + (strength if n_mat > 1 else 0)).clamp_min(1).view(-1, 1, 1)
    enough = (counts >= TOKENS_PER_COLUMN * weights.shape[2]).view(-1, 1, 1)
    if n_mat == 1:
        enough = counts.view(-1, 1, 1) > 0
    corrections = [torch.where(enough, (weights @ moments.cross[FITTED]) * scale, 0.0)]
    if moments.residual is not None and moments.residual.shape[2] == weights.shape[1]:
        corrections.append(torch.where(enough, moments.residual[FITTED] * scale, 0.0))
    factor = _factor(metric.moments)
    corrections = [_divided(correction, factor) for correction in corrections]
    if alpha is None:
        shares = _best_shares(weights, moments, corrections)
    else:
        shares = [alpha] * len(corrections)
    target = weights
    for share, correction in zip(shares, corrections, strict=True):
        target = target + share * correction
    return target, Shares(*shares)


def _factor(moments: torch.Tensor) -> torch.Tensor:
    work = moments.cpu() if moments.device.type == "mps" else moments
    return torch.linalg.cholesky(work.double())


def _divided(correction: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """correction (Σyyᵀ)⁻¹."""
    right = correction.to(factor.device).double().transpose(1, 2)
    return torch.cholesky_solve(right, factor).transpose(1, 2).float().to(correction.device)


def _best_shares(weights: torch.Tensor, moments: Moments, corrections: list[torch.Tensor]) -> list[float]:
    """Least squares over the held-back tokens; a share outside 0 to 1 goes to the nearer end, the other follows."""
    assert moments.cross is not None
    lost = weights @ moments.cross[HELD]
    if len(corrections) > 1:
        assert moments.residual is not None
        lost = lost + moments.residual[HELD]
    turned = [correction @ moments.square[HELD] for correction in corrections]

    def inner(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one * other).sum(dtype=torch.float64))

    gain = [inner(lost, correction) for correction in corrections]
    curve = [[inner(one, other) for other in corrections] for one in turned]
    if len(corrections) == 1:
        return [_share(gain[0], curve[0][0])]
    free = curve[0][0] * curve[1][1] - curve[0][1] * curve[1][0]
    if free <= 1e-9 * curve[0][0] * curve[1][1]:
        return [_share(gain[0], curve[0][0]), 0.0]
    best = [
        (curve[1][1] * gain[0] - curve[0][1] * gain[1]) / free,
        (curve[0][0] * gain[1] - curve[1][0] * gain[0]) / free,
    ]
    for i in (0, 1):
        if not 0 <= best[i] <= 1:
            best[i] = min(max(best[i], 0.0), 1.0)
            best[1 - i] = _share(gain[1 - i] - best[i] * curve[0][1], curve[1 - i][1 - i])
    return best


def _share(gain: float, curve: float) -> float:
    return min(max(gain / curve, 0.0), 1.0) if curve > 0 else 0.0
