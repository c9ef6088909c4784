"""The rule of regimes on structures whose regime is known."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule

from uqcalc.errors import LabelError
from uqcalc.geometry.environments import Coordination
from uqcalc.geometry.regimes import (
    REGIMES,
    open_directions,
    regime_of,
    stated_regime,
    stated_temperature,
)
from uqcalc.geometry.surroundings import Geometry


def arrays(atoms):
    return Geometry(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


def regime(atoms, force=0.2, *, breaking=False, fragments=0, **more):
    forces = np.zeros((len(atoms), 3))
    forces[:, 0] = force
    geometry = arrays(atoms)
    contacts = Coordination()(geometry)[1]
    more |= {"breaking": breaking, "fragments": fragments}
    return regime_of(geometry, forces, contacts, **more)


def slab():
    return fcc111("Cu", (2, 2, 3), vacuum=8.0, periodic=True)


def test_each_regime_has_a_structure():
    copper, ethanol = bulk("Cu", cubic=True), molecule("CH3CH2OH")
    dense = bulk("Cu", cubic=True)
    dense.set_cell(dense.cell * 0.7, scale_atoms=True)
    pressed = np.array([20.0, 0, 0, 0, 0, 0]) * units.GPa
    uneven = copper.repeat(2)
    uneven.positions[0] += [0.7, 0.7, 0]
    found = {
        "relaxed": regime(copper, 0.01),
        "near-equilibrium": regime(copper),
        "hot": regime(copper, 1.5),
        "strained": regime(dense),
        "surface": regime(slab()),
        "cluster": regime(ethanol, fragments=2),
        "reactive": regime(ethanol, breaking=True, fragments=1),
        "random": regime(uneven, 2.0),
    }
    assert found == {name: name for name in REGIMES}
    assert regime(copper, stress=pressed) == "strained"
    assert regime(ethanol, fragments=1) == "near-equilibrium"
    assert regime(ethanol, 1.5, fragments=1) == "near-equilibrium"  # bonds are stiff
    assert regime(ethanol, temperature=600.0, fragments=1) == "hot"
    assert regime(copper, 1.5, temperature=300.0) == "near-equilibrium"


@pytest.mark.parametrize(
    ("atoms", "count"),
    [
        (bulk("Cu"), 0),
        (slab(), 1),
        (fcc111("Cu", (2, 2, 3), vacuum=None), 1),
        (molecule("H2O", vacuum=8.0), 3),
        (Atoms("Cu", cell=[2.5, 9, 9], pbc=True), 2),
    ],
)
def test_vacuum_counts_as_open_with_and_without_a_period(atoms, count):
    assert open_directions(arrays(atoms)) == count
    atoms = atoms.copy()
    atoms.positions += [1.7, 2.9, 3.1]
    assert open_directions(arrays(atoms)) == count


def test_info_names_regime_and_temperature():
    assert stated_regime({"regime": "melt"}) == "melt"
    assert stated_regime({}) is None
    with pytest.raises(LabelError, match="must be a name such as relaxed"):
        stated_regime({"regime": 3})
    assert stated_temperature({"temperature": np.float64(300)}) == 300.0
    assert stated_temperature({"temperature": "hot"}) is None
