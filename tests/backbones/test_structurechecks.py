"""The checks of a structure work in a run, where most of them are not repeated."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from backbones.toys import mace_on_shared_models

from uqcalc import tap
from uqcalc.backbones.passmemory import LITTLE, Costs, check_load
from uqcalc.errors import BackboneError


def _flat(atoms):
    atoms.cell[2] = atoms.cell[0]


def _dense(atoms):
    atoms.cell *= 0.02


def _nan(atoms):
    atoms.positions[1, 2] = np.nan


def _without_mass(atoms):
    atoms.set_masses([0.0, 12.0])


def _foreign(atoms):
    atoms.numbers[0] = 92


def _ghost(atoms):
    atoms.numbers[0] = 0


@pytest.fixture(scope="module")
def backbone():
    return tap(mace_on_shared_models())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_flat, "must span"),
        (_dense, "must hold at most"),
        (_nan, "must be finite"),
        (_without_mass, "masses must be positive"),
        (_foreign, "elements must be among"),
        (_ghost, "atomic numbers must be"),
    ],
)
def test_a_change_in_a_run_is_refused(backbone, spoil, said):
    atoms = bulk("C")
    for _ in range(3):
        atoms.positions += 0.01
        backbone.check_structure(atoms)
    spoil(atoms)
    for _ in range(2):
        with pytest.raises(BackboneError, match=said):
            backbone.check_structure(atoms)


def test_a_collapse_in_small_steps_is_refused(backbone):
    """Each step is below the displacement at which the estimate is repeated."""
    rng = np.random.default_rng(0)
    atoms = bulk("C", cubic=True) * 6
    atoms.pbc = False
    backbone.check_structure(atoms)
    centre = atoms.positions.mean(axis=0)
    away = atoms.positions - centre
    steps = [
        centre + share * away + rng.normal(0, 0.01, away.shape)
        for share in np.linspace(1, 0.01, 150)
    ]

    def collapse():
        for positions in steps:
            atoms.positions = positions
            backbone.check_structure(atoms)

    with pytest.raises(BackboneError, match="neighbours within"):
        collapse()
    # the plain estimate refuses the same structure
    with pytest.raises(BackboneError):
        check_load(atoms, backbone.cutoff, backbone.costs)


def test_the_estimate_is_a_share_of_the_limit():
    atoms = bulk("C") * 2
    atoms.pbc = False
    costs = Costs(pair=LITTLE / len(atoms) ** 2 / 4)
    assert check_load(atoms, 3.0, costs) == pytest.approx(0.25)
