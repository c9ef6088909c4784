"""Platt's sigmoid against a general optimiser; curves and boundaries by simulation."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from uqcalc.errors import LabelError, ProbeError
from uqcalc.probe.calibration import Calibration, platt


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
    slope, intercept = platt(margin, reliable)
    np.testing.assert_allclose([slope * spread, intercept], best.x, atol=1e-4)


def standard_error(right):
    """Of a share that is counted."""
    return np.sqrt(right.mean() * (1 - right.mean()) / len(right))


def test_recovers_the_sigmoid_that_made_the_labels():
    margin, reliable = sample(n=40_000)
    slope, intercept = platt(margin, reliable)
    # four standard errors of maximum likelihood, from Fisher's information
    chance = expit(0.6 * margin - 0.8)
    design = np.column_stack([margin, np.ones_like(margin)])
    information = design.T @ (design * (chance * (1 - chance))[:, None])
    off = np.array([slope - 0.6, intercept + 0.8])
    assert np.all(np.abs(off) < 4 * np.sqrt(np.linalg.inv(information).diagonal()))
    margin, reliable = sample(seed=1)
    mean = expit(slope * margin + intercept).mean()
    assert abs(mean - reliable.mean()) < 4 * standard_error(reliable)


def test_separable_labels_do_not_give_certainty():
    """With 5 labels in each class Platt's targets are 6/7 and 1/7."""
    margin = np.repeat([-1.0, 1.0], 5)
    slope, intercept = platt(margin, margin > 0)
    np.testing.assert_allclose(
        expit(slope * np.array([-1, 1]) + intercept), [1 / 7, 6 / 7], atol=1e-5
    )


def test_margin_with_reversed_ranking_is_refused():
    margin, reliable = sample()
    with pytest.raises(LabelError, match="better than chance"):
        platt(-margin, reliable)
    with pytest.raises(LabelError, match="better than chance"):
        platt(np.zeros(len(reliable)), reliable)


@pytest.mark.parametrize("reliable", [True, False])
def test_one_class_is_refused(reliable):
    count = "4 reliable of 4" if reliable else "0 reliable of 4"
    with pytest.raises(LabelError, match=count):
        platt([0.1, 0.2, 0.3, 0.4], [reliable] * 4)


def judged(count=4000, *, bend=None, seed=0):
    """Scores and errors: ln(error) is logistic around -score, or around a bent one."""
    rng = np.random.default_rng(seed)
    score = 1.5 * rng.normal(size=count)
    centre = score if bend is None else bend(score)
    return score, np.exp(rng.logistic(size=count) - centre)


def steep_then_flat(score):
    return np.where(score < 0, 3 * score, 0.1 * score)


def fitted(score, errors, boundary=1.0):
    groups = [str(i) for i in range(len(score))]
    return Calibration.fit(score, errors, groups, boundary)


STRAIGHT = fitted(*judged())
BENT = fitted(*judged(bend=steep_then_flat))
LOW = max(c.boundaries[0] for c in (STRAIGHT, BENT))
HIGH = min(c.boundaries[-1] for c in (STRAIGHT, BENT))


@given(
    st.sampled_from([STRAIGHT, BENT]),
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=6),
    st.lists(st.floats(LOW, HIGH), min_size=2, max_size=2),
)
def test_monotone_in_the_boundary_and_in_the_score(calibration, scores, boundaries):
    ranked = torch.tensor(sorted(scores), dtype=torch.float64)
    small, large = (calibration.logits(ranked, b) for b in sorted(boundaries))
    assert (small <= large).all()
    assert (large.diff() >= -1e-9).all()


@pytest.mark.parametrize("bend", [None, steep_then_flat])
def test_right_in_the_mean_at_every_boundary(bend):
    score, errors = judged(bend=bend)
    calibration = fitted(score, errors)
    assert len(calibration.boundaries) == 12  # eleven percentiles and its own
    assert calibration.shift(1.0) == 0
    for boundary in calibration.boundaries:
        logits = calibration.logits(torch.from_numpy(score), boundary)
        said = logits.sigmoid().mean().item()
        right = errors <= boundary
        assert abs(said - right.mean()) < standard_error(right)  # as labels show


def test_boundaries_in_between_are_right_where_the_model_is():
    """With logistic errors the shift is ln(boundary), also between the boundaries."""
    score, errors = judged(40_000)
    calibration = fitted(score, errors)
    low, *_, high = calibration.boundaries
    for boundary in np.geomspace(low, high, 9):
        right = errors <= boundary
        # of the log-odds of a share: its own error over the slope, p (1 - p)
        spread = standard_error(right) / (right.mean() * (1 - right.mean()))
        assert abs(calibration.shift(boundary) - np.log(boundary)) < 4 * spread


def test_isotonic_only_if_the_labels_show_a_bend():
    assert BENT.knots
    fresh = np.linspace(-3, 3, 101)
    truth = expit(steep_then_flat(fresh))
    bent = BENT.logits(torch.from_numpy(fresh)).sigmoid().numpy()
    straight = expit(BENT.slope * fresh + BENT.intercept)
    assert np.abs(bent - truth).mean() < 0.5 * np.abs(straight - truth).mean()
    for seed in range(8):
        assert fitted(*judged(seed=seed)).knots == ()
    score, errors = judged(900, bend=steep_then_flat)
    assert fitted(score, errors).knots == ()  # too few labels
    score, errors = judged(bend=steep_then_flat)
    few = [str(i % 100) for i in range(len(score))]
    assert Calibration.fit(score, errors, few, 1.0).knots == ()  # too few groups


@pytest.mark.parametrize("calibration", [Calibration(), STRAIGHT, BENT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_stays_nan(calibration, dtype):
    score = torch.tensor([0.3, torch.nan, -torch.inf, torch.inf], dtype=dtype)
    logits = calibration.logits(score)
    assert logits.dtype == dtype
    assert logits.isnan().tolist() == [False, True, False, False]
    assert logits[2:].tolist() == [-np.inf, np.inf]


def test_a_boundary_that_no_label_covered_is_refused():
    low, high = BENT.boundaries[0], BENT.boundaries[-1]
    score = torch.zeros(1)
    for boundary in (low, high):
        assert BENT.logits(score, boundary).isfinite().all()
    words = f"between {low:.4g} and {high:.4g}, the range of the errors of the probe's"
    for boundary in (low / 1.01, high * 1.01, -1.0, np.nan):
        with pytest.raises(ProbeError, match=words):
            BENT.logits(score, boundary)
    with pytest.raises(ProbeError, match=r"was fitted for, got 0\.2; fit"):
        Calibration(1.0, 0.0).logits(score, 0.2)


@pytest.mark.parametrize("calibration", [Calibration(), STRAIGHT, BENT])
def test_a_calibration_is_json(calibration):
    text = json.dumps(calibration.to_dict(), allow_nan=False)
    again = Calibration.from_dict(json.loads(text))
    assert again == calibration
    score = torch.linspace(-9, 9, 50)
    assert torch.equal(again.logits(score), calibration.logits(score))
