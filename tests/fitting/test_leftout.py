"""Distances from the labels of other groups, against a direct computation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from probe.toys import random_prediction

from uqcalc.fitting import leftout
from uqcalc.fitting.leftout import left_out_distances
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.inputs import SHRINKAGE


WIDTH = 5


def labelled(groups):
    """Structures of three to seven random atoms with random features."""
    predictions = [
        random_prediction(3 + i % 5, WIDTH, seed=i) for i in range(len(groups))
    ]
    return Dataset(predictions, np.ones(len(groups)), list(groups), {})


def direct(data, row):
    """Largest and mean log distance, from the features of the other groups."""
    everything = torch.cat([p.features for p in data.predictions]).double().numpy()
    mean, scale = everything.mean(axis=0), everything.std(axis=0)
    standard = [(p.features.double().numpy() - mean) / scale for p in data.predictions]
    others = [i for i, g in enumerate(data.groups) if g != data.groups[row]]
    numbers = np.concatenate([data.numbers[i] for i in others])
    rows = np.concatenate([standard[i] for i in others])
    means = {z: rows[numbers == z].mean(axis=0) for z in np.unique(numbers)}
    centred = rows - np.array([means[z] for z in numbers])
    covariance = centred.T @ centred / len(rows) + SHRINKAGE * np.eye(WIDTH)
    own = standard[row] - np.array([means[z] for z in data.numbers[row]])
    squares = np.einsum("ij,jk,ik->i", own, np.linalg.inv(covariance), own) / WIDTH
    return squares.max(), np.log(squares + 1e-6).mean()


def test_they_are_those_of_statistics_without_the_group():
    data = labelled([str(i // 2) for i in range(36)])
    away = left_out_distances(data)
    for row in range(len(data)):
        largest, mean_log = direct(data, row)
        assert away.largest[row] == pytest.approx(largest, rel=1e-6)
        assert away.mean_log[row] == pytest.approx(mean_log, abs=1e-6)
        assert away.elements[row] == len(set(data.numbers[row].tolist()))


def test_an_element_of_one_group_has_no_distance():
    data = labelled([str(i) for i in range(24)])
    last = data.predictions[-1]
    numbers = np.append(last.numbers[:-1], 7)
    data.predictions[-1] = replace(last, numbers=numbers)
    away = left_out_distances(data)
    assert np.isnan(away.largest[-1])
    assert np.isnan(away.mean_log[-1])
    assert np.isfinite(away.largest[:-1]).all()


def test_many_groups_are_left_out_in_parts(monkeypatch):
    """Each structure is still left out once, with its whole group."""
    data = labelled([str(i // 2) for i in range(60)])
    exact = left_out_distances(data)
    monkeypatch.setattr(leftout, "_MOST_PARTS", 10)
    parts = left_out_distances(data)
    assert np.isfinite(parts.largest).all()
    assert np.median(abs(parts.mean_log - exact.mean_log)) < 0.2
    assert not np.array_equal(parts.mean_log, exact.mean_log)
