"""The shift of a system from a few labels, against integrals and simulated systems."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import logistic, norm, t

from uqcalc.statistics.systems import (
    Residuals,
    Spread,
    compare_places,
    holds,
    learn_runs,
    learn_system_spread,
    posterior,
    residuals,
)


BOUNDARIES = np.geomspace(0.02, 2.0, 9)
SHIFTS = 1.5 * np.log(BOUNDARIES / 0.2)  # errors with a logistic logarithm
SPREAD = Spread(system=1.5, run=0.3)


def system(place, width=1.0, *, count, seed=0, run=0.0, runs=1):
    """Logits, errors and runs of a system that obeys the model."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(1.0, 1.0, count)
    which = np.arange(count) % runs
    own = rng.normal(0.0, run, runs)[which] if run else 0.0
    noise = width * rng.logistic(size=count)
    errors = 0.2 * np.exp((place + own + noise - logits) / 1.5)
    return logits, errors, [str(k) for k in which]


def test_the_posterior_of_one_label_is_the_integral():
    """One known and one censored label: the moments by sums on a finer grid."""
    spread = Spread(system=1.0, run=0.5)
    found = Residuals(np.array([1.3, -0.4]), np.array([0, 1]))
    mean, deviation = posterior(found, ["one", "one"], spread).place
    a = np.linspace(-14, 14, 1121)[:, None, None]
    log_c = np.linspace(-2, 2, 41)[:, None]
    u = np.linspace(-2.5, 2.5, 51)
    known = logistic.pdf(1.3, a + u, np.exp(log_c))
    given = known * logistic.sf(-0.4, a + u, np.exp(log_c)) * norm.pdf(u, 0, 0.5)
    density = given.sum(axis=2) * norm.pdf(log_c[:, 0], 0, 0.5)
    density = density.sum(axis=1) * t.pdf(a[:, 0, 0], 4)
    density /= density.sum()
    expected = density @ a[:, 0, 0]
    assert mean == pytest.approx(expected, abs=0.02)
    assert deviation == pytest.approx(
        np.sqrt(density @ (a[:, 0, 0] - expected) ** 2), rel=0.02
    )


def test_without_labels_the_prior_stays_and_probabilities_move_to_one_half():
    none = posterior(Residuals(np.empty(0), np.empty(0, int)), [], SPREAD)
    logits = np.array([-4.0, -1.0, 0.0, 1.0, 4.0])
    after = none.logit(logits)
    np.testing.assert_allclose(after, -after[::-1], atol=1e-6)
    assert np.all(np.abs(after[[0, 1, 3, 4]]) < np.abs(logits[[0, 1, 3, 4]]))


@pytest.mark.parametrize("place", [-3.0, 0.0, 2.0])
def test_probabilities_are_right_on_the_rest_of_the_system(place):
    gaps = []
    for seed in range(12):
        logits, errors, _ = system(place, count=1025, seed=seed)
        found = residuals(logits[:25], errors[:25], BOUNDARIES, SHIFTS)
        learnt = posterior(found, [str(i) for i in range(25)], SPREAD)
        said = expit(learnt.logit(logits[25:]))
        gaps.append(said.mean() - np.mean(errors[25:] <= 0.2))
        mean, deviation = learnt.place
        assert abs(mean - place) < 4 * deviation
    # few labels leave probabilities nearer to one half than the truth
    assert abs(np.mean(gaps)) < 0.04
    assert np.mean(np.abs(gaps)) < 0.07


def test_labels_that_are_all_right_shift_by_their_errors():
    logits = np.zeros(12)
    small = residuals(logits, np.full(12, 0.05), BOUNDARIES, SHIFTS)
    near = residuals(logits, np.full(12, 0.18), BOUNDARIES, SHIFTS)
    censored = residuals(logits, np.full(12, 1e-5), BOUNDARIES, SHIFTS)
    assert set(censored.side) == {-1}
    names = [str(i) for i in range(12)]
    places = [posterior(x, names, SPREAD).place[0] for x in (near, small, censored)]
    assert places[0] > places[1] > places[2]


def test_probabilities_keep_their_order_and_frames_of_one_run_count_less():
    logits, errors, _ = system(1.0, count=30)
    found = residuals(logits, errors, BOUNDARIES, SHIFTS)
    apart = posterior(found, [str(i) for i in range(30)], SPREAD)
    spread = Spread(system=1.5, run=1.0)
    together = posterior(found, ["one"] * 30, spread)
    assert together.place[1] > 1.5 * apart.place[1]
    for learnt in (apart, together):
        before, after = np.array(learnt.knots()).T
        assert np.all(np.diff(before) > 0)
        assert np.all(np.diff(after) > 0)


def test_spreads_are_found_again():
    rng = np.random.default_rng(3)
    tables = []
    for number in range(60):
        place = 1.2 * rng.standard_t(4)
        logits, errors, _ = system(place, count=15, seed=number)
        tables.append(residuals(logits, errors, BOUNDARIES, SHIFTS))
    assert learn_system_spread(tables) == pytest.approx(1.2, rel=0.4)
    logits, errors, runs = system(0.5, count=400, run=1.0, runs=40, seed=1)
    found = residuals(logits, errors, BOUNDARIES, SHIFTS)
    assert 0.7 <= learn_runs(found, runs, SPREAD) <= 1.5
    assert learn_runs(found, ["a"] * 400, SPREAD) == SPREAD.run


def test_mixture_of_systems_is_recognised():
    logits, errors, _ = system(0.0, count=40)
    half = np.arange(40) < 20
    parts = np.where(half, "A", "B").tolist()
    runs = [str(i) for i in range(40)]
    same = residuals(logits, errors, BOUNDARIES, SHIFTS)
    assert compare_places(same, runs, parts, SPREAD) < 1.0
    other = residuals(logits, np.where(half, errors, 8 * errors), BOUNDARIES, SHIFTS)
    assert compare_places(other, runs, parts, SPREAD) > 3.0


@pytest.mark.parametrize(
    ("share", "mean", "holds_here", "beyond"),
    [(0.55, 0.6, True, False), (0.13, 0.59, False, False), (0.0, 0.9, False, True)],
)
def test_whether_probabilities_hold(share, mean, holds_here, beyond):
    reliable = np.arange(100) < round(100 * share)
    found = holds(np.full(100, mean), reliable, 1.5)
    assert (found["holds"], found["beyond_systems"]) == (holds_here, beyond)
    assert np.sign(found["shift"]) == np.sign(share - mean)


def test_calibrated_probabilities_are_seldom_called_wrong():
    rng = np.random.default_rng(0)
    said = []
    for _ in range(400):
        p = rng.uniform(0.3, 0.9, 60)
        said.append(holds(p, rng.uniform(size=60) < p, 1.5)["holds"])
    assert 0.9 < np.mean(said) <= 1.0
