"""P of a region from its surroundings and its atoms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from uqcalc.defaults import shipped_probe
from uqcalc.probe.regions import is_shareable, region_reliability


CARD = shipped_probe("default").card


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


def shared(around, atoms, inside, card=CARD):
    chosen = torch.tensor(list(inside))
    return float(region_reliability(card, tensor(around), tensor(atoms), chosen))


@pytest.mark.parametrize("around", [0.02, 0.5, 0.97])
def test_all_atoms_have_p_of_the_surroundings(around):
    found = shared(around, np.linspace(0.2, 0.9, 7), range(7))
    assert found == pytest.approx(around, abs=1e-6)


def test_better_atoms_have_a_larger_p_and_worse_ones_a_smaller():
    atoms = [0.95] * 5 + [0.3] * 5
    good, bad = shared(0.6, atoms, range(5)), shared(0.6, atoms, range(5, 10))
    assert bad < 0.6 < good
    few = shared(0.6, atoms, [0])
    assert 0.6 < few < 1
    assert math.isnan(shared(0.6, [math.nan, 0.5], [0]))
    assert math.isnan(shared(math.nan, [0.4, 0.5], [0]))


def test_fewer_equal_atoms_have_p_nearer_to_one_half():
    """The error of few atoms scatters more, so P is nearer to 1/2."""
    atoms = [0.9] * 40
    sure = [shared(0.97, atoms, range(n)) for n in (40, 20, 5, 1)]
    assert sure == sorted(sure, reverse=True)
    unsure = [shared(0.03, atoms, range(n)) for n in (40, 5, 1)]
    assert unsure == sorted(unsure)


def test_the_calibration_of_atoms_gives_median_and_scatter():
    """The residual of the log error is logistic, with the slope of the log-odds."""
    ours = CARD.atom_calibration
    for boundary in (0.1, 0.2, 0.4):
        logit = tensor(-ours.shift(boundary))  # P = 1/2 at this boundary
        assert float(ours.middle(logit)) == pytest.approx(boundary, rel=1e-6)
    moved = CARD.calibration.moved(tensor(0.3), tensor([CARD.boundary, 0.5]))
    assert float(moved[0]) == pytest.approx(0.3, abs=1e-6)
    assert float(moved[1]) == pytest.approx(0.3 + CARD.calibration.shift(0.5))
    assert ours.log_variance > CARD.calibration.log_variance > 0


def test_adapted_probe_shifts_p_on_its_own_scale():
    system = ((-2.0, -3.0), (2.0, 0.0))
    adapted = shipped_probe("default").card.calibration
    adapted = type(adapted).from_dict(adapted.to_dict() | {"system": system})
    raw = tensor(0.4)
    at_own = adapted.adapted(raw)
    expected = adapted.adapted(raw + adapted.shift(0.3))
    assert float(adapted.moved(at_own, tensor([0.3]))[0]) == pytest.approx(
        float(expected), abs=1e-6
    )


def test_a_card_without_probabilities_of_atoms_has_none_of_regions():
    assert is_shareable(CARD)
    bare = shipped_probe("default").with_card(atom_calibration=None, atom_floor=None)
    assert not is_shareable(bare.card)
