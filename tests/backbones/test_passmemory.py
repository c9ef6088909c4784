"""Structures that would fill the memory are refused; realistic ones are not."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list

from uqcalc.backbones.passmemory import Costs, check_load, neighbours
from uqcalc.errors import BackboneError


MACE = (5.0, Costs(bins=5.0))
CHGNET = (6.0, Costs(triple=1.2e5, angles=3.0))
RNG = np.random.default_rng(0)


def skew(atoms):
    strain = np.array([[1, 0.3, 0.1], [0, 1, 0.2], [0, 0, 1]])
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return atoms


def film():
    atoms = fcc111("Cu", (4, 4, 5), vacuum=10)
    atoms.pbc = (True, True, False)
    return atoms


def half(name, **options):
    atoms = bulk(name, cubic=True, **options)
    atoms.set_cell(atoms.cell * 0.5, scale_atoms=True)
    return atoms


def cloud(atoms, sigma):
    return Atoms(["H"] * atoms, positions=RNG.normal(0, sigma, (atoms, 3)))


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("C", cubic=True),
        bulk("C", cubic=True) * 3,
        skew(bulk("Cu") * (2, 3, 7)),
        film(),
        molecule("C60"),
        half("C"),
        cloud(1500, 8.0),
        cloud(800, 0.5),
    ],
    ids=["diamond", "supercell", "skew", "film", "C60", "half", "droplet", "collapsed"],
)
def test_pairs_are_about_as_many_as_a_neighbour_list_finds(atoms):
    found = len(neighbor_list("i", atoms, 5.0))
    assert found / 2.5 < neighbours(atoms, 5.0) < found * 2.5


def box(atoms, side):
    return Atoms(
        ["O"] * atoms, RNG.uniform(0, side, (atoms, 3)), cell=[side] * 3, pbc=True
    )


def tube():
    height = np.repeat(np.linspace(-150, 150, 150), 20)
    angle = np.tile(np.linspace(0, 6, 20), 150)
    return Atoms(["C"] * 3000, np.c_[8 * np.cos(angle), 8 * np.sin(angle), height])


SOUND = {
    "a box of 30 000 atoms": lambda: box(30_000, 67.0),
    "a slab under 300 Å of vacuum": lambda: fcc111("Cu", (4, 4, 9), vacuum=150),
    "a droplet": lambda: cloud(3000, 12.0),
    "a tube of 300 Å": tube,
    "a molecule in a large box": lambda: Atoms(
        "H2O", molecule("H2O").positions, cell=[300] * 3, pbc=True
    ),
    "diamond": lambda: bulk("C", cubic=True) * 4,
    "diamond under pressure": lambda: bulk("C", a=2.9, cubic=True) * 4,
    "one atom": lambda: Atoms("H"),
}


@pytest.mark.parametrize("model", [MACE, CHGNET], ids=["mace", "chgnet"])
@pytest.mark.parametrize("name", SOUND)
def test_realistic_structures_are_accepted(name, model):
    check_load(SOUND[name](), *model)


def far(distance, direction=(0, 0, 1)):
    atoms = molecule("CH3OH")
    away = distance * np.array(direction)
    return atoms + Atoms("H", positions=[away])


LOST = {
    "an atom 200 Å away": lambda: far(200),
    "an atom 1e6 Å away": lambda: far(1e6, (1, 1, 1)),
    "a molecule far from the origin": lambda: far(0).__class__(
        "H2", positions=[[500, 500, 500], [500, 500, 500.7]]
    ),
    "a box of a micrometre": lambda: Atoms(
        "H2", [[0, 0, 0], [0, 0, 0.7]], cell=[1e4] * 3, pbc=True
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_scattered_structures_are_refused(name):
    with pytest.raises(BackboneError, match=r"fit in memory.* GB; remove atoms that"):
        check_load(LOST[name](), *MACE)
    check_load(LOST[name](), 5.0, Costs())  # a list without bins needs little memory


@pytest.mark.parametrize(
    ("atoms", "model"),
    [
        (lambda: half("Cu") * (2, 1, 1), CHGNET),
        (lambda: half("C"), CHGNET),
        (lambda: half("Cu") * 6, MACE),
        (lambda: cloud(1000, 0.5), MACE),
    ],
    ids=["copper at half", "diamond at half", "many at half", "collapsed"],
)
def test_far_too_dense_structures_are_refused(atoms, model):
    with pytest.raises(BackboneError, match=r"neighbours within .* GB; give lengths"):
        check_load(atoms(), *model)


def test_a_backbone_refuses_before_its_pass():
    from backbones.toys import mace_on_shared_models

    from uqcalc import tap

    backbone = tap(mace_on_shared_models())
    with pytest.raises(BackboneError, match="must fit in memory"):
        backbone(far(200), ["energy"])
    assert backbone.passes == 0
