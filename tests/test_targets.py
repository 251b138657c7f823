"""Targets against least squares by numpy."""

import numpy as np
import pytest
import torch

from quantmill.calibrate.gram import metric_of
from quantmill.calibrate.moments import FITTED, HELD, Moments, MomentsOf
from quantmill.calibrate.targets import Shares, target_of
from quantmill.models.summing import Seen

N_COLS, N_ROWS = 24, 10
CPU = torch.device("cpu")


def streams(seed, n_tokens=600):
    """x of the original, y = x through a lossy map and noise, and what the streams differ by beside it."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((N_COLS, N_COLS)) * 0.15 + np.eye(N_COLS)
    x = rng.standard_normal((n_tokens, N_COLS))
    y = x @ mixing + rng.standard_normal((n_tokens, N_COLS)) * 0.3
    r = y @ np.random.default_rng(8).standard_normal((N_COLS, N_ROWS)) * 0.05
    return x, y, r + rng.standard_normal((n_tokens, N_ROWS)) * 0.2


def moments_of(fitted, held, residual=True):
    made = Moments(MomentsOf(1, N_COLS, 2, True, CPU))
    for batch, rows in enumerate((fitted, held)):
        x, y, r = (torch.tensor(part, dtype=torch.float32) for part in rows)
        made.add(batch, Seen(x[None], y[None], (0,), (len(x),), r[None] if residual else None))
    return made


def weights():
    return torch.randn(1, N_ROWS, N_COLS, generator=torch.Generator().manual_seed(0))


def metric(moments):
    return metric_of(moments.square[FITTED] / moments.counts[FITTED].view(-1, 1, 1), 1e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_a_whole_target_is_the_least_squares_solution(residual):
    x, y, r = streams(1)
    moments = moments_of((x, y, r), streams(2), residual)
    w = weights()
    target, shares = target_of(w, moments, metric(moments), 0, alpha=1.0)
    wanted = x @ w[0].double().numpy().T + (r if residual else 0)
    expected = np.linalg.lstsq(y, wanted, rcond=None)[0].T
    np.testing.assert_allclose(target[0].numpy(), expected, atol=2e-3)
    assert shares == Shares(1.0, 1.0 if residual else 0.0)


@pytest.mark.parametrize("residual", [False, True])
def test_shares_are_the_best_on_held_back_tokens(residual):
    moments = moments_of(streams(1, 60), streams(2), residual)  # few tokens: the corrections are overfitted
    w = weights()
    _, shares = target_of(w, moments, metric(moments), 0, alpha=None)
    assert 0 < shares.input < 1
    x, y, r = streams(2)
    wanted = x @ w[0].double().numpy().T + (r if residual else 0)

    def lost(a, b):
        with_a, with_b = (target_of(w, one, metric(one), 0, alpha=1.0)[0] for one in parts)
        made = w + a * (with_a - w) + (b * (with_b - with_a) if residual else 0)
        return np.square(wanted - y @ made[0].double().numpy().T).sum()

    parts = (moments_of(streams(1, 60), streams(2), False), moments)
    best = lost(shares.input, shares.residual)
    for a in np.linspace(0, 1, 11):
        for b in np.linspace(0, 1, 11) if residual else (0,):
            assert lost(a, b) >= best * (1 - 1e-5)


def test_without_a_second_stream_or_by_wish_weights_are_their_own_target():
    moments = moments_of(streams(1), streams(2))
    w = weights()
    assert target_of(w, moments, metric(moments), 0, alpha=0)[0] is w
    moments.cross = None
    assert target_of(w, moments, metric(moments), 0, alpha=None)[0] is w


def test_experts_with_few_tokens_keep_their_weights():
    moments = Moments(MomentsOf(2, N_COLS, 2, True, CPU))
    for batch, n_tokens in ((0, 500), (1, 500)):
        x, y, _ = (torch.tensor(part, dtype=torch.float32) for part in streams(batch, n_tokens))
        few = 3 * N_COLS
        padded = [torch.stack([whole, whole * (torch.arange(n_tokens) < few)[:, None]]) for whole in (x, y)]
        moments.add(batch, Seen(*padded, (0, 1), (n_tokens, few)))
    w = weights().repeat(2, 1, 1)
    means = moments.square[FITTED] / moments.counts[FITTED].view(-1, 1, 1)
    target, _ = target_of(w, moments, metric_of(means, 0.01), 0, alpha=1.0)
    assert not torch.equal(target[0], w[0])
    assert torch.equal(target[1], w[1])


def test_moments_are_joined_and_columns_chosen():
    whole = moments_of(streams(1), streams(2))
    parts = [moments_of(streams(1), streams(2)) for _ in range(2)]
    parts[0].join(parts[1])
    torch.testing.assert_close(parts[0].square, 2 * whole.square)
    torch.testing.assert_close(parts[0].residual, 2 * whole.residual)
    index = torch.tensor([5, 2])
    chosen = whole.columns(index)
    assert torch.equal(chosen.square[HELD, 0], whole.square[HELD, 0][index][:, index])
    assert torch.equal(chosen.residual, whole.residual[..., index])
