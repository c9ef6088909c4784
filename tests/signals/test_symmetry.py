"""Forces that vanish by symmetry, against forces of potentials with random shapes.

The independent route: a sum of pair, triplet and embedded energies with random radial
functions has only the symmetry of the structure. So its forces vanish exactly where
those of every potential vanish.
"""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule
from ase.neighborlist import primitive_neighbor_list
from ase.spacegroup import crystal

from uqcalc.geometry.surroundings import surroundings
from uqcalc.signals.symmetry import MOST_ATOMS, forces_vanish


def vanish(atoms: Atoms) -> bool:
    args = atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc
    return forces_vanish(*args, surroundings(*args, 6.0).nearest)


def largest_force(atoms: Atoms, seed: int = 0) -> float:
    """The largest |dE/dr| of a random many-body energy, by central differences."""
    rng = np.random.default_rng(seed)
    strength = {z: rng.uniform(0.5, 1.5) for z in {*atoms.numbers.tolist()}}
    reach, phase = 5.5, rng.uniform(0, 6)

    def energy(positions):
        i, j, d, apart = primitive_neighbor_list(
            "ijdD", atoms.pbc, atoms.cell.complete().array, positions, reach
        )
        w = np.array([strength[z] for z in atoms.numbers[j]])
        f = w * (1 - (d / reach) ** 2) ** 3 * np.sin(2.1 * d + phase)
        total = 0.0
        for atom in range(len(atoms)):  # sums over triplets, as a tensor of order 3
            mine = i == atom
            unit = apart[mine] / d[mine, None]
            third = np.einsum("n,na,nb,nc->abc", f[mine], unit, unit, unit)
            total += strength[atoms.numbers[atom]] * (
                f[mine].sum() + (third**2).sum() + 0.3 * f[mine].sum() ** 2
            )
        return total

    step, worst = 1e-4, 0.0
    for atom in range(len(atoms)):
        for axis in range(3):
            up, down = atoms.positions.copy(), atoms.positions.copy()
            up[atom, axis] += step
            down[atom, axis] -= step
            worst = max(worst, abs(energy(up) - energy(down)) / (2 * step))
    return worst


def chain(*shifts):
    atoms = Atoms(f"C{len(shifts)}", cell=[2.6, 0, 0], pbc=[True, False, False])
    atoms.positions[:, 0] = shifts
    return atoms


def rutile(u):
    return crystal(
        ["Ti", "O"],
        [(0, 0, 0), (u, u, 0)],
        spacegroup=136,
        cellpar=[4.6] * 2 + [2.95] + [90] * 3,
    )


STRUCTURES = {
    "fcc": (bulk("Cu"), True),
    "rocksalt": (bulk("NaCl", "rocksalt", a=5.64), True),
    "diamond, no inversion at a site of zincblende": (
        bulk("GaAs", "zincblende", a=5.65),
        True,
    ),
    "hcp": (bulk("Mg"), True),
    "far apart": (bulk("W") * 1, True),
    "rutile: oxygen is free along a diagonal": (rutile(0.305), False),
    "wurtzite: a polar axis": (bulk("ZnS", "wurtzite", a=3.8, c=6.2), False),
    "one layer": (graphene(vacuum=None), True),
    "a slab: both surfaces": (fcc111("Cu", (1, 1, 3), vacuum=6.0), False),
    "an even chain": (chain(0.0, 1.3), True),
    "a chain of pairs": (chain(0.0, 1.2), False),
    "a molecule": (molecule("CH4"), False),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_forces_of_any_potential_vanish_exactly_there(name):
    atoms, by_symmetry = STRUCTURES[name]
    forces = [largest_force(atoms, seed) for seed in (0, 1)]
    assert (max(forces) < 1e-6) == by_symmetry
    assert vanish(atoms) == by_symmetry


def test_displaced_atoms_are_free_and_round_off_is_not():
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.positions += 0.4
    atoms.rattle(2e-4, seed=0)
    assert vanish(atoms)
    atoms.rattle(0.02, seed=1)
    assert not vanish(atoms)


def test_no_neighbours_no_force():
    assert vanish(Atoms("N"))
    assert vanish(bulk("W", a=14.0))
    assert not vanish(Atoms("N2", positions=[[0, 0, 0], [0, 0, 9.0]]))


def test_large_structures_use_the_fast_test():
    atoms = bulk("Cu", cubic=True) * 6
    assert len(atoms) > MOST_ATOMS
    assert vanish(atoms)
    atoms.positions[7] += [0.02, 0, 0]
    assert not vanish(atoms)


@pytest.mark.parametrize("times", [(2, 1, 1), (2, 2, 1), (1, 1, 3), (3, 2, 1)])
def test_a_supercell_is_as_symmetric_as_its_cell(times):
    """The lattice lacks rotations of the crystal; the forces still vanish."""
    for cell in (bulk("Si"), bulk("Mg"), bulk("ZnS", "zincblende", 5.41)):
        assert vanish(cell)
        assert vanish(cell.repeat(times))
    polar = bulk("GaN", "wurtzite", a=3.19, c=5.19)
    assert not vanish(polar.repeat(times))
