"""The closest contact of a structure that moves, compared with a full search."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, make_supercell

from uqcalc.geometry.surroundings import Geometry, SamePairs, surroundings


REACH = 5.0


def arrays(atoms):
    return Geometry(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


def salt(periodic):
    tilted = [[3, 1, 0], [0, 4, 0], [0, 0, 3]]
    atoms = make_supercell(bulk("NaCl", "rocksalt", a=5.6, cubic=True), tilted)
    atoms.pbc = periodic
    return atoms


@pytest.mark.parametrize("periodic", [True, False, [True, False, True]])
def test_is_the_same_along_a_run(periodic):
    atoms, pairs, quick = salt(periodic), SamePairs(), 0
    random = np.random.default_rng(3)
    drift = random.normal(size=(len(atoms), 3)) * 0.02
    for step in range(60):
        atoms.positions += drift + random.normal(size=drift.shape) * 0.005
        if step == 40:
            atoms.wrap()
        full = surroundings(*arrays(atoms), REACH)
        found = pairs.closest(arrays(atoms), REACH)
        if found is None:
            pairs.remember(arrays(atoms), full)
            continue
        quick += 1
        contact, atom = found
        assert contact == pytest.approx(full.contacts.min(), rel=1e-12)
        assert full.contacts[atom] == pytest.approx(contact, rel=1e-12)
    assert quick > 30


def remembered(atoms):
    """Return pairs that were listed for this structure."""
    pairs = SamePairs()
    for _ in range(2):
        pairs.remember(arrays(atoms), surroundings(*arrays(atoms), REACH))
    assert pairs.closest(arrays(atoms), REACH) is not None
    return pairs


def test_two_atoms_that_meet_within_the_skin_are_seen():
    atoms = salt(periodic=True)
    pairs = remembered(atoms)
    first, second = 0, int(surroundings(*arrays(atoms), REACH).partners[0])
    apart = atoms.get_distance(first, second, mic=True, vector=True)
    atoms.positions[first] += 0.29 * apart / np.linalg.norm(apart)
    atoms.positions[second] -= 0.29 * apart / np.linalg.norm(apart)
    contact, _ = pairs.closest(arrays(atoms), REACH)
    full = surroundings(*arrays(atoms), REACH).contacts.min()
    assert contact == pytest.approx(full, rel=1e-12)


def changed_cell(atoms):
    atoms.cell[0, 0] *= 0.9


def changed_element(atoms):
    atoms.numbers[0] = 3


def moved_far(atoms):
    atoms.positions[7] += [0.2, 0.2, 0.2]


def turned_open(atoms):
    atoms.pbc = [False, True, True]


@pytest.mark.parametrize(
    "change", [changed_cell, changed_element, moved_far, turned_open]
)
def test_pairs_of_another_structure_are_not_used(change):
    atoms = salt(periodic=True)
    pairs = remembered(atoms)
    change(atoms)
    assert pairs.closest(arrays(atoms), REACH) is None


def test_atom_that_may_have_left_needs_a_full_search():
    atoms = salt(periodic=False)
    atoms.positions[0] -= 1.2 * np.ones(3)
    nearest = surroundings(*arrays(atoms), REACH).nearest[0]
    assert 4.0 < nearest < REACH
    pairs = remembered(atoms)
    atoms.positions[0] -= 0.16 * np.ones(3)
    reach = nearest + 0.1
    assert pairs.closest(arrays(atoms), reach) is None
