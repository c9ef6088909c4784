"""Coordination of the labels: counts of known crystals, and atoms outside them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase.build import bulk, molecule

from uqcalc.geometry.environments import FEWEST, Coordination, Environments
from uqcalc.geometry.surroundings import Geometry


def arrays(atoms):
    return Geometry(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


@pytest.mark.parametrize(
    ("atoms", "partners"),
    [
        (bulk("Cu"), [12]),
        (bulk("Si"), [4, 4]),
        (bulk("Fe"), [14]),
        (molecule("CH4"), [4, 1, 1, 1, 1]),
    ],
)
def test_partners_are_those_of_textbooks(atoms, partners):
    found, contacts = Coordination()(arrays(atoms))
    assert found.tolist() == partners
    assert (contacts < 1.25).all()


def test_labels_are_inside_their_own_limits_and_others_outside():
    frames = []
    for seed in range(FEWEST):
        frames.append(bulk("Cu", cubic=True))
        frames[-1].rattle(0.05, seed=seed)
    seen = Environments.of(map(arrays, frames))
    again = Environments.from_dict(json.loads(json.dumps(seen.to_dict())))

    def unseen(atoms, limits=again):
        geometry = arrays(atoms)
        return limits.unseen(geometry.numbers, *Coordination()(geometry))

    assert not any(unseen(atoms) for atoms in frames)
    dense, sparse, hole = (bulk("Cu", cubic=True).repeat(2) for _ in range(3))
    dense.set_cell(dense.cell * 0.8, scale_atoms=True)
    sparse.set_cell(sparse.cell * 1.5, scale_atoms=True)
    del hole[0]
    assert "closer neighbour" in str(unseen(dense))
    assert "no neighbour as close" in str(unseen(sparse))
    [(why, atoms)] = unseen(hole)
    assert "fewer partners" in why
    assert len(atoms) == 12
    few = Environments.of(map(arrays, frames[: FEWEST - 1]))
    assert not unseen(dense, few), "too few labels say nothing of what is unusual"
    assert np.isfinite(seen.ranges["Cu"].contacts).all()
