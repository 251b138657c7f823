"""How far a step of polish goes: rates by type, and what they are lowered to where a step would promise too much."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quantmill.calibrate import rates
from quantmill.calibrate.adam import Adam
from quantmill.calibrate.rates import Rates
from quantmill.calibrate.training import Training
from quantmill.jobs.polish import run
from quantmill.models.workers import working
from tests.support.polishing import job


def test_a_promise_is_the_gradients_times_the_rates() -> None:
    rng = np.random.default_rng(1)
    grads = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 5, 2), (7,))]
    each = np.array([1e-3, 4e-3], np.float32)
    knobs = [SimpleNamespace(change=torch.zeros(g.shape)) for g in grads]
    gradients = [torch.from_numpy(g) for g in grads]
    wanted = float(
        (np.abs(grads[0]) * each).sum(dtype=np.float64) + 2e-3 * np.abs(grads[1]).sum(dtype=np.float64)
    )
    for threads in (1, 2):
        with working(threads, "cpu") as workers:
            found = Adam(knobs, workers).promised(gradients, [torch.from_numpy(each), 2e-3])
            assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("promise", "share"), [(0.5, 0.125), (None, 1.0), (8.0, 1.0)])
def test_rates_are_lowered_until_the_promise_is_kept(promise: float | None, share: float) -> None:
    training = Training.__new__(Training)
    training._rates = Rates({}, 0.0, promise=promise, codes=0.1, code_promise=0.5)
    training.losses, training.promised, training.promised_by_codes = [0.1, 0.3], [0.6, 1.0], [0.1, 0.7]
    assert training.share == pytest.approx(share)
    assert training.code_rate == pytest.approx(0.1 * 0.25)


def test_rates_far_too_high_for_a_model_are_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_COARSE", 0.2)
    monkeypatch.setattr(rates, "_FINE", 0.2)
    lowered = run(job(tmp_path / "out.gguf"))
    asked = run(job(tmp_path / "out.gguf", rate=0.2))  # what was asked for is what is done
    assert lowered.after.kld.value < 1.5 * lowered.before.kld.value < 0.1 * asked.after.kld.value
