"""What a gradient of weights says of their groups and wishes: compiled and torch's, against numpy's float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantmill.qkernels import pulls

N_ROWS, N_COLS, BLOCK = 5, 1536, 256
DTYPES = [torch.float32, torch.bfloat16, torch.float16]  # the last is torch's own


def numbers(seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(N_ROWS, N_COLS))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [16, 32, 64, 256])
def test_sums_of_groups(dtype: torch.dtype, group: int) -> None:
    weights, made = numbers(0, dtype), numbers(1, dtype)
    products, sums, squares = pulls.of_groups(weights, made, group)
    w, m = weights.double().numpy(), made.double().numpy()
    grouped = (N_ROWS, N_COLS // group, group)
    np.testing.assert_allclose(products, (w * m).reshape(grouped).sum(2), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums, w.reshape(grouped).sum(2), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(squares, (w * w).sum(1), rtol=1e-5)


def test_rows_that_lie_apart() -> None:
    weights, made = numbers(0, torch.float32), numbers(1, torch.float32)
    apart = torch.cat([weights, weights], 1)[:, :N_COLS]
    for found, wanted in zip(
        pulls.of_groups(apart, made, 32), pulls.of_groups(weights, made, 32), strict=True
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [32, BLOCK])
def test_wishes(dtype: torch.dtype, block: int) -> None:
    """Some gradients are beyond the most that counts, some wishes at their limit."""
    weights = numbers(2, dtype)
    rng = np.random.default_rng(3)
    old_seen = rng.uniform(0.1, 4, N_ROWS).astype(np.float32)
    old_seen[2] = 0  # never pulled before
    along = rng.uniform(0.5, 2, N_COLS).astype(np.float32)
    old = rng.integers(-pulls.LIMIT, pulls.LIMIT + 1, (N_ROWS, N_COLS)).astype(np.int16)
    old[0, :512] //= 8  # two whole blocks want to go nowhere
    pull = pulls.Pull(share_of_new=0.25, known=0.5, factor=900.0, most=1500.0)
    w = weights.double().numpy()
    squares = torch.from_numpy((w * w).sum(1)).float()
    new_seen = 0.75 * old_seen + 0.25 * (w * w).mean(1)
    change = w * along * (900.0 / np.sqrt(new_seen / 0.5))[:, None]
    change = np.clip(change, -1500.0, 1500.0)
    wishes, seen = torch.from_numpy(old.copy()), torch.from_numpy(old_seen.copy())
    columns, beyond = pulls.wished(wishes, weights, squares, seen, torch.from_numpy(along), pull, block)
    np.testing.assert_allclose(seen, new_seen, rtol=1e-5)
    wanted = np.clip(old - change, -pulls.LIMIT, pulls.LIMIT)
    np.testing.assert_allclose(wishes, wanted, atol=0.501)  # rounded
    np.testing.assert_allclose(columns, (w * w).sum(0), rtol=1e-5)
    far = (np.abs(wishes.numpy().astype(int)) > pulls.HALF).reshape(N_ROWS, -1, block).any(2)
    assert np.array_equal(beyond.numpy(), far)
    assert far.any()
    assert not far.all()
    assert (np.abs(change) == 1500.0).any()
    assert (np.abs(wanted) == pulls.LIMIT).any()
