"""The linear path against scikit-learn's ridge regression, ranks against scipy's."""

import numpy as np
import pytest
import torch
from closeness import FLOAT64, NETWORK, close
from scipy.stats import rankdata
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from uqcalc.probe.regressions import LinearPath, ranks


def sample(rows, width, seed=0):
    rng = np.random.default_rng(seed)
    scales = np.random.default_rng(99).lognormal(size=width)
    pooled = rng.normal(size=(rows, width)) * scales + 3.0
    errors = np.exp(pooled[:, 0] + rng.normal(size=rows))
    return pooled, errors


def read(path, pooled):
    return path(torch.from_numpy(pooled).float()).double().numpy()


def test_it_is_the_ridge_regression_of_the_rank():
    pooled, errors = sample(60, 80)  # fewer labels than numbers
    path = LinearPath.fit(torch.from_numpy(pooled), torch.from_numpy(errors))
    new = sample(40, 80, seed=1)[0]
    scaler = StandardScaler().fit(pooled)
    scaler.scale_ *= np.sqrt(60 / 59)  # of a sample
    rank = (rankdata(errors) - 0.5) / 60 - 0.5

    def standard(rows):  # nearly straight where the labels are
        return 6 * np.arcsinh(scaler.transform(rows) / 6)

    known = Ridge(alpha=80.0).fit(standard(pooled), rank)
    expected = known.predict(standard(new))
    close(read(path, new), expected, NETWORK)
    assert expected.std() > 0.01  # or agreement would say nothing
    # labels in another unit, or bent: the same ranks
    bent = LinearPath.fit(torch.from_numpy(pooled), torch.from_numpy(errors**0.5))
    np.testing.assert_array_equal(read(bent, new), read(path, new))


def test_what_never_varied_says_nothing_and_far_away_the_order_is_kept():
    pooled, errors = sample(60, 5)
    pooled[:, 3] = 7.0
    path = LinearPath.fit(torch.from_numpy(pooled), torch.from_numpy(errors))
    new = pooled.copy()
    new[:, 3] = 7.001
    close(read(path, new), read(path, pooled), NETWORK)
    away = np.array([1.0, 10.0, 1e2, 1e4])[:, None] * pooled.std(axis=0)
    steps = np.diff(read(path, pooled.mean(axis=0) + away))
    assert np.all(steps * steps[0] > 0)
    assert steps[2] == pytest.approx(2 * steps[1], rel=0.15)  # as the logarithm
    new[0, 1] = np.nan
    assert np.isnan(read(path, new)[0])
    assert np.isfinite(read(path, new)[1:]).all()


def test_ranks_are_scipys_centred_and_only_the_order_matters():
    rng = np.random.default_rng(0)
    errors = rng.integers(0, 12, 50).astype(float)  # with ties
    ours = ranks(torch.from_numpy(errors)).numpy()
    close(ours, (rankdata(errors) - 0.5) / 50 - 0.5, FLOAT64)
    close(ours, -ranks(torch.from_numpy(-errors)), FLOAT64)
    np.testing.assert_array_equal(ours, ranks(torch.from_numpy(np.exp(errors))))
