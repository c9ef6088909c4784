"""Labels that ship with the package: packed without damage, and complete."""

from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.geometry import find_mic

from uqcalc import Labels
from uqcalc.errors import LabelError
from uqcalc.labels.shipped import SHIPPED, STEPS, read_packed, write_packed


HALF = 2.0**-11  # largest relative rounding of half floats


def labelled(atoms: Atoms, seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms.arrays["REF_forces"] = rng.normal(scale=5, size=(len(atoms), 3))
    atoms.info["REF_energy"] = rng.normal(-5 * len(atoms))
    atoms.info["REF_stress"] = rng.normal(scale=0.1, size=6)
    atoms.info["set"] = ("first", "second")[seed % 2]
    return atoms


def crystals() -> list[Atoms]:
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    salt.rattle(0.1, seed=1)
    skewed = bulk("Cu") * (2, 2, 2)
    skewed.set_cell(skewed.cell @ [[1, 0.1, 0], [0, 0.9, 0.2], [0, 0, 1.1]], True)
    skewed.positions += [40, -70, 3]  # atoms shifted by many cells
    frames = [bulk("Zn"), salt, skewed]
    return [labelled(atoms, seed) for seed, atoms in enumerate(frames)]


@pytest.fixture
def packed(tmp_path):
    return write_packed(tmp_path / "a.safetensors", crystals(), Labels(), {})


def test_a_packed_crystal_is_the_same_crystal(packed):
    for source, frame in zip(crystals(), read_packed(packed), strict=True):
        np.testing.assert_array_equal(frame.numbers, source.numbers)
        assert frame.pbc.all()
        np.testing.assert_allclose(frame.cell.array, source.cell.array, atol=1e-6)
        moved = find_mic(frame.positions - source.positions, source.cell)[1]
        assert moved.max() < source.cell.lengths().sum() / STEPS < 3e-4
        forces = source.arrays["REF_forces"]
        np.testing.assert_allclose(frame.arrays["REF_forces"], forces, rtol=HALF)
        for key in ("REF_energy", "REF_stress"):
            np.testing.assert_allclose(frame.info[key], source.info[key], rtol=1e-6)
        assert frame.info["set"] == source.info["set"]
        for quantity in ("energy", "forces", "stress"):
            assert Labels().reference_of(frame, quantity) is not None


def test_sites_of_symmetry_stay_where_they_are(packed):
    """Thirds and halves of a cell vector; otherwise forces there would not vanish."""
    zinc = read_packed(packed)[0]
    source = bulk("Zn")
    apart = zinc.positions[1] - zinc.positions[0]
    wanted = source.positions[1] - source.positions[0]
    np.testing.assert_allclose(find_mic(apart - wanted, source.cell)[1], 0, atol=1e-6)


def test_a_damaged_file_is_refused(packed):
    content = bytearray(packed.read_bytes())
    content[-3] ^= 1
    packed.write_bytes(content)
    with pytest.raises(LabelError, match=r"checksum differs.*install uqcalc again"):
        read_packed(packed)


@pytest.mark.parametrize(
    "change",
    [
        lambda atoms: atoms.set_pbc((True, True, False)),
        lambda atoms: atoms.info.pop("REF_energy"),
        lambda atoms: atoms.info.pop("REF_stress"),
        lambda atoms: atoms.arrays.pop("REF_forces"),
    ],
    ids=["slab", "energy", "stress", "forces"],
)
def test_unsuitable_frames_are_refused(tmp_path, change):
    frames = crystals()
    change(frames[1])
    with pytest.raises(LabelError, match=r"packed frames must be .* got Atoms.*NaCl"):
        write_packed(tmp_path / "a.safetensors", frames, Labels(), {})
    assert list(tmp_path.iterdir()) == []


def test_forces_beyond_half_floats_are_refused(tmp_path):
    frames = crystals()
    frames[0].arrays["REF_forces"][0] = 7e4
    with pytest.raises(LabelError, match="must be finite"):
        write_packed(tmp_path / "a.safetensors", frames, Labels(), {})


def test_the_crystals_of_the_package_are_physical():
    """Forces sum to zero in each crystal, which they would not in another order."""
    chosen = SHIPPED["pbe-crystals"]
    frames = chosen.frames()
    sets = Counter(frame.info["set"] for frame in frames)
    assert len(sets) == 6
    assert min(sets.values()) > 400
    assert set(chosen.near) < set(sets)
    assert max(map(len, frames)) <= 40
    assert len({frame.info["formula"] for frame in frames}) > 2000
    net = [np.abs(frame.arrays["REF_forces"].sum(axis=0)).max() for frame in frames]
    rounding = [
        1e-3 + HALF * np.abs(f.arrays["REF_forces"]).sum(axis=0).max() for f in frames
    ]
    assert np.mean(np.array(net) < rounding) > 0.98
    hot = [f.info["REF_stress"][:3].mean() for f in frames if "TP" in f.info["set"]]
    assert np.mean(np.array(hot) < 0) > 0.6  # most of these cells are compressed
