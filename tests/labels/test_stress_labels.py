"""Labels of stress and of relative energies, and frames that are left out."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.stress import voigt_6_to_full_3x3_stress
from closeness import FLOAT64, close
from toys import ToyBackbone

from uqcalc import Labels, LabelWarning
from uqcalc.errors import LabelError
from uqcalc.labels.dataset import build_dataset


STRESS = Labels("stress", stress_key="stress")


def reference():
    """Return copper of another theory."""
    return LennardJones(sigma=2.28, epsilon=0.42, rc=7.0, smooth=True)


def strained(count=4, *, size=1):
    """Return frames of copper with a stress in the results, as a file has it."""
    frames = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        atoms = bulk("Cu", cubic=True) * (size, 1, 1)
        atoms.set_cell(atoms.cell * rng.uniform(0.95, 1.05), scale_atoms=True)
        atoms.rattle(0.05, seed=seed)
        atoms.calc = reference()
        atoms.get_stress()
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        frames.append(atoms)
    return frames


def passes(frames, cache, labels):
    """Return the dataset and the number of passes that it took."""
    backbone = ToyBackbone(EMT())
    data = build_dataset(frames, backbone, labels, cache=cache)
    return data, backbone.passes


def test_errors_of_stress_are_those_of_the_calculators(tmp_path):
    frames = strained()
    data, _ = passes(frames, None, STRESS)
    for error, frame in zip(data.errors, frames, strict=True):
        alone = frame.copy()
        alone.calc = EMT()
        away = alone.get_stress() - frame.get_stress()
        close(error, np.linalg.norm(voigt_6_to_full_3x3_stress(away)) / 3, FLOAT64)
    cached, _ = passes(frames, tmp_path / "features", STRESS)
    close(cached.errors, data.errors, FLOAT64)


def test_forces_and_stress_share_one_evaluation(tmp_path):
    frames, cache = strained(), tmp_path / "features"
    forces = Labels("forces", forces_key="forces")
    assert passes(frames, cache, forces)[1] == 4
    # stored without stress: all four again, and two for the check of the cache
    first, count = passes(frames, cache, STRESS)
    assert count == 4
    again, count = passes(frames, cache, STRESS)
    assert count == 2
    close(again.errors, first.errors, FLOAT64)
    assert passes(frames, cache, forces)[1] == 2


def test_a_supercell_has_the_error_of_its_cell():
    [cell] = strained(1)
    large = cell * (2, 1, 1)
    large.info["REF_stress"] = cell.get_stress()
    cell.info["REF_stress"] = cell.get_stress()
    data, _ = passes([cell, large], None, Labels("stress"))
    close(data.errors[0], data.errors[1], 1e-9)


def test_frames_without_a_cell_have_no_stress():
    slab = strained(1)[0]
    slab.pbc = (True, True, False)
    water = molecule("H2O")
    water.info["stress"] = np.zeros(6)
    frames = [*strained(2), slab, water]
    wanted = r"no stress: 2 \(frames 2, 3\).*frame 2 has pbc=\[True, True, False\]"
    with pytest.raises(LabelError, match=wanted):
        passes(frames, None, STRESS)
    data = build_dataset(frames, ToyBackbone(EMT()), STRESS, exclude=("no stress",))
    assert data.excluded == {"no stress": [2, 3]}
    assert len(data) == 2


def test_a_potential_without_stress_is_refused():
    backbone = ToyBackbone(EMT())
    backbone.provides -= {"stress"}
    with pytest.raises(LabelError, match=r"must give stress in eV/Å³ .* got toy"):
        build_dataset(strained(2), backbone, STRESS)


def test_perfect_crystals_have_a_stress():
    perfect = Atoms("Cu4", cell=[3.5] * 3, pbc=True)
    perfect.set_scaled_positions(bulk("Cu", cubic=True).get_scaled_positions())
    perfect.calc = reference()
    perfect.get_stress()
    data, _ = passes([perfect, *strained(2)], None, STRESS)
    assert data.excluded == {}


def test_relative_energies_ignore_what_one_composition_has_in_common():
    frames = [*strained(3), *strained(3, size=2), bulk("Au")]
    frames[-1].info["REF_energy"] = 0.0
    labels = Labels("relative_energy")
    with pytest.warns(LabelWarning, match=r"1 of 7 frames \(frames 6\) are the only"):
        data, _ = passes(frames, None, labels)
    assert data.excluded == {"no information": [6]}
    for frame in frames:
        frame.info["REF_energy"] += 12.3 * len(frame)  # another zero of the energy
    moved, _ = passes(frames[:-1], None, labels)
    close(moved.errors, data.errors, 1e-9)
    assert np.sum(data.errors < 1e-12) == 2  # the median frame of each composition
    assert np.median(moved.errors) < 0.5 < 12.3
