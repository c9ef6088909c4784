"""Bonds, valences and breaking bonds: closed forms, and intact molecules."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

from uqcalc.geometry.bonds import BONDED, FARTHEST, SINGLE, BondFinder, Bonds
from uqcalc.geometry.broken import broken_bonds
from uqcalc.geometry.surroundings import Geometry


def arrays(atoms: Atoms) -> Geometry:
    return Geometry(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


def bonds(atoms: Atoms, find: BondFinder | None = None) -> Bonds:
    found = (find or BondFinder())(arrays(atoms))
    assert found is not None
    return found


def drawn(name: str, still: int, far: int, factor: float) -> Atoms:
    """A molecule with one terminal atom at ``factor`` times its distance."""
    atoms = molecule(name)
    length = atoms.get_distance(still, far)
    atoms.set_distance(still, far, factor * length, fix=0)
    return atoms


def ice(periodic: bool) -> Atoms:
    atoms = molecule("CH3CH2OH", cell=[4.6, 5.1, 4.9], pbc=periodic)
    atoms.set_cell([[4.6, 0, 0], [1.5, 5.1, 0], [0.3, 0.4, 4.9]])
    return atoms


@pytest.mark.parametrize("periodic", [False, True])
def test_pairs_are_those_of_another_search(periodic):
    atoms = ice(periodic)
    found = bonds(atoms)
    i, j, apart = neighbor_list("ijd", atoms, 4.0)
    near = apart <= FARTHEST * SINGLE[atoms.numbers[i], atoms.numbers[j]]
    listed = found.stretch <= FARTHEST
    assert 2 * listed.sum() == near.sum()
    np.testing.assert_allclose(
        np.repeat(np.sort(found.distances[listed]), 2), np.sort(apart[near])
    )


def test_an_atom_is_a_partner_of_its_own_images_on_both_sides():
    atoms = Atoms("C", cell=[1.4, 9, 9], pbc=[True, False, False])
    assert bonds(atoms).partners.tolist() == [2]


def test_the_result_does_not_depend_on_the_structures_before():
    find, atoms = BondFinder(), ice(True)
    random = np.random.default_rng(5)
    for _ in range(25):
        atoms.positions += random.normal(size=(len(atoms), 3)) * 0.03
        seen, fresh = bonds(atoms, find), bonds(atoms)
        np.testing.assert_allclose(seen.lacks, fresh.lacks, atol=1e-12)
        assert broken_bonds(seen).reasons == broken_bonds(fresh).reasons


@pytest.mark.parametrize(
    ("name", "atom", "order"),
    [("C2H6", 0, 1.0), ("C2H4", 0, 2.0), ("C2H2", 0, 3.0), ("C6H6", 0, 1.5)],
)
def test_orders_are_those_of_textbooks(name, atom, order):
    atoms = molecule(name)
    found = bonds(atoms)
    carbon = (atoms.numbers[found.first] == 6) & (atoms.numbers[found.second] == 6)
    mine = carbon & (found.stretch < BONDED)
    assert found.order[mine][atom] == pytest.approx(order, abs=0.25)
    assert abs(found.lacks).max() < 0.35


@pytest.mark.parametrize(
    ("name", "still", "far"), [("CH3OH", 1, 3), ("H2O", 0, 1), ("H3CNH2", 0, 1)]
)
def test_a_drawn_bond_is_named(name, still, far):
    assert not broken_bonds(bonds(molecule(name))).reasons
    for factor in (1.3, 1.6, 2.5):
        found = broken_bonds(bonds(drawn(name, still, far, factor)))
        assert found.reasons
        assert far in found.atoms


def test_a_shared_proton_is_named_with_its_two_partners():
    atoms = Atoms("OHO", [[0, 0, 0], [1.2, 0, 0], [2.4, 0, 0]])
    [reason, *_] = broken_bonds(bonds(atoms)).reasons
    assert "H1 is between O0 and O2 (1.2 Å and 1.2 Å)" in reason


def test_hydrogen_bonds_do_not_count_as_breaking():
    dimer = molecule("H2O") + molecule("H2O")
    dimer.positions[3:] += [0, 2.9, 0]
    assert not broken_bonds(bonds(dimer)).reasons


@pytest.mark.parametrize("atoms", [bulk("Cu"), bulk("NaCl", "rocksalt", a=5.64)])
def test_metals_and_salts_have_no_bonds_that_break(atoms):
    found = BondFinder()(arrays(atoms))
    assert found is None or not broken_bonds(found).reasons
