"""CRPS against its definition, and the ratio of spread to skill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from uqcalc.statistics.scores import (
    fair_crps,
    gaussian_crps,
    gaussian_nll,
    spread_skill,
)


def test_fair_crps_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    members, truth = rng.normal(size=(5, 7)), rng.normal(size=7)
    pairs = [
        np.abs(members[k] - members[m]) for k in range(5) for m in range(5) if k != m
    ]
    expected = np.abs(members - truth).mean(0) - 0.5 * np.mean(pairs, axis=0)
    np.testing.assert_allclose(fair_crps(members, truth), expected, rtol=1e-12)
    tensors = fair_crps(torch.as_tensor(members), torch.as_tensor(truth))
    np.testing.assert_allclose(tensors, expected, rtol=1e-12)


@pytest.mark.parametrize("count", [2, 10])
def test_fair_crps_does_not_depend_on_the_number_of_members(count):
    rng = np.random.default_rng(count)
    members, truth = rng.normal(size=(count, 200_000)), rng.normal(size=200_000)
    expected = gaussian_crps(0.0, 1.0, truth).mean()
    assert fair_crps(members, truth).mean() == pytest.approx(expected, abs=0.006)


def test_gaussian_crps_is_the_integral_of_the_squared_distance_of_distributions():
    mean, deviation, truth = 0.3, 0.7, -0.4

    def below(x):
        return stats.norm.cdf(x, mean, deviation) ** 2

    def above(x):
        return (stats.norm.cdf(x, mean, deviation) - 1) ** 2

    expected = integrate.quad(below, -8, truth)[0] + integrate.quad(above, truth, 9)[0]
    assert gaussian_crps(mean, deviation, truth) == pytest.approx(expected, rel=1e-6)
    assert gaussian_crps(mean, 0.0, truth) == pytest.approx(0.7)


def test_spread_skill_is_one_for_members_like_the_truth():
    rng = np.random.default_rng(1)
    centre = rng.normal(size=50_000)
    members = centre + rng.normal(size=(4, 50_000))
    truth = centre + rng.normal(size=50_000)
    assert spread_skill(members, truth) == pytest.approx(1.0, abs=0.02)
    assert spread_skill(members, truth + 3) < 0.5


def test_one_member_has_no_fair_crps():
    with pytest.raises(ValueError, match="at least 2"):
        fair_crps(np.zeros((1, 3)), np.zeros(3))


@pytest.mark.slow  # the package compiles its kernels
def test_scores_are_those_of_the_package_scoringrules():
    rules = pytest.importorskip("scoringrules")
    rng = np.random.default_rng(3)
    members, truth = rng.normal(size=(9, 40)), rng.normal(size=40)
    mean, deviation = members.mean(axis=0), members.std(axis=0, ddof=1)
    fair = rules.crps_ensemble(truth, members, m_axis=0, estimator="fair")
    np.testing.assert_allclose(fair_crps(members, truth), fair, rtol=1e-10)
    normal = rules.crps_normal(truth, mean, deviation)
    np.testing.assert_allclose(gaussian_crps(mean, deviation, truth), normal, rtol=1e-9)
    likelihood = rules.logs_normal(truth, mean, deviation)
    found = gaussian_nll(mean, deviation, truth)
    np.testing.assert_allclose(found, likelihood, rtol=1e-10)


def test_likelihood_is_that_of_scipy_and_has_limits():
    found = gaussian_nll([0.3, 0.0, 1.0], [0.7, 0.0, 0.0], [-0.4, 0.1, 1.0])
    assert found[0] == pytest.approx(-stats.norm.logpdf(-0.4, 0.3, 0.7))
    assert list(found[1:]) == [np.inf, -np.inf]
