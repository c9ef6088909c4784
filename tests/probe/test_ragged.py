"""Reductions over the atoms of each structure, against loops."""

import numpy as np
import pytest
import torch
from closeness import FLOAT64, close

from uqcalc.probe.ragged import Ragged


HOW = {"mean": np.mean, "max": np.max, "min": np.min}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("sizes", [[4], [1], [3, 1, 5, 2]])
def test_reductions_are_loops(how, sizes):
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
