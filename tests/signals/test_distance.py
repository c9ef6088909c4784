"""Array-level distances and rigidity, against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closeness import FLOAT64, NETWORK, close
from scipy.optimize import minimize_scalar
from signals.cases import gaussian_atoms
from sklearn.covariance import LedoitWolf
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct
from sklearn.neighbors import NearestNeighbors

from uqcalc.signals.distance import (
    AtomSample,
    Mahalanobis,
    Neighbours,
    shrunk_covariance,
)
from uqcalc.signals.rigidity import Rigidity


WIDTH = 6
COUNTS = {1: 400, 6: 300, 8: 10}  # oxygen is too rare for a covariance of its own


def standard(features):
    rows = features.numpy()
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)


@pytest.mark.parametrize("count", [4, 40, 4000])
def test_shrunk_covariance_is_that_of_scikit_learn(count):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, WIDTH)) * np.logspace(-1, 1, WIDTH)
    rows -= rows.mean(axis=0)
    expected = LedoitWolf(assume_centered=True).fit(rows).covariance_
    got = shrunk_covariance(torch.from_numpy(rows)).numpy()
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    close(got / scale, expected / scale, FLOAT64)


def test_mahalanobis_is_that_of_scikit_learn():
    numbers, features = gaussian_atoms(COUNTS, WIDTH)
    distance = Mahalanobis.fit(numbers, features)
    assert len(distance.whitening) == 3  # the shared covariance, and two separate ones
    new_numbers, new = gaussian_atoms(COUNTS, WIDTH, seed=1)
    got = distance(new_numbers, new).numpy()
    centre, scale = features.numpy().mean(axis=0), features.numpy().std(axis=0)
    rows, others = standard(features), (new.numpy() - centre) / scale
    within = np.concatenate(
        [rows[numbers == z] - rows[numbers == z].mean(axis=0) for z in COUNTS]
    )
    for z in COUNTS:
        own = rows[numbers == z] - rows[numbers == z].mean(axis=0)
        data = within if z == 8 else own
        fit = LedoitWolf(assume_centered=True).fit(data)
        apart = others[new_numbers == z] - rows[numbers == z].mean(axis=0)
        expected = np.sqrt(fit.mahalanobis(apart) / WIDTH)
        close(got[new_numbers == z], expected, NETWORK)


@pytest.mark.parametrize("nearest", [1, 7, 50])
def test_neighbours_are_those_of_scikit_learn(nearest):
    numbers, features = gaussian_atoms(COUNTS, WIDTH)
    distance = Neighbours.fit(numbers, features, nearest=nearest)
    new_numbers, new = gaussian_atoms(COUNTS, WIDTH, seed=1)
    got = distance(new_numbers, new).numpy()
    centre, scale = features.numpy().mean(axis=0), features.numpy().std(axis=0)
    rows, others = standard(features), (new.numpy() - centre) / scale
    for z, count in COUNTS.items():
        fit = NearestNeighbors(n_neighbors=min(nearest, count)).fit(rows[numbers == z])
        expected = fit.kneighbors(others[new_numbers == z])[0].mean(axis=1)
        expected /= np.sqrt(WIDTH)
        close(got[new_numbers == z], expected, NETWORK)


@pytest.mark.parametrize("kind", [Mahalanobis, Neighbours])
def test_distances_are_about_one_in_the_fit_and_nan_for_other_elements(kind):
    numbers, features = gaussian_atoms({1: 2000, 6: 2000}, WIDTH)
    fitted, new = numbers[:2000], numbers[2000:].copy()
    distance = kind.fit(fitted, features[:2000])
    at_home = distance(new, features[2000:]).numpy()
    assert 0.3 < np.median(at_home) < 1.3
    moved = distance(new, features[2000:] + 10 * features.std(dim=0)).numpy()
    assert np.median(moved) > 5 * np.median(at_home)
    new[:3] = 79
    abroad = distance(new, features[2000:]).numpy()
    assert np.isnan(abroad[:3]).all()
    close(abroad[3:], at_home[3:], NETWORK)
    poisoned = features[2000:].clone()
    poisoned[5, 2] = torch.nan
    with_nan = distance(numbers[2000:], poisoned).numpy()
    assert np.isnan(with_nan).tolist() == [i == 5 for i in range(2000)]


@pytest.mark.parametrize("kind", [Mahalanobis, Neighbours])
def test_change_of_a_constant_feature_is_detected(kind):
    numbers, features = gaussian_atoms({6: 500}, WIDTH)
    features[:, 0] = 3.0
    distance = kind.fit(numbers, features)
    assert torch.isfinite(distance(numbers, features)).all()
    changed = features.clone()
    changed[:, 0] += 10 * float(features.std(dim=0).max())
    assert (distance(numbers, changed) > 2 * distance(numbers, features)).all()


def test_sampled_atoms_are_few_and_uniform():
    chosen = np.zeros(400)
    for seed in range(300):
        sample = AtomSample(per_element=20, seed=seed)
        for start in range(0, 400, 25):  # a stream of structures
            identity = torch.arange(start, start + 25).float()[:, None]
            sample.add(np.full(25, 6), identity)
        sample.add(np.array([1, 1]), torch.zeros(2, 1))
        numbers, rows = sample.arrays()
        assert np.bincount(numbers)[[1, 6]].tolist() == [2, 20]
        kept = rows[numbers == 6, 0].long().numpy()
        assert len(set(kept.tolist())) == 20
        chosen[kept] += 1
    assert sample.seen == {6: 400, 1: 2}
    # 300 draws of 20 in 400: 15 each; first, middle and last quarter alike
    quarters = chosen.reshape(4, 100).mean(axis=1)
    np.testing.assert_allclose(quarters, 15.0, atol=4 * np.sqrt(15 / 100))


def sums(count=60, *, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, WIDTH)) * rng.integers(1, 9, (count, 1)) + 1.0
    return torch.from_numpy(rows)


def test_rigidity_is_the_variance_of_bayesian_linear_regression():
    """Posterior variance of a Gaussian process with a dot product for kernel."""
    rows, new = sums(), sums(seed=1).numpy()
    zeta2 = 0.01
    rigidity = Rigidity.fit(rows.T @ rows, len(rows), zeta2)
    scale = np.sqrt((rows.numpy() ** 2).mean(axis=0))
    noise = zeta2 * len(rows)
    kernel = DotProduct(0.0, "fixed")
    process = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
    process.fit(rows.numpy() / scale, np.zeros(len(rows)))
    _, deviation = process.predict(new / scale, return_std=True)
    expected = deviation**2 / zeta2  # the process's noise is zeta^2 per structure
    got = rigidity(torch.from_numpy(new)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert rigidity.scaled(3.0)(torch.from_numpy(new)) == pytest.approx(9 * got)


def test_rigidity_grows_away_from_the_fit_and_with_the_size():
    rows = sums()
    rigidity = Rigidity.fit(rows.T @ rows, len(rows))
    one = rigidity(rows)
    close(rigidity(8 * rows), 64 * one, FLOAT64)
    repeated = Rigidity.fit(2 * rows.T @ rows, 2 * len(rows))
    torch.testing.assert_close(repeated(rows), one)  # alpha includes the count
    direction = torch.linalg.svd(rows).Vh  # the last one is farthest from the fit
    length = rows.norm(dim=1).mean()
    first, last = rigidity(length * direction[[0, -1]])
    assert last > 3 * first


def test_alpha_is_of_maximum_likelihood():
    rows, held = sums(), sums(200, seed=3)
    errors = torch.from_numpy(np.random.default_rng(4).standard_t(3, size=200))
    rigidity = Rigidity.fit(rows.T @ rows, len(rows))
    variances = rigidity(held).numpy()

    def loss(log_alpha):
        full = np.exp(2 * log_alpha) * variances
        return np.mean(np.log(full) + errors.numpy() ** 2 / full)

    best = np.exp(minimize_scalar(loss, options={"xtol": 1e-12}).x)
    got = float(rigidity.scaled(7.0).calibrated(held, errors).alpha2.sqrt())
    assert got == pytest.approx(best, rel=1e-6)
