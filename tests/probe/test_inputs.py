"""Inputs of the network, compared with closed forms and scikit-learn."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.geometry import wrap_positions
from builders import salt
from closeness import FLOAT32, FLOAT64, NETWORK, close
from probe.toys import Cohesion, random_prediction
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance

from uqcalc.probe.inputs import (
    CHUNK,
    CHUNK_ATOMS,
    SCALARS,
    Moments,
    Ragged,
    Statistics,
    chunks,
    host_scalars,
    raw_scalars,
)


ENERGIES = np.linspace(0, -3, 119)


def scalars_of(atoms, shift=0.0):
    atoms.calc = Cohesion()
    energy = atoms.get_potential_energy() + shift
    return host_scalars(atoms.numbers, energy, squares(atoms.get_forces()), ENERGIES)


def squares(forces):
    return (forces**2).sum(axis=1)


def test_host_scalars_closed_form():
    forces = np.array([[3.0, 0, 4.0], [0, 0, 0]])
    ours = host_scalars(np.array([1, 8]), -7.0, squares(forces), ENERGIES)
    rest = (-7.0 - ENERGIES[1] - ENERGIES[8]) / 2
    expected = [rest, *np.log([2, np.sqrt(25 / 6) + 1e-3, 5 + 1e-3])]
    close(ours, expected)
    assert ours.dtype == np.float32


def test_host_scalars_depend_on_neither_orientation_nor_order():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=2)
    before = scalars_of(atoms)
    moved = atoms[np.random.default_rng(0).permutation(len(atoms))]
    moved.rotate(40, (1, 2, 3))
    moved.translate((5, 6, 7))
    close(scalars_of(moved), before)


def test_host_scalars_stay_in_range_when_the_system_grows():
    """Doubling a crystal changes only the size."""
    atoms = salt()
    atoms.positions[:] = wrap_positions(atoms.positions, atoms.cell)
    forces = np.random.default_rng(0).normal(size=(len(atoms), 3))
    one = host_scalars(atoms.numbers, -30.0, squares(forces), ENERGIES)
    two = host_scalars(
        np.tile(atoms.numbers, 2), -60.0, np.tile(squares(forces), 2), ENERGIES
    )
    close(two - one, [0, np.log(2), 0, 0], of=one)
    prediction = random_prediction(8, 3)
    given = [prediction.energy, 8]
    close(raw_scalars(prediction, np.zeros(119)), given, FLOAT32)


def learnt(structures=40, width=5, *, numbers=None):
    """Statistics of correlated random features, and these features."""
    # correlated, but far from singular: the shrinkage of 1e-3 must not matter much
    mixing = np.eye(width) + 0.2 * np.random.default_rng(9).normal(size=(width, width))
    predictions = []
    for seed in range(structures):
        plain = random_prediction(3 + seed % 7, width, seed=seed)
        known = (
            plain.numbers if numbers is None else np.full(len(plain.numbers), numbers)
        )
        features = plain.features @ torch.from_numpy(mixing).float() + 3
        features[:, 0] += torch.from_numpy(known) / 4
        predictions.append(replace(plain, numbers=known, features=features))
    statistics = Statistics(width)
    statistics.learn(predictions, Moments(predictions), ENERGIES)
    host = np.stack(
        [
            host_scalars(p.numbers, p.energy, squares(p.forces), ENERGIES)
            for p in predictions
        ]
    )
    sizes = [len(p.numbers) for p in predictions]
    index = torch.from_numpy(np.concatenate([p.numbers for p in predictions]))
    features = torch.cat([p.features for p in predictions])
    return statistics, features, index, torch.from_numpy(host), sizes


def test_learning_standardises():
    statistics, features, index, host, sizes = learnt()
    standard = statistics.features(features)
    nothing, ones = np.zeros(standard.shape[1]), np.ones(standard.shape[1])
    close(standard.mean(dim=0), nothing, of=standard)
    close(standard.std(dim=0, correction=0), ones)
    distances = statistics.distances(standard, index)
    scalars = statistics.scalars(host, distances, sizes)
    assert scalars.shape == (len(sizes), SCALARS)
    close(scalars.mean(dim=0), np.zeros(SCALARS), of=scalars)
    close(scalars.std(dim=0), np.ones(SCALARS))


SHRINKAGE = 1e-3


def shortened(covariance):
    """Largest share by which the shrinkage shortens squared distances."""
    least = np.linalg.eigvalsh(covariance)[0]
    return SHRINKAGE / (least + SHRINKAGE)


def test_distance_is_mahalanobis_for_one_element():
    statistics, features, index, _, _ = learnt(numbers=8)
    rows = features.double().numpy()
    known = EmpiricalCovariance().fit(rows)
    distances = statistics.distances(statistics.features(features), index).numpy()
    scale = rows.std(axis=0)
    covariance = np.cov(rows / scale, rowvar=False, ddof=0)
    ratio = distances * 5 / known.mahalanobis(rows)
    assert ratio.max() < 1 + NETWORK
    assert ratio.min() > 1 - shortened(covariance) - NETWORK
    # exact once the shrinkage (in standardised units) is in the covariance
    inverse = np.linalg.inv(covariance + SHRINKAGE * np.eye(5))
    centre = rows.mean(axis=0) / scale
    exact = [mahalanobis(row / scale, centre, inverse) ** 2 / 5 for row in rows]
    close(distances, exact, NETWORK)


def test_each_element_has_its_own_centre_and_all_one_covariance():
    statistics, features, index, _, _ = learnt()
    standard = statistics.features(features)
    distances = statistics.distances(standard, index)
    within = []
    for z in index.unique():
        mine = standard[index == z]
        at_centre = mine.mean(dim=0, keepdim=True)
        assert statistics.distances(at_centre, z[None]).item() < 1e-9
        within.append(mine - at_centre)
    pooled = torch.cat(within)
    short = shortened((pooled.T @ pooled / len(pooled)).numpy()) + NETWORK
    # the mean squared distance per dimension is 1 by construction
    assert 1 - short < distances.mean().item() < 1 + NETWORK
    whitened = pooled @ statistics.whitening
    np.testing.assert_allclose(
        whitened.T @ whitened / len(pooled), np.eye(5), atol=short
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_clamp_keeps_overflows_as_nan(value):
    statistics, features, index, host, sizes = learnt()
    features[0, 2] = value
    distances = statistics.distances(statistics.features(features), index)
    scalars = statistics.scalars(host, distances, sizes)
    assert scalars[0].isnan().any()
    assert scalars[1:].isfinite().all()
    host[1, 0] = value if value != 1e30 else torch.inf
    assert statistics.scalars(host, distances, sizes)[1, 0].isnan()


def test_far_out_stays_finite():
    statistics, features, index, host, sizes = learnt()
    host[0] = 1e6
    distances = statistics.distances(statistics.features(features * 1e4), index)
    scalars = statistics.scalars(host, distances, sizes)
    assert scalars.isfinite().all()
    assert scalars.abs().max() <= 10


def structures(count, *, offset=0.0):
    made = [random_prediction(1 + i % 4, 3, seed=i) for i in range(count)]
    found = []
    for prediction in made:
        features = prediction.features.double() + offset
        features[:, 1] += 0.3 * features[:, 0]
        features[:, 2] = 7.0  # constant
        found.append(replace(prediction, features=features))
    return found


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_are_those_of_all_rows_at_once(offset):
    predictions = structures(CHUNK + 100, offset=offset)  # more than are held at once
    moments = Moments(predictions)
    rows = np.concatenate([p.features.numpy() for p in predictions])
    numbers = np.concatenate([p.numbers for p in predictions])
    assert moments.atoms == len(rows)
    close(moments.mean, rows.mean(axis=0), FLOAT64, of=rows)
    scale = rows.std(axis=0)
    scale[2] = 1.0
    np.testing.assert_allclose(moments.scale, scale, rtol=1e-6)
    standard = (rows - rows.mean(axis=0)) / scale
    np.testing.assert_allclose(
        moments.uncentred, standard.T @ standard / len(rows), atol=1e-6
    )
    within = np.zeros((3, 3))
    for z in np.unique(numbers):
        mine = standard[numbers == z]
        assert moments.counts[z] == len(mine)
        np.testing.assert_allclose(
            moments.element_mean[z], mine.mean(axis=0), atol=1e-8
        )
        centred = mine - mine.mean(axis=0)
        within += centred.T @ centred / len(rows)
    np.testing.assert_allclose(moments.within, within, atol=1e-6)
    absent = np.setdiff1d(np.arange(119), numbers)
    assert not moments.element_mean[absent].any()


@pytest.mark.parametrize("constant", [0.37, 1234.5])
def test_rounding_is_not_taken_for_a_feature_that_varies(constant):
    """Constant channels with a bias: equal, or equal to single precision."""
    rng = np.random.default_rng(0)
    predictions = []
    for i in range(2 * CHUNK):
        features = torch.from_numpy(rng.normal(size=(20, 3))).float()
        features[:, 0] = constant
        features[:, 1] = constant * (1 + 1e-7 * features[:, 1])
        predictions.append(replace(random_prediction(20, 3, seed=i), features=features))
    moments = Moments(predictions)
    assert moments.scale[:2].tolist() == [1.0, 1.0]
    assert moments.scale[2] == pytest.approx(1.0, abs=0.02)
    assert torch.linalg.eigvalsh(moments.within).min() > -1e-6


def test_chunks_are_everything_in_order():
    rows = [SimpleNamespace(numbers=np.ones(2, int)) for _ in range(2 * CHUNK + 1)]
    pieces = list(chunks(rows))
    assert [row for piece in pieces for row in piece] == rows
    assert [len(piece) for piece in pieces] == [CHUNK, CHUNK, 1]


def test_large_structures_come_fewer_at_a_time():
    rows = [SimpleNamespace(numbers=np.ones(CHUNK_ATOMS // 2, int)) for _ in range(5)]
    assert [len(piece) for piece in chunks(rows)] == [2, 2, 1]


HOW = {"mean": np.mean, "max": np.max, "min": np.min}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("sizes", [[4], [1], [3, 1, 5, 2]])
def test_reductions_equal_loops(how, sizes):
    rows = np.random.default_rng(0).normal(size=(sum(sizes), 3))
    ragged = Ragged(sizes, torch.device("cpu"))
    found = getattr(ragged, how)(torch.from_numpy(rows))
    pieces = np.split(rows, np.cumsum(sizes)[:-1])
    expected = np.stack([HOW[how](piece, axis=0) for piece in pieces])
    close(found, expected, FLOAT64)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("sizes", [[4], [2, 4, 1]])
def test_not_a_number_stays_in_its_structure(how, sizes):
    rows = torch.zeros(sum(sizes), 1)
    rows[3] = torch.nan  # the last of four, or in the middle of the second structure
    found = getattr(Ragged(sizes, torch.device("cpu")), how)(rows)
    expected = [True] if len(sizes) == 1 else [False, True, False]
    assert found[:, 0].isnan().tolist() == expected
