"""Losses of all types of a tensor, from those of two."""

import pytest

from quantmill.calibrate.curves import loss_curve


def test_curves_go_through_what_was_measured():
    errors = {"Q2_K": 0.08, "Q3_K": 0.02, "Q4_K": 0.005, "Q5_K": 0.00125, "Q6_K": 0.0003, "F16": 0.0}
    curve = loss_curve(errors, {"Q3_K": 0.04, "Q5_K": 0.004})
    assert curve["Q3_K"] == pytest.approx(0.04)
    assert curve["Q5_K"] == pytest.approx(0.004)
    assert curve["Q4_K"] == pytest.approx((0.04 * 0.004) ** 0.5)  # half way, as logarithms
    assert curve["Q6_K"] == pytest.approx(0.004 * 0.0003 / 0.00125)  # in proportion
    assert curve["Q2_K"] == pytest.approx(0.04 * (0.04 / curve["Q4_K"]))  # on along the line
    assert curve["F16"] == 0.0


def test_curves_do_not_follow_noise():
    """A finer type that was measured as worse, or as nothing at all."""
    errors = {"Q3_K": 0.02, "Q4_K": 0.005, "Q5_K": 0.00125}
    for noise in (0.05, 0.0, -1e-7):
        curve = loss_curve(errors, {"Q3_K": 0.04, "Q5_K": noise})
        assert curve["Q3_K"] == pytest.approx(0.04)
        assert curve["Q3_K"] > curve["Q4_K"] > curve["Q5_K"] > 0
    assert loss_curve(errors, {"Q3_K": 0.04})["Q4_K"] == pytest.approx(0.01)
    assert loss_curve({"F16": 0.0}, {"F16": 0.0}) == {"F16": 0.0}
