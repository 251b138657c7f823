"""The factor of a whole matrix in NVFP4: what its weights are divided by before they become blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Six, the largest code, times the largest scale of a block is 2688. Between a matrix's largest weight and 2^11 three
# binary digits stay free: targets and columns that are balanced with a norm can be larger than the weights.
_LARGEST = 11 - 3


def tensor_scale(weights: torch.Tensor) -> torch.Tensor:
    """weights f32 [n_mat, n_rows, n_cols] → f32 [n_mat] on the same device: powers of two, so that what is divided by
    them loses nothing; 1 for a matrix of zeros."""
    largest = weights.abs().amax((1, 2)).cpu()
    _, exponent = torch.frexp(largest)  # largest < 2^exponent
    scales = torch.ldexp(torch.ones_like(largest), exponent - _LARGEST)
    return torch.where(largest > 0, scales, 1.0).to(weights.device)


def divided(rows: torch.Tensor, scales: Sequence[torch.Tensor | None], sizes: Sequence[int]) -> torch.Tensor:
    """rows f32 [n_mat, n_rows, n_cols] of several tensors, `sizes` of each, by the tensors' scales [n_mat]; None: 1."""
    if all(scale is None for scale in scales):
        return rows
    one = torch.ones_like(rows[:, 0, 0])
    of_rows = [
        (one if scale is None else scale)[:, None].expand(-1, size)
        for scale, size in zip(scales, sizes, strict=True)
    ]
    return rows / torch.cat(of_rows, 1)[..., None]
