"""Cross-fitting: groups stay whole, and each is judged by a fit without it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from probe.toys import random_prediction
from scipy.special import expit

from uqcalc.errors import LabelError
from uqcalc.fitting.crossfit import cross_fit, group_folds, stack
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.stacked import StackedOutput
from uqcalc.statistics import scores


@given(
    st.lists(st.integers(0, 12), min_size=3, max_size=120),
    st.integers(2, 4),
    st.integers(0, 5),
)
def test_folds_never_divide_a_group_and_are_balanced(names, folds, seed):
    groups = [str(name) for name in names]
    known = sorted(set(groups))
    if len(known) < folds:
        with pytest.raises(LabelError, match=f"at least {folds} groups, got"):
            group_folds(groups, folds, seed)
        return
    fold = group_folds(groups, folds, seed)
    homes = [
        {int(f) for f, g in zip(fold, groups, strict=True) if g == name}
        for name in known
    ]
    assert all(len(home) == 1 for home in homes)
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.min() > 0
    # largest first, to the smallest fold: the excess is at most one group
    assert sizes.max() - sizes.min() <= max(groups.count(name) for name in known)
    np.testing.assert_array_equal(fold, group_folds(groups, folds, seed))


class Spy:
    """A probe that gives the groups of its fit, instead of a probability."""

    def __init__(self, data):
        self.groups = set(data.groups)
        self.seen = {id(prediction) for prediction in data.predictions}
        self.elements = {int(z) for p in data.predictions for z in p.numbers}

    def unseen_elements(self, numbers):
        return sorted(set(numbers.tolist()) - self.elements)

    def path_output(self, predictions):
        known = [float(id(p) in self.seen) for p in predictions]
        energies = torch.tensor([p.energy for p in predictions])
        atoms = torch.cat(
            [torch.full((len(p.numbers),), p.energy) for p in predictions]
        )
        parts = torch.tensor(known)[:, None].expand(-1, 3)
        one = torch.ones_like(energies)
        return StackedOutput(parts, atoms, energies, -energies, one)


def test_each_structure_is_read_once_by_a_probe_without_its_group():
    made = [random_prediction(1 + (7 * i) % 5, 2, seed=i) for i in range(60)]
    predictions = [replace(p, energy=float(i)) for i, p in enumerate(made)]
    groups = [str(i // 4) for i in range(60)]
    data = Dataset(predictions, np.ones(60), groups, {})
    spies = []

    def fit(part):
        spies.append(Spy(part))
        return spies[-1]

    unseen = cross_fit(data, 3, 0, fit)
    assert len(spies) == 3
    for spy in spies:  # a group is completely in the fit or not at all
        rows = [i for i in range(60) if id(predictions[i]) in spy.seen]
        assert {groups[i] for i in rows} == spy.groups
        assert len(rows) == 4 * len(spy.groups)
    np.testing.assert_array_equal(unseen.rows, np.arange(60))
    assert not unseen.paths.any()
    np.testing.assert_array_equal(unseen.distance, np.arange(60))
    np.testing.assert_array_equal(unseen.mean_log_distance, -np.arange(60))
    for i, atoms in enumerate(unseen.atoms):
        np.testing.assert_array_equal(atoms, np.full(len(predictions[i].numbers), i))


def test_structures_without_a_probability_do_not_count():
    """Structures with an element that no other group has; refused if most are such."""
    predictions = [random_prediction(4, 2, seed=i) for i in range(60)]
    for i, z in ((5, 26), (6, 26), (40, 79)):  # 5 and 6 are of one group
        predictions[i].numbers[0] = z
    groups = [str(i // 3 if i in (5, 6) else 100 + i) for i in range(60)]
    groups[6] = groups[5]
    data = Dataset(predictions, np.ones(60), groups, {})
    unseen = cross_fit(data, 3, 0, Spy)
    np.testing.assert_array_equal(unseen.rows, np.setdiff1d(np.arange(60), [5, 6, 40]))
    assert len(unseen.atoms) == len(unseen.paths) == 57
    for i in range(31):
        predictions[i].numbers[:] = 20 + i
    with pytest.raises(
        LabelError, match=r"got 32 of 60 structures with an element that no"
    ):
        cross_fit(data, 3, 0, Spy)


def simulated(weights, count=20_000, seed=0):
    """Paths of very different scale, and labels drawn from their weighted sum."""
    rng = np.random.default_rng(seed)
    paths = rng.normal(size=(count, 3)) * [5.0, 0.1, 1.0] + [3.0, 0, -1]
    logits = (paths - paths.mean(axis=0)) @ np.asarray(weights) + 0.4
    return paths, rng.random(count) < expit(logits)


def test_stacking_recovers_the_weights_that_made_the_labels():
    weights = np.array([0.2, 12.0, 0.5])
    found = stack(*simulated(weights))
    np.testing.assert_allclose(found, weights, rtol=0.08)


def test_path_with_a_negative_weight_gets_zero():
    paths, reliable = simulated([0.2, 12.0, -1.0])
    found = stack(paths, reliable)
    assert found[2] == 0
    assert (found[:2] > 0).all()
    for seed in range(20):  # few labels with little information
        paths, reliable = simulated([0.2, 8.0, 0.0], count=60, seed=seed)
        assert (stack(paths, reliable) >= 0).all()


def test_few_labels_give_similar_paths_similar_weights():
    """Two similar paths, one with a little more noise: both keep a weight."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40)
    paths = np.column_stack([truth + s * rng.normal(size=40) for s in (0.3, 0.32, 0.3)])
    share = stack(paths, truth > 0) * paths.std(axis=0)
    assert share.min() > 0.1 * share.max()


def test_paths_that_rank_backwards_are_refused():
    paths, reliable = simulated([0.2, 12.0, 0.5])
    with pytest.raises(LabelError, match="rank held-out structures better than chance"):
        stack(-paths, reliable)


def test_noise_gets_little_weight():
    rng = np.random.default_rng(1)
    paths, reliable = rng.normal(size=(4000, 3)), rng.random(4000) < 0.5
    weights = stack(paths, reliable)
    assert np.std(paths @ weights) < 0.1
    assert abs(scores.auroc(reliable, paths @ weights) - 0.5) < 0.03
