"""Whether what was made of a block of columns is what torch's operations make of it: in float64 on the CPU.

Two sequences that round otherwise part company at the first near tie, and each goes on rightly from its own choice. So
a column is compared given what was made of the columns before it: its level must be the one next to what torch's
operations want there, but for near ties, and what follows from it must be theirs.

How far apart sound results may be is known: each number is a sum of at most 64 products of float32 and a few more
operations, each of which rounds by at most 2^-24, so that it is off by less than (64 + 8) · 2^-24 times the sum of the
magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), whatever the order and with or without fused
multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from quantmill.calibrate.columns import COLUMNS, Descending, Feeding, Levels
from quantmill.qkernels.samples import spread

_ROUNDING = (COLUMNS + 8) * 2.0**-24
_TINY = 2.0**-120  # numbers near the smallest have fewer digits
_MATRICES, _ROWS = 8, 4096  # that are compared, the first and the last among them

Parts = Sequence[torch.Tensor]


def _picked(n_mat: int, n_rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Some rows of some matrices of [n_mat, …, n_rows], f64 on the CPU."""
    matrices, rows = (torch.from_numpy(spread(n, most)) for n, most in ((n_mat, _MATRICES), (n_rows, _ROWS)))

    def pick(part: torch.Tensor) -> torch.Tensor:
        chosen = part[matrices.to(part.device)]
        return chosen[..., rows.to(part.device)].cpu().double()

    return pick


def _matrices(n_mat: int, part: torch.Tensor) -> torch.Tensor:
    return part[torch.from_numpy(spread(n_mat, _MATRICES)).to(part.device)].cpu().double()


def _off(found: torch.Tensor, expected: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Where numbers are farther apart than rounding explains."""
    return ~((found - expected).abs() <= _ROUNDING * size + _TINY) & expected.isfinite()


def _not_nearest(
    chosen: torch.Tensor, wanted: torch.Tensor, size: torch.Tensor, levels: Levels
) -> torch.Tensor:
    """Where a level is not legal, or not next to the wanted one and no near tie. size: magnitudes behind `wanted`."""
    legal = torch.tensor(levels.legal, dtype=torch.float64)
    end = torch.full((1,), torch.inf, dtype=torch.float64)
    edges = torch.cat([-end, (legal[1:] + legal[:-1]) / 2, end])
    at = torch.searchsorted(legal, chosen.contiguous()).clamp(max=len(legal) - 1)
    room = _ROUNDING * (size + legal.abs().max()) + _TINY
    next_to = (wanted >= edges[at] - room) & (wanted <= edges[at + 1] + room)
    return (legal[at] != chosen) | (~next_to & wanted.isfinite() & room.isfinite())


def wrong_feeding(
    work: Feeding, levels: Levels, begin: int, end: int, before: Parts, errors: torch.Tensor
) -> tuple[int, int]:
    """before: what work.changed(…) was, errors: what was made → how many of how many weights are wrong."""
    n_mat, _, n_rows = work.left.shape
    pick, at = _picked(n_mat, n_rows), slice(begin, end)
    left, error, chosen = pick(before[0]), pick(errors), pick(work.chosen[:, at])
    scale, inverse = pick(work.scale[:, at]), pick(work.inverse[:, at])
    low = torch.zeros_like(left) if work.low is None else pick(work.low[:, at])
    owed = _matrices(n_mat, work.factor[:, at, at]).triu(1).transpose(1, 2)
    weight = _matrices(n_mat, work.weight_of[:, at])[..., None]
    x, size = left - owed @ error, left.abs() + owed.abs() @ error.abs() + low.abs()
    wrong = _not_nearest(chosen, (x + low) * inverse, size * inverse.abs(), levels)
    made = chosen * scale
    wrong |= _off(error, (x - made + low) * weight, (size + made.abs()) * weight.abs())
    return int(wrong.sum()), wrong.numel()


def wrong_descent(
    work: Descending, levels: Levels, begin: int, end: int, before: Parts, moved: torch.Tensor
) -> tuple[int, int]:
    """As wrong_feeding; moved: what was made."""
    n_mat, _, n_rows = work.target.shape
    pick, at = _picked(n_mat, n_rows), slice(begin, end)
    groups = torch.arange(begin, end, device=work.scale.device) // work.group
    scale, inverse = pick(work.scale[:, groups]), pick(work.inverse[:, groups])
    target, values = pick(work.target[:, at]), pick(work.values[:, at])
    low = torch.zeros_like(target) if work.low is None else pick(work.low[:, groups])
    old_values, old_error, old_slope = map(pick, before)
    moments = _matrices(n_mat, work.moments[:, at, at])
    weight = _matrices(n_mat, work.weight_of[:, at])[..., None]
    step = (values - old_values) * scale
    earlier = moments.tril(-1)
    seen, size = old_slope + earlier @ step, old_slope.abs() + earlier.abs() @ step.abs()
    wanted = (old_error - seen * weight + target + low) * inverse
    size = (old_error.abs() + size * weight.abs() + target.abs() + low.abs()) * inverse.abs()
    wrong = _not_nearest(values, wanted, size, levels)
    around = old_error.abs() + step.abs()
    wrong |= _off(pick(work.error[:, at]), old_error + step, around)
    wrong |= _off(pick(moved), step, around)
    slope, size = old_slope + moments @ step, old_slope.abs() + moments.abs() @ step.abs()
    wrong |= _off(pick(work.slope[:, at]), slope, size)
    return int(wrong.sum()), wrong.numel()
