"""Plain numbers of structures and atoms: closed forms, order, batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa
from closeness import NETWORK, close
from probe.toys import random_prediction
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from uqcalc.fitting.stacking import learn_numbers, standard_and_distances
from uqcalc.probe.inputs import Moments, Statistics
from uqcalc.probe.numbers import ATOM_NAMES, NAMES, PlainNumbers, stress_numbers


WIDTH = 6
ENERGIES = np.linspace(0, -3, 119)


def structures(count, *, most=9, seed=0):
    return [
        random_prediction(2 + i % (most - 1), WIDTH, seed=1000 * seed + i)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def learnt():
    predictions = structures(200)
    moments = Moments(predictions)
    statistics = Statistics(WIDTH)
    statistics.learn(predictions, moments, ENERGIES)
    plain = PlainNumbers(WIDTH)
    learn_numbers(plain, predictions, moments, statistics, ENERGIES)
    return predictions, statistics, plain


def describe(learnt, predictions, *, raw=False):
    _, statistics, plain = learnt
    given = standard_and_distances(predictions, statistics)
    call = plain.raw if raw else plain
    return call(plain.host(predictions, ENERGIES), *given, statistics)


def test_two_atoms_in_closed_form(learnt):
    predictions, statistics, plain = learnt
    pair = replace(
        random_prediction(2, WIDTH, seed=77),
        numbers=np.array([8, 1]),
        forces=np.array([[3.0, 0, 4.0], [0, -12.0, 0]]),
        energy=-9.0,
    )
    found = describe(learnt, [pair], raw=True)
    mean = statistics.feature_mean.double().numpy()
    scale = statistics.feature_scale.double().numpy()
    x = (pair.features.double().numpy() - mean) / scale
    everything = torch.cat([p.features for p in predictions]).double().numpy()
    everything = (everything - mean) / scale
    numbers = np.concatenate([p.numbers for p in predictions])
    centres = {z: everything[numbers == z].mean(axis=0) for z in (1, 6, 8)}
    apart = everything - np.stack([centres[z] for z in numbers])
    inverse = np.linalg.inv(apart.T @ apart / len(apart) + 1e-3 * np.eye(WIDTH))
    rigid = np.linalg.inv(
        everything.T @ everything / len(everything) + 1e-3 * np.eye(WIDTH)
    )

    def form(row, matrix):
        return row @ matrix @ row / WIDTH

    d = [form(x[i] - centres[z], inverse) for i, z in enumerate((8, 1))]
    r = [form(row, rigid) for row in x]
    e = x @ plain.energy_weights.double().numpy()
    middle = x.mean(axis=0)
    counts = [np.sum(numbers == z) for z in (8, 1)]
    whole = np.log(form(middle, rigid))
    forces = np.array([5.0, 12.0])
    expected = {
        "energy_per_atom": (-9.0 - ENERGIES[8] - ENERGIES[1]) / 2,
        "log_atoms": np.log(2),
        "log_rms_force": np.log(np.sqrt(169 / 6) + 1e-3),
        "log_largest_force": np.log(12.001),
        "log_median_force": np.log(8.501),
        "mean_log_force": np.log(forces + 1e-3).mean(),
        "elements": 2,
        "composition_entropy": np.log(2),
        "mean_number": 4.5,
        "spread_of_numbers": 3.5,
        "smallest_number": 1,
        "largest_number": 8,
        "log_rarest_element": np.log(min(counts) + 1),
        "log_mean_distance": np.log(np.mean(d)),
        "log_largest_distance": np.log(max(d)),
        "log_mean_rigidity": np.log(np.mean(r)),
        "log_largest_rigidity": np.log(max(r)),
        "log_smallest_rigidity": np.log(min(r)),
        "spread_of_atomic_energies": abs(e[0] - e[1]) / 2,
        "largest_atomic_energy": max(e),
        "smallest_atomic_energy": min(e),
        "log_rigidity_of_mean": whole,
        "log_distance_of_mean": np.log(
            form(middle - (centres[8] + centres[1]) / 2, inverse)
        ),
        "log_rigidity_of_sum": whole + 2 * np.log(2),
    }
    assert list(expected) == list(NAMES)
    ours = dict(zip(NAMES, found.numbers[0].tolist(), strict=True))
    assert ours == pytest.approx(expected, abs=2e-4)
    atoms = np.column_stack([np.log(forces + 1e-3), np.log(d), np.log(r), e])
    assert ATOM_NAMES == ("log_force", "log_distance", "log_rigidity", "atomic_energy")
    np.testing.assert_allclose(found.atoms, atoms, atol=2e-4)
    spread = np.abs(x[0] - x[1]) / 2
    close(found.pooled[0], np.concatenate([middle, spread]), NETWORK)
    assert found.distance.item() == pytest.approx(max(d), rel=1e-4)


def test_learned_scales_standardise_the_labels(learnt):
    predictions = learnt[0]
    found = describe(learnt, predictions)
    raw = describe(learnt, predictions, raw=True)
    for ours, rows in ((found.numbers, raw.numbers), (found.atoms, raw.atoms)):
        expected = (rows - rows.mean(dim=0)) / rows.std(dim=0)
        constant = rows.std(dim=0) < 1e-6
        expected[:, constant] = 0
        torch.testing.assert_close(
            ours, 6 * torch.asinh(expected / 6), atol=1e-4, rtol=1e-3
        )
    # principal components: scikit-learn's, to their signs, each of variance 1
    pooled = raw.pooled.double().numpy()
    top = min(16, 2 * WIDTH)
    known = PCA(top, whiten=True).fit_transform(pooled)
    ours = found.components[:, :top].double().numpy()
    signs = np.sign((ours * known).sum(axis=0))
    np.testing.assert_allclose(ours, (known * signs).clip(-6, 6), rtol=0.01, atol=1e-3)
    assert not found.components[:, top:].any()
    second = (found.atom_features.T @ found.atom_features) / len(found.atom_features)
    expected = np.diag([1.0] * WIDTH + [0.0] * (16 - WIDTH))
    np.testing.assert_allclose(second, expected, atol=0.01)


def test_atomic_energies_are_ridge_regression_of_the_total(learnt):
    predictions, statistics, plain = learnt
    sums = [statistics.features(p.features).sum(dim=0).numpy() for p in predictions]
    rest = [p.energy - ENERGIES[p.numbers].sum() for p in predictions]
    known = Ridge(alpha=10.0, fit_intercept=False).fit(np.stack(sums), rest)
    np.testing.assert_allclose(plain.energy_weights, known.coef_, rtol=1e-3, atol=1e-4)


def test_a_ragged_batch_is_each_structure_by_itself(learnt):
    predictions = [*structures(12, seed=5), random_prediction(1, WIDTH, seed=9)]
    sizes = [len(p.numbers) for p in predictions]
    together = describe(learnt, predictions)
    alone = [describe(learnt, [p]) for p in predictions]
    for name in together._fields:
        pieces = torch.cat([getattr(one, name) for one in alone])
        # the spread over one atom is the root of a difference of equals: sqrt(epsilon)
        bound = 1e-2 if name in {"numbers", "pooled", "components"} else 1e-4
        torch.testing.assert_close(
            getattr(together, name), pieces, rtol=1e-4, atol=bound
        )
    assert len(together.atoms) == sum(sizes)


def test_the_order_of_atoms_does_not_matter(learnt):
    for seed in range(5):
        before = random_prediction(7, WIDTH, seed=400 + seed)
        order = np.random.default_rng(seed).permutation(7)
        after = replace(
            before,
            numbers=before.numbers[order],
            forces=before.forces[order],
            features=before.features[torch.from_numpy(order)],
        )
        first, second = describe(learnt, [before]), describe(learnt, [after])
        for name in ("numbers", "pooled", "distance"):
            torch.testing.assert_close(
                getattr(first, name), getattr(second, name), rtol=1e-4, atol=1e-4
            )
        for name in ("atoms", "atom_features"):
            close(getattr(first, name)[order], getattr(second, name), NETWORK)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_overflows_stay_nan(learnt, value):
    broken, whole = random_prediction(4, WIDTH, seed=1), random_prediction(3, WIDTH)
    expected = describe(learnt, [whole])
    broken.features[2, 3] = value
    found = describe(learnt, [broken, whole])
    assert found.numbers[0].isnan().any()
    assert found.atoms.isnan().any(dim=1).tolist() == [False] * 2 + [True] + [False] * 4
    torch.testing.assert_close(
        found.numbers[1:], expected.numbers, rtol=1e-4, atol=1e-4
    )


def test_numbers_of_the_stress_do_not_depend_on_cell_choice_or_rotation():
    """A pressure of 2 GPa has its closed form; a rotated supercell has the same."""
    solid = replace(
        structures(1)[0], cell=np.diag([3.0, 4.0, 5.0]), pbc=np.ones(3, bool)
    )
    squeezed = {"stress": np.array([-2.0, -2.0, -2.0, 0, 0, 0]) * GPa}
    found = stress_numbers(replace(solid, results=squeezed))
    volume = 60 / len(solid.numbers)
    wanted = [np.log(s * GPa + 1e-4) for s in (2 / np.sqrt(3), 2)]
    assert np.allclose(found, [*wanted, np.arcsinh(2), np.log(volume)], rtol=1e-5)

    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 3))
    matrix += matrix.T
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    doubled = replace(
        solid,
        numbers=np.tile(solid.numbers, 2),
        cell=np.diag([6.0, 4.0, 5.0]) @ turn.T,
        results={"stress": full_3x3_to_voigt_6_stress(turn @ matrix @ turn.T)},
    )
    plain = replace(solid, results={"stress": full_3x3_to_voigt_6_stress(matrix)})
    assert np.allclose(stress_numbers(doubled), stress_numbers(plain), rtol=1e-5)
    assert np.isnan(stress_numbers(solid)).all()  # no stress
    film = replace(plain, pbc=np.array([True, True, False]))
    assert np.isnan(stress_numbers(film)).all()
