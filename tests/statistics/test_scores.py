"""Scores against closed forms and scikit-learn."""

import math

import numpy as np
import pytest
from closeness import FLOAT64, close
from scipy import special, stats
from scipy.stats import binomtest, norm
from sklearn import metrics

from uqcalc.statistics import scores


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    belief = rng.beta(1.5, 1.0, 400)
    return rng.random(400) < belief**1.3, belief


def test_report_against_scikit_learn(sample):
    truth, belief = sample
    report = scores.classification_report(truth, belief)
    answer = belief >= 0.5
    assert report["structures"] == 400
    assert report["brier"] == pytest.approx(metrics.brier_score_loss(truth, belief))
    assert report["f1_reliable"] == pytest.approx(metrics.f1_score(truth, answer))
    assert report["f1_unreliable"] == pytest.approx(
        metrics.f1_score(truth, answer, pos_label=0)
    )
    assert report["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answer))
    both, none = np.sum(truth & answer), np.sum(~truth & ~answer)
    missed, false = np.sum(truth & ~answer), np.sum(~truth & answer)
    margins = (both + false) * (both + missed) * (none + false) * (none + missed)
    mcc = (both * none - false * missed) / math.sqrt(margins)
    assert report["mcc"] == pytest.approx(mcc)
    pairs = belief[truth][:, None] - belief[~truth][None]
    assert report["auroc"] == pytest.approx(
        np.mean(pairs > 0) + np.mean(pairs == 0) / 2
    )
    assert report["majority_accuracy"] == max(truth.mean(), 1 - truth.mean())


def test_calibration_error_by_hand():
    belief = [0.05, 0.12, 0.18, 0.95, 1.0, 0.99, 0.3]
    truth = [0, 1, 0, 1, 1, 0, 1]
    # bins: {0.05}, {0.12, 0.18}, {0.3} and, the last one closed, {0.95, 1.0, 0.99}
    expected = (0.05 + abs(1 - 0.3) + abs(1 - 0.3) + abs(2 - 2.94)) / 7
    ours = scores.expected_calibration_error(truth, belief)
    assert ours == pytest.approx(expected)


@pytest.mark.parametrize("p", [0.5, 0.83])
def test_noise_floor_of_one_constant_probability(p):
    """E|mean(truth) - p| of n draws is sqrt(2 p (1-p) / (pi n)) (half-normal)."""
    n = 2000
    floor = scores.calibration_noise_floor(np.full(n, p), draws=2000)
    expected = math.sqrt(p * (1 - p) / n) * 2 * norm.pdf(0)
    assert floor == pytest.approx(expected, rel=0.05)


def test_calibrated_sample_sits_at_the_floor_and_a_shifted_one_does_not(sample):
    _, belief = sample
    truth = np.random.default_rng(5).random(belief.size) < belief
    floor = scores.calibration_noise_floor(belief)
    assert scores.expected_calibration_error(truth, belief) < 1.6 * floor
    shifted = np.clip(belief + 0.2, 0, 1)
    assert scores.expected_calibration_error(truth, shifted) > 2.5 * floor


def test_brier_decomposition_sums_up_and_is_murphys_on_bins(sample):
    truth, belief = sample
    parts = scores.brier_decomposition(truth, belief)
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    brier = metrics.brier_score_loss(truth, belief)
    close(total + parts["within_bins"], brier, FLOAT64)
    assert parts["uncertainty"] == pytest.approx(truth.mean() * (1 - truth.mean()))
    # one probability in each bin: no term within bins, the other three are Murphy's
    coarse = (np.floor(belief * 10) + 0.5) / 10
    parts = scores.brier_decomposition(truth, coarse)
    close(parts["within_bins"], 0.0, FLOAT64, of=1.0)
    brier = np.mean((coarse - truth) ** 2)
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    close(total, brier, FLOAT64)
    # by hand: bins {0.2, 0.2} with 0 of 2, {0.7, 0.7} with 1 of 2; the rate is 1/4
    parts = scores.brier_decomposition([0, 0, 1, 0], [0.2, 0.2, 0.7, 0.7])
    assert parts["reliability"] == pytest.approx((0.2**2 + 0.2**2) / 2)
    assert parts["resolution"] == pytest.approx((0.25**2 + 0.25**2) / 2)


def test_base_rate_alone_has_no_resolution():
    truth = np.arange(40) % 4 == 0
    parts = scores.brier_decomposition(truth, np.full(40, 0.25))
    assert parts == pytest.approx(
        {"reliability": 0, "resolution": 0, "uncertainty": 3 / 16, "within_bins": 0}
    )


def test_wilson_interval_against_scipy():
    hits, counts = np.array([0, 3, 10, 47]), np.array([4, 10, 10, 90])
    low, high = scores.wilson_interval(hits, counts, 0.9)
    for k, n, a, b in zip(hits, counts, low, high, strict=True):
        expected = binomtest(k, n).proportion_ci(0.9, method="wilson")
        close((a, b), (expected.low, expected.high), FLOAT64)
    assert all(np.isnan(bound) for bound in scores.wilson_interval(0, 0))


def test_bins_hold_everything_and_the_last_is_closed():
    found = scores.reliability_bins([1, 0, 1], [0.0, 0.95, 1.0], bins=4)
    assert found.counts.tolist() == [1, 0, 0, 2]
    np.testing.assert_allclose(found.predicted, [0, np.nan, np.nan, 0.975])
    np.testing.assert_allclose(found.observed, [1, np.nan, np.nan, 0.5])


def test_coverage_table_by_hand():
    rows = scores.coverage_table([1, 1, 0, 1], [0.9, 0.7, 0.7, 0.2], (0.1, 0.7, 0.95))
    assert rows[0] == {"cutoff": 0.1, "coverage": 1.0, "precision": 0.75}
    assert rows[1] == {
        "cutoff": 0.7,
        "coverage": 0.75,
        "precision": pytest.approx(2 / 3),
    }
    assert rows[2]["coverage"] == 0
    assert math.isnan(rows[2]["precision"])


def test_risk_coverage_of_perfect_and_blind_rankings():
    n = 1001
    errors = np.random.default_rng(1).permutation(np.arange(n, dtype=float))
    coverage, kept = scores.risk_coverage(errors, errors)
    np.testing.assert_allclose(coverage, np.arange(1, n + 1) / n)
    np.testing.assert_allclose(kept, (np.arange(1, n + 1) - 1) / 2)
    # with any ranking all structures give the mean; the perfect ranking is the best
    for risk in (-errors, np.zeros(n), np.sin(errors)):
        _, other = scores.risk_coverage(errors, risk)
        assert other[-1] == pytest.approx(errors.mean())
        assert np.all(other >= kept - 1e-9)


@pytest.mark.parametrize("order", [1, -1])
def test_order_of_equal_risks_has_no_effect(order):
    """Files are sorted by temperature or size; equal risks must not gain from this."""
    errors = np.arange(10.0)[::order]
    _, kept = scores.risk_coverage(errors, np.ones(10))
    np.testing.assert_allclose(kept, 4.5)
    _, kept = scores.risk_coverage(errors, errors > 4)
    np.testing.assert_allclose(kept[:5], 2.0)
    np.testing.assert_allclose(kept[5:], [(10 + 7 * k) / (5 + k) for k in range(1, 6)])


def test_unknown_risk_is_kept_last():
    _, kept = scores.risk_coverage([5.0, 1.0, 3.0], [np.nan, 0.2, 0.9])
    np.testing.assert_allclose(kept, [1, 2, 3])


def test_rank_correlation():
    error = np.array([0.1, 0.5, 0.2, 0.9])
    assert scores.spearman(error, np.exp(error)) == pytest.approx(1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)), ranks 1 3 2 4 against 1 2 4 3
    assert scores.spearman(error, [0, 1, 7, 2]) == pytest.approx(1 - 6 * 6 / 60)
    assert math.isnan(scores.spearman(error, np.ones(4)))


@pytest.mark.parametrize("truth", [True, False])
def test_one_class_alone_is_reported_without_warnings(truth):
    report = scores.classification_report([truth] * 5, np.linspace(0.6, 0.9, 5))
    assert math.isnan(report["auroc"])
    assert report["mcc"] == 0
    assert report["accuracy"] == truth
    assert report["prevalence"] == truth


@pytest.mark.parametrize(
    ("truth", "belief", "message"),
    [
        ([1, 0], [0.5], "one length"),
        ([], [], "non-empty"),
        ([1, 0], [0.5, np.nan], r"in \[0, 1\]"),
        ([1, 0], [0.5, 1.2], r"in \[0, 1\]"),
    ],
)
def test_refuses_values_that_are_not_probabilities(truth, belief, message):
    with pytest.raises(ValueError, match=message):
        scores.classification_report(truth, belief)


def perfect(groups, size, correlation, rng):
    """Probabilities that are right, of structures that are right or wrong together."""
    belief = np.repeat(special.expit(1.2 * rng.normal(size=groups)), size)
    shared = np.repeat(rng.normal(size=groups), size)
    own = rng.normal(size=groups * size)
    latent = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    return special.ndtr(latent) < belief, belief, np.repeat(np.arange(groups), size)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.9])
def test_perfect_probability_is_seldom_called_wrong_with_groups(correlation):
    """Nominal: 1 in 20. If groups are ignored, nearly all are called wrong."""
    rng = np.random.default_rng(3)
    off, naive, draws = 0, 0, 60
    for _ in range(draws):
        truth, belief, groups = perfect(20, 50, correlation, rng)
        ece = scores.expected_calibration_error(truth, belief)
        off += ece > scores.calibration_chance(truth, belief, groups, draws=100).most
        naive += ece > scores.calibration_chance(truth, belief, draws=100).most
    assert off <= stats.binom.ppf(0.999, draws, 0.1)
    assert naive >= 0.9 * draws or not correlation


def test_wrong_probabilities_are_called_wrong_with_groups():
    rng = np.random.default_rng(0)
    off = 0
    for _ in range(20):
        truth, belief, groups = perfect(40, 25, 0.2, rng)
        wrong = belief**3
        ece = scores.expected_calibration_error(truth, wrong)
        off += ece > scores.calibration_chance(truth, wrong, groups, draws=100).most
    assert off >= 18
