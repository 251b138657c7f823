"""The arithmetic of pruning: least squares of what stays, neurons in order, runs of layers, what edits hash to."""

from __future__ import annotations

import numpy as np
import torch

from quantmill.calibrate.prune_merge import matched, merged
from quantmill.calibrate.prune_solve import Routed, Rows, solve_experts, solve_matrix
from quantmill.jobs.edits import Edits
from quantmill.jobs.prune_layers import runs_of
from tests.support.measure_models import one_by_one


def test_least_squares_of_one_matrix():
    """With enough rows, the change that made the loss; nothing where the held-back rows would lose by it."""
    rng = torch.Generator().manual_seed(0)
    wanted = torch.randn(5, 16, generator=rng)
    inputs = [torch.randn(200, 16, generator=rng) for _ in range(3)]
    rows = [Rows(x, x @ wanted.T) for x in inputs]
    found = solve_matrix(rows[:2], rows[2:], one_by_one)
    assert found.delta is not None
    torch.testing.assert_close(found.delta[0], wanted, atol=0.02, rtol=0)
    assert found.after < 1e-4 * found.before
    noise = [Rows(x, torch.randn(200, 5, generator=rng)) for x in inputs]
    assert solve_matrix(noise[:1], noise[2:], one_by_one).delta is None


def test_least_squares_of_experts_that_share_tokens():
    """Two experts a token: what the joint normal equations give, solved by numpy."""
    rng = torch.Generator().manual_seed(0)
    n_tokens, n_cols, n_out = 400, 6, 3
    pairs = torch.stack([torch.randperm(3, generator=rng)[:2] for _ in range(n_tokens)])
    weights = torch.rand(n_tokens, 2, generator=rng)
    inner = torch.randn(n_tokens, 3, n_cols, generator=rng)
    missing = torch.randn(n_tokens, n_out, generator=rng) + inner[:, 0, :n_out]
    inputs, tokens, wide = [], [], torch.zeros(n_tokens, 3, n_cols)
    for expert in range(3):
        at, slot = (pairs == expert).nonzero(as_tuple=True)
        rows = inner[at, expert] * weights[at, slot, None]
        inputs.append(rows)
        tokens.append(at)
        wide[at, expert] = rows
    routed = Routed(tuple(inputs), tuple(tokens), missing)
    found = solve_experts(routed, routed, one_by_one)
    assert found.delta is not None
    flat = wide.reshape(n_tokens, -1).double().numpy()
    square = flat.T @ flat
    mean = np.mean([np.diag((x.T @ x).numpy()) for x in inputs])
    exact = np.linalg.solve(square + 1e-3 * mean * np.eye(18), flat.T @ missing.double().numpy())
    ours = found.delta.permute(0, 2, 1).reshape(18, n_out).numpy()
    np.testing.assert_allclose(ours, exact, atol=2e-4)


def test_merging_finds_the_order_of_neurons():
    """An expert that is another one with its neurons in another order, and nearly its router row, changes nothing."""
    rng = np.random.default_rng(0)
    parts = {name: rng.standard_normal((3, 8, 5)).astype(np.float32) for name in ("gate", "up", "down")}
    order = rng.permutation(8)
    for values in parts.values():
        values[2] = values[0][order]
    router = rng.standard_normal((3, 5)).astype(np.float32)
    router[2] = router[0] * 1.01
    np.testing.assert_array_equal(order[matched(parts["up"][0], parts["up"][2])], np.arange(8))
    found = merged(parts, router, (0, 1), [2.0, 1.0, 6.0])
    for name, values in found.items():
        np.testing.assert_allclose(values, parts[name][:2], rtol=1e-5, atol=1e-6)


def test_runs():
    assert runs_of((1, 2, 4, 7, 8, 9)) == [(1, 2), (4, 1), (7, 3)]


def test_edits_have_a_digest_of_all_they_change():
    one = Edits({0: (1, 2)})
    assert one.digest == Edits({0: (1, 2)}).digest != Edits({0: (1, 3)}).digest
