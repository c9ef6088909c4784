"""Kernel paths against scikit-learn's ridge regressions."""

import numpy as np
import pytest
import torch
from closeness import FLOAT64, NETWORK, close
from scipy.stats import rankdata
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import laplacian_kernel
from sklearn.preprocessing import StandardScaler

from uqcalc.probe.regressions import (
    LIMIT,
    KernelPaths,
    KernelShape,
    LinearPath,
    ranks,
    standardised,
)


NUMBERS, FEATURES, TREND = 5, 3, (0, 2, 3)


def shape(centres, **changes):
    return KernelShape(NUMBERS, FEATURES, centres, TREND, **changes)


def sample(rows, seed=0):
    rng = np.random.default_rng(seed)
    numbers, features = rng.normal(size=(rows, NUMBERS)), rng.normal(size=(rows, 3))
    errors = np.exp(numbers[:, 0] + 0.5 * features[:, 1] + rng.normal(size=rows))
    return numbers, features, errors


def fitted(numbers, features, errors, sizes, seed=0):
    rows = map(torch.from_numpy, (numbers, features, errors))
    return KernelPaths.fit(sizes, *rows, seed)


def read(paths, numbers, features):
    given = (torch.from_numpy(rows).float() for rows in (numbers, features))
    return [path.double().numpy() for path in paths(*given)]


def narrow(sizes, left, right):
    """The kernel of the local path, between pairs of (numbers, features)."""
    close = laplacian_kernel(left[0], right[0], 1 / (sizes.local_width * NUMBERS))
    alike = laplacian_kernel(left[1], right[1], 1 / (sizes.feature_width * FEATURES))
    return close * (1 + alike)


def by_scikit_learn(numbers, features, errors, new, sizes):
    """Return (trend, local) at ``new`` = (numbers, features)."""
    rank = (rankdata(errors) - 0.5) / len(errors) - 0.5
    some, there = numbers[:, TREND], new[0][:, TREND]
    linear = Ridge(alpha=sizes.ridge).fit(some, rank)
    gamma = 1 / (sizes.trend_width * len(TREND))
    wide = KernelRidge(alpha=sizes.trend_ridge, kernel="laplacian", gamma=gamma)
    wide.fit(some, rank)
    rest = rank - (linear.predict(some) + wide.predict(some)) / 2
    local = KernelRidge(alpha=sizes.local_ridge, kernel="precomputed")
    own = (numbers, features)
    local.fit(narrow(sizes, own, own), rest)
    trend = (linear.predict(there) + wide.predict(there)) / 2
    return trend, local.predict(narrow(sizes, new, own))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "trend_width": 2.0,
            "local_width": 0.7,
            "feature_width": 1.5,
            "local_ridge": 2.0,
        },
    ],
)
def test_both_paths_are_kernel_ridge_regressions(changes):
    data, new = sample(80), sample(40, seed=1)[:2]
    sizes = shape(80, **changes)
    ours = read(fitted(*data, sizes), *new)
    for path, expected in zip(ours, by_scikit_learn(*data, new, sizes), strict=True):
        close(path, expected, NETWORK)
        assert expected.std() > 0.01  # so that agreement has a meaning


def test_trend_is_constant_below_the_labels_and_rises_above():
    numbers, features, _ = sample(80)
    errors = numbers[:, 0]  # larger is riskier
    paths = fitted(numbers, features, errors, shape(80))
    steps = np.array([-1e3, -50.0, -LIMIT, 0.0, 20.0, 50.0, 1e3])
    rows = np.zeros((len(steps), NUMBERS))
    rows[:, 0] = steps
    trend, _ = read(paths, rows, np.zeros((len(steps), FEATURES)))
    close(trend[:2], trend[2:3].repeat(2))
    assert (np.diff(trend[2:]) > 0).all()


def test_centres_that_span_all_points_leave_nothing_out():
    """One point occurs twice, and only the copy is no centre."""
    rows = 41
    numbers, features, errors = sample(rows)
    numbers[-1], features[-1] = numbers[0], features[0]

    def left_out(seed):
        generator = torch.Generator().manual_seed(seed)
        return int(torch.randperm(rows, generator=generator)[-1])

    seed = next(seed for seed in range(1000) if left_out(seed) in {0, rows - 1})
    new = sample(30, seed=1)[:2]
    ours = read(fitted(numbers, features, errors, shape(rows - 1), seed), *new)
    exact = by_scikit_learn(numbers, features, errors, new, shape(rows))
    close(ours, exact, NETWORK)


def test_fewer_centres_are_the_subset_of_regressors():
    """Minimiser of |y - K w|² + ridge wᵀ K_cc w, by least squares on stacked rows."""
    numbers, features, errors = sample(5000)
    sizes = shape(20)
    paths = fitted(numbers, features, errors, sizes, seed=3)
    rank = (rankdata(errors) - 0.5) / len(errors) - 0.5
    some, centres = numbers[:, TREND], paths.centres.double().numpy()
    gamma = 1 / (sizes.trend_width * len(TREND))
    between = laplacian_kernel(centres[:, TREND], centres[:, TREND], gamma)
    root = np.linalg.cholesky(sizes.trend_ridge * between).T
    stacked = np.vstack([laplacian_kernel(some, centres[:, TREND], gamma), root])
    target = np.append(rank, np.zeros(20))
    weights = np.linalg.lstsq(stacked, target, rcond=None)[0]
    # centres are kept in float32
    np.testing.assert_allclose(paths.wide_weights, weights, atol=1e-3)
    # rows in pieces are rows
    whole = read(paths, numbers, features)
    pieces = [read(paths, numbers[i::2], features[i::2]) for i in (0, 1)]
    for path, (even, odd) in zip(whole, zip(*pieces, strict=True), strict=True):
        close(path[::2], even, NETWORK)
        close(path[1::2], odd, NETWORK)


def test_only_the_trend_remains_far_from_the_labels():
    numbers, features, errors = sample(200)
    paths = fitted(numbers, features, errors, shape(200))
    trend, local = read(paths, numbers + 60, features)
    np.testing.assert_allclose(local, 0, atol=1e-6)
    linear = Ridge(alpha=10.0).fit(numbers[:, TREND], ranks(torch.from_numpy(errors)))
    there = numbers[:, TREND] + 60
    # contributions in favour do not grow beyond the labels
    counted = np.where(linear.coef_ > 0, there, np.minimum(there, LIMIT))
    expected = (linear.intercept_ + counted @ linear.coef_) / 2
    np.testing.assert_allclose(trend, expected, rtol=0.02)


def test_nan_stays_nan():
    paths = fitted(*sample(30), shape(30))
    numbers, features, _ = sample(4, seed=1)
    numbers[1, 0], features[2, 0] = np.nan, np.nan
    trend, local = read(paths, numbers, features)
    np.testing.assert_array_equal(np.isnan(trend), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(local), [False, True, True, False])


def test_standardised_numbers_keep_order_and_nan():
    steps = torch.tensor([-1e4, -20.0, -1.0, 0.0, 1.0, 20.0, 1e4])
    found = standardised(2.0 + 3.0 * steps, torch.tensor(2.0), torch.tensor(3.0))
    assert (found.diff() > 0).all()
    torch.testing.assert_close(found[2:5], steps[2:5], atol=0.01, rtol=0)
    assert found.abs().max() < 60
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert standardised(bad, torch.zeros(3), torch.ones(3)).isnan().all()


def sample_of_linear(rows, width, seed=0):
    rng = np.random.default_rng(seed)
    scales = np.random.default_rng(99).lognormal(size=width)
    pooled = rng.normal(size=(rows, width)) * scales + 3.0
    errors = np.exp(pooled[:, 0] + rng.normal(size=rows))
    return pooled, errors


def read_of_linear(path, pooled):
    return path(torch.from_numpy(pooled).float()).double().numpy()


def test_it_is_the_ridge_regression_of_the_rank():
    pooled, errors = sample_of_linear(60, 80)  # fewer labels than numbers
    path = LinearPath.fit(torch.from_numpy(pooled), torch.from_numpy(errors))
    new = sample_of_linear(40, 80, seed=1)[0]
    scaler = StandardScaler().fit(pooled)
    scaler.scale_ *= np.sqrt(60 / 59)  # of a sample_of_linear
    rank = (rankdata(errors) - 0.5) / 60 - 0.5

    def standard(rows):  # nearly straight where the labels are
        return 6 * np.arcsinh(scaler.transform(rows) / 6)

    known = Ridge(alpha=80.0).fit(standard(pooled), rank)
    expected = known.predict(standard(new))
    close(read_of_linear(path, new), expected, NETWORK)
    assert expected.std() > 0.01  # so that agreement has a meaning
    # labels in another unit, or bent: the same ranks
    bent = LinearPath.fit(torch.from_numpy(pooled), torch.from_numpy(errors**0.5))
    np.testing.assert_array_equal(read_of_linear(bent, new), read_of_linear(path, new))


def test_constant_inputs_have_no_effect_and_far_order_is_kept():
    pooled, errors = sample_of_linear(60, 5)
    pooled[:, 3] = 7.0
    path = LinearPath.fit(torch.from_numpy(pooled), torch.from_numpy(errors))
    new = pooled.copy()
    new[:, 3] = 7.001
    close(read_of_linear(path, new), read_of_linear(path, pooled), NETWORK)
    away = np.array([1.0, 10.0, 1e2, 1e4])[:, None] * pooled.std(axis=0)
    steps = np.diff(read_of_linear(path, pooled.mean(axis=0) + away))
    assert np.all(steps * steps[0] > 0)
    assert steps[2] == pytest.approx(2 * steps[1], rel=0.15)  # as the logarithm
    new[0, 1] = np.nan
    assert np.isnan(read_of_linear(path, new)[0])
    assert np.isfinite(read_of_linear(path, new)[1:]).all()


def test_ranks_are_scipys_centred_and_only_the_order_matters():
    rng = np.random.default_rng(0)
    errors = rng.integers(0, 12, 50).astype(float)  # with ties
    ours = ranks(torch.from_numpy(errors)).numpy()
    close(ours, (rankdata(errors) - 0.5) / 50 - 0.5, FLOAT64)
    close(ours, -ranks(torch.from_numpy(-errors)), FLOAT64)
    np.testing.assert_array_equal(ours, ranks(torch.from_numpy(np.exp(errors))))
