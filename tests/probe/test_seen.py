"""A geometry is recognised after files and round-off, and no other one is."""

import io

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
from builders import rattled
from probe.toys import ToyBackbone

from uqcalc import Labels
from uqcalc.errors import LabelError
from uqcalc.labels.defects import drop_leaks, find_defects
from uqcalc.probe.seen import Seen, geometry_hashes


def slab():
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
    atoms.set_pbc([True, True, False])
    return atoms


STRUCTURES = [
    *(rattled(name, seed=k, amount=0.1) for name in ("H2O", "C6H6") for k in range(40)),
    *(bulk("NaCl", "rocksalt", a=5.4 + 0.02 * k).repeat(2) for k in range(10)),
    *(bulk("Cu", a=3.5 + 0.01 * k) for k in range(10)),
    molecule("H2"), Atoms("H"), slab(),
]  # fmt: skip
for _k, _atoms in enumerate(STRUCTURES):
    if len(_atoms) > 10:
        _atoms.rattle(0.05, seed=_k)


@pytest.fixture(scope="module")
def seen():
    return Seen(
        np.unique(geometry_hashes(STRUCTURES, range(len(STRUCTURES)))), np.empty(0, int)
    )


def written(atoms):
    text = io.StringIO()
    write(text, atoms, format="extxyz")
    text.seek(0)
    return read(text, format="extxyz")


def single(atoms):
    copy = atoms.copy()
    copy.positions = copy.positions.astype(np.float32)
    copy.set_cell(np.asarray(copy.cell.array, dtype=np.float32))
    return copy


def moved(atoms):
    copy = atoms.copy()
    copy.rotate(37, (1, 2, 3), rotate_cell=True)
    copy.positions += [0.3, -7.0, 1.1]
    return copy


def wrapped(atoms):
    copy = atoms.copy()
    copy.positions += 0.4 * copy.cell.array.sum(axis=0) * copy.pbc
    copy.wrap()
    return copy


def noisy(atoms):
    copy = atoms.copy()
    copy.rattle(1e-6, seed=3)
    return copy


@pytest.mark.parametrize("change", [written, single, moved, wrapped, noisy])
def test_the_same_structure_is_known_again(seen, change):
    again = [change(atoms) for atoms in STRUCTURES]
    assert seen.frames(again, range(len(again))) == list(range(len(again)))


def test_others_are_not(seen):
    assert len(seen.geometries) == len(STRUCTURES)
    others = []
    for atoms in STRUCTURES:
        if len(atoms) > 2:
            copy = atoms.copy()
            copy.rattle(5e-3, seed=1)
            others.append(copy)
    others += [bulk("Cu", a=3.505), bulk("Ni", a=3.5), molecule("N2"), Atoms("He")]
    other = slab()
    other.set_pbc(True)
    assert seen.frames([*others, other], range(len(others) + 1)) == []
    assert Seen.nothing().frames(STRUCTURES, range(3)) == []


def test_groups_are_known_by_key_and_name():
    from uqcalc.probe.seen import group_hash

    kept = Seen(np.empty(0, int), np.array([group_hash("molecule", "H2O")]))
    assert kept.names("molecule", ["NH3", "H2O", "H2O"]) == ["H2O"]
    assert kept.names("run", ["H2O"]) == kept.names(None, ["H2O"]) == []
    again = Seen.from_tensors(kept.tensors())
    assert again.names("molecule", ["H2O"]) == ["H2O"]
    assert len(Seen.from_tensors({}).geometries) == 0


def test_frames_through_a_file_are_duplicates_and_leaks():
    """With rounding at 1e-6 Å, about one in some hundred frames was not recognised."""
    again = [written(single(atoms)) for atoms in STRUCTURES]
    for atoms in (*STRUCTURES, *again):
        atoms.info["REF_energy"] = 0.0
    rows = list(range(len(STRUCTURES), 2 * len(STRUCTURES)))
    found = find_defects([*STRUCTURES, *again], ToyBackbone(), Labels("energy"))
    assert found.rows == {"duplicate": rows}
    with pytest.raises(LabelError, match=f"got {len(rows)} in two of them"):
        drop_leaks([again, STRUCTURES], ())
    turned = [moved(atoms) for atoms in STRUCTURES]
    with pytest.raises(LabelError, match=f"got {len(rows)} in two of them"):
        drop_leaks([turned, STRUCTURES], ())
    # broken frames are refused, not compared
    odd = [STRUCTURES[0].copy(), bulk("Cu")]
    odd[0].positions[0] = np.nan
    odd[1].set_cell([[1, 0, 0], [2, 0, 0], [0, 0, 1]])
    assert drop_leaks([odd, odd], ()) == [set(), set()]
