"""Compensated codes against plain ones, in the metric that they are made for."""

import numpy as np
import pytest
import torch

from quantmill.calibrate import solver
from quantmill.calibrate.gram import Metric, metric_of, shrunk
from quantmill.calibrate.layer import column_parts
from quantmill.calibrate.solver import EFFORTS, Effort, plain, solve
from quantmill.models.workers import working
from quantmill.qkernels.lattices import GRIDS, LATTICES
from tests.support import oracle

N_ROWS, N_COLS = 24, 512


@pytest.fixture(autouse=True)
def one_torch_thread():
    """As the solver is used; torch's own threads wait for each other at every one of its many small operations."""
    with working(1, "cpu"):
        yield


def correlated(seed=0, n_mat=1, n_tokens=700):
    """Second moments of inputs that depend on each other, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n_mat, N_COLS, N_COLS, generator=generator) * 0.1 + torch.eye(N_COLS)
    inputs = torch.randn(n_mat, n_tokens, N_COLS, generator=generator) @ mixing
    return inputs.transpose(1, 2) @ inputs / n_tokens


def weights(seed=1, n_mat=1):
    return torch.randn(n_mat, N_ROWS, N_COLS, generator=torch.Generator().manual_seed(seed)) * 0.05


def error(blocks, type, target, moments):
    """tr(E H Eᵀ) in float64 numpy, of what llama.cpp decodes."""
    total = 0.0
    for matrix, wanted, h in zip(blocks, target, moments, strict=True):
        difference = oracle.dequantize(matrix.numpy(), type).astype(np.float64) - wanted.numpy()
        total += float(((difference @ h.double().numpy()) * difference).sum())
    return total


@pytest.mark.parametrize("type", [*LATTICES, *GRIDS])
@pytest.mark.parametrize("effort", ["fast", "normal"])
def test_compensated_codes_are_far_better_than_plain_ones(type, effort):
    target, moments = weights(), correlated()
    metric = metric_of(moments, 0.01)
    ratio = error(solve(target, metric, type, EFFORTS[effort])[1], type, target, moments)
    ratio /= error(plain(target, metric.diagonal, type), type, target, moments)
    assert ratio < {"fast": 0.85, "normal": 0.7}[effort]


@pytest.mark.parametrize("type", ["Q4_0", "Q4_K", "NVFP4", "IQ2_XS", "IQ1_S"])
def test_matrices_of_a_stack_are_solved_as_alone(type):
    target, moments = weights(n_mat=3), correlated(n_mat=3)
    together = solve(target, metric_of(moments, 0.01), type, EFFORTS["normal"])[1]
    for i in range(3):
        alone = solve(target[i : i + 1], metric_of(moments[i : i + 1], 0.01), type, EFFORTS["normal"])[1]
        a, b = (error(x, type, target[i : i + 1], moments[i : i + 1]) for x in (together[i : i + 1], alone))
        assert a == pytest.approx(b, rel=0.02)  # a batch of products may round otherwise


def test_singular_moments_and_dead_columns():
    """Ten tokens, and a column that never lived: its weights keep codes next to them."""
    target = weights()
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(10, N_COLS, generator=generator)
    inputs[:, 7] = 0
    moments = (inputs.T @ inputs / 10)[None]
    _, blocks = solve(target, metric_of(moments, 0.01), "Q8_0", EFFORTS["normal"])
    decoded = oracle.dequantize(blocks[0].numpy(), "Q8_0")
    step = np.abs(target[0].numpy()).reshape(N_ROWS, -1, 32).max(-1) / 127
    assert (np.abs(decoded[:, 7] - target[0, :, 7].numpy()) < 0.75 * step[:, 0]).all()


def test_no_moments_at_all():
    target = weights()
    _, blocks = solve(target, metric_of(torch.zeros(1, N_COLS, N_COLS), 0.01), "Q4_0", EFFORTS["normal"])
    assert np.isfinite(oracle.dequantize(blocks[0].numpy(), "Q4_0")).all()


def test_zero_weights():
    _, blocks = solve(torch.zeros(1, 4, N_COLS), metric_of(correlated(), 0.01), "Q4_K", EFFORTS["normal"])
    assert not oracle.dequantize(blocks[0].numpy(), "Q4_K").any()


def test_feedback_factor_is_the_inverse_in_order():
    metric = metric_of(correlated(n_mat=2), 0.01)
    for i in range(2):
        order = metric.order[i]
        inverse = torch.linalg.inv(metric.moments[i].double())[order][:, order]
        made = metric.feedback[i].double()
        torch.testing.assert_close(made.T @ made, inverse, rtol=1e-3, atol=1e-5)
        diagonal = metric.diagonal[i][order]
        assert bool((diagonal[:-1] >= diagonal[1:]).all())


def test_metric_error_is_the_trace():
    moments = correlated(n_mat=2)
    difference = weights(n_mat=2)
    expected = [
        np.trace(e @ h @ e.T)
        for e, h in zip(difference.double().numpy(), moments.double().numpy(), strict=True)
    ]
    assert Metric(moments).error(difference).tolist() == pytest.approx(expected, rel=1e-4)


def test_experts_are_drawn_to_their_layer():
    sums = torch.stack([torch.eye(2) * 30, torch.zeros(2, 2)])
    drawn = shrunk(sums, torch.tensor([10, 0]), 10.0)
    assert torch.equal(drawn[1], torch.eye(2) * 3)  # never routed to: the layer's mean
    assert torch.equal(drawn[0], torch.eye(2) * 3)


@pytest.mark.parametrize("type", ["Q4_0", "Q2_K", "NVFP4", "IQ3_S", "IQ1_S"])
def test_descent_never_makes_it_worse(type):
    target, moments = weights(seed=3), correlated(seed=4, n_tokens=300)
    metric = metric_of(moments, 0.01)
    damped = metric.moments
    losses = [
        error(solve(target, metric, type, Effort(sweeps, rounds))[1], type, target, damped)
        for sweeps, rounds in ((0, 0), (1, 0), (1, 1), (2, 3))
    ]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("type", ["Q4_0", "IQ2_XS"])
def test_pieces_of_a_stack_are_solved_as_the_whole(type, monkeypatch):
    target, metric = weights(n_mat=3), metric_of(correlated(n_mat=3), 0.01)
    whole = solve(target, metric, type, EFFORTS["fast"])
    monkeypatch.setitem(solver.ROWS, "cpu", 10)
    monkeypatch.setitem(solver.WEIGHTS, "cpu", 20 * N_COLS)  # two matrices of ten rows
    parts = solve(target, metric, type, EFFORTS["fast"])
    assert torch.equal(whole[0], parts[0])
    assert (whole[1] != parts[1]).float().mean() < 0.02  # sums of other lengths round otherwise


def test_columns_come_in_equal_parts_of_whole_blocks():
    assert column_parts(16384, 16384) == [slice(0, 16384)]
    assert column_parts(27648, 16384) == [slice(0, 13824), slice(13824, 27648)]
    parts = column_parts(3 * 16384 + 512, 16384)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert all(part.start % 256 == 0 and part.stop - part.start <= 16384 for part in parts)
