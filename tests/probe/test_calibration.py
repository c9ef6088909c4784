"""Platt's sigmoid against a general optimiser."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from uqcalc.errors import LabelError
from uqcalc.probe.calibration import calibrate


def sample(n=3000, slope=0.6, intercept=-0.8, spread=2.0, seed=0):
    rng = np.random.default_rng(seed)
    margin = spread * rng.normal(size=n)
    return margin, rng.random(n) < expit(slope * margin + intercept)


@pytest.mark.parametrize("spread", [2.0, 0.02, 200.0])
def test_is_the_maximum_likelihood_with_platts_targets(spread):
    margin, reliable = sample(spread=spread, slope=1.2 / spread)
    up, down = reliable.sum(), (~reliable).sum()
    target = np.where(reliable, (up + 1) / (up + 2), 1 / (down + 2))

    def loss(ab):
        z = ab[0] * margin / spread + ab[1]
        return np.mean(np.logaddexp(0, z) - target * z)

    best = minimize(loss, [0.0, 0.0], tol=1e-12)
    slope, intercept = calibrate(margin, reliable)
    np.testing.assert_allclose([slope * spread, intercept], best.x, atol=1e-4)


def test_recovers_the_sigmoid_that_made_the_labels():
    slope, intercept = calibrate(*sample(n=40_000))
    assert slope == pytest.approx(0.6, abs=0.03)
    assert intercept == pytest.approx(-0.8, abs=0.04)
    margin, reliable = sample(seed=1)
    mean = expit(slope * margin + intercept).mean()
    assert mean == pytest.approx(reliable.mean(), abs=0.03)


def test_separable_labels_do_not_become_certain():
    """With 5 labels a class Platt's targets are 6/7 and 1/7, and no more is claimed."""
    margin = np.repeat([-1.0, 1.0], 5)
    slope, intercept = calibrate(margin, margin > 0)
    np.testing.assert_allclose(
        expit(slope * np.array([-1, 1]) + intercept), [1 / 7, 6 / 7], atol=1e-5
    )


def test_margin_that_ranks_backwards_is_refused():
    margin, reliable = sample()
    with pytest.raises(LabelError, match="better than chance"):
        calibrate(-margin, reliable)
    with pytest.raises(LabelError, match="better than chance"):
        calibrate(np.zeros(len(reliable)), reliable)


@pytest.mark.parametrize("reliable", [True, False])
def test_one_class_is_refused(reliable):
    count = "4 reliable of 4" if reliable else "0 reliable of 4"
    with pytest.raises(LabelError, match=count):
        calibrate([0.1, 0.2, 0.3, 0.4], [reliable] * 4)
