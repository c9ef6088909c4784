"""Streamed moments against numpy on everything at once."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from closeness import FLOAT64, close
from probe.toys import random_prediction

from uqcalc.probe.moments import CHUNK, CHUNK_ATOMS, Moments, chunks


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
    """Dead channels with a bias: equal, or equal to single precision."""
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
