"""Sums over the columns of a matrix equal numpy's in float64."""

import numpy as np
import pytest
import torch

from quantmill.qkernels.column_sums import of_columns

TORCH = ((7, 20), "torch's operations: columns that are no whole runs")
SHAPES = [(0, 64), (1, 16), (3, 64), (517, 576), (100, 80), (31, 1536), TORCH[0]]


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_float64(shape):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * np.float32(1e3)
    squares, sums = of_columns(torch.from_numpy(x), with_sums=True)
    assert of_columns(torch.from_numpy(x))[1] is None
    assert torch.equal(of_columns(torch.from_numpy(x))[0], squares)
    wide = x.astype(np.float64)
    if shape == TORCH[0]:
        np.testing.assert_allclose(squares, np.square(wide).sum(0), rtol=1e-6)
        np.testing.assert_allclose(sums, wide.sum(0), rtol=1e-5)
        return
    assert np.array_equal(squares, np.square(wide).sum(0).astype(np.float32))
    assert np.array_equal(sums, wide.sum(0).astype(np.float32))


def test_rows_may_lie_apart():
    x = torch.randn(40, 3, 64, generator=torch.Generator().manual_seed(1))
    for part in (x[:, 1], x[::2, 0]):
        assert torch.equal(of_columns(part)[0], of_columns(part.contiguous())[0])
    turned = x[:, 2].T.contiguous().T
    assert torch.allclose(of_columns(turned)[0], turned.square().sum(0))


def test_what_is_not_finite_stays_so():
    x = torch.ones(5, 32)
    x[2, 3], x[4, 17] = torch.inf, torch.nan
    squares = of_columns(x)[0]
    assert squares[3] == torch.inf
    assert squares[17].isnan()
    assert squares.isfinite().sum() == 30


def test_other_types_are_widened():
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    assert torch.allclose(of_columns(x)[0], x.float().square().sum(0))
