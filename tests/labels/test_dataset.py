"""Labels and datasets: nothing is dropped, added or leaked without a message."""

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from builders import mace_calculator, rattled
from closeness import FLOAT32, FLOAT64, close
from probe.toys import ToyBackbone
from sklearn.model_selection import GroupKFold

from uqcalc import Labels, LabelWarning, fit
from uqcalc.backbones.registry import tap
from uqcalc.errors import BackboneError, LabelError
from uqcalc.labels.dataset import build_dataset
from uqcalc.labels.groups import divide


def labelled(count=6, name="CH3OH"):
    frames = []
    for seed in range(count):
        atoms = rattled(name, seed=seed)
        atoms.info["REF_energy"] = -10.0 + seed
        atoms.arrays["REF_forces"] = np.full((len(atoms), 3), 0.01 * seed)
        frames.append(atoms)
    return frames


def unlabelled(atoms):
    del atoms.arrays["REF_forces"]


def as_none_read_back(atoms):
    del atoms.arrays["REF_forces"]
    atoms.info["REF_forces"] = True  # extxyz reads None as this


def nan_label(atoms):
    atoms.arrays["REF_forces"][1, 2] = np.nan


def nan_position(atoms):
    atoms.positions[0, 0] = np.nan


def unknown_element(atoms):
    atoms.numbers[0] = 92


@pytest.mark.parametrize(
    ("spoil", "defect"),
    [
        (unlabelled, "missing"),
        (as_none_read_back, "missing"),
        (nan_label, "not finite"),
        (nan_position, "not finite"),
        (unknown_element, "unknown elements"),
    ],
)
def test_defects_are_refused_by_name_or_left_out_and_counted(spoil, defect):
    frames = labelled()
    for index in (1, 4):
        spoil(frames[index])
    backbone = ToyBackbone(elements=frozenset({1, 6, 8}))
    with pytest.raises(LabelError, match=rf"6 frames.*{defect}: 2 \(frames 1, 4\)"):
        build_dataset(frames, backbone, Labels())
    with pytest.raises(LabelError, match=defect):
        build_dataset(frames, backbone, Labels(), exclude=["empty", "duplicate"])
    data = build_dataset(frames, backbone, Labels(), exclude=[defect])
    assert data.excluded == {defect: [1, 4]}
    assert data.groups == ["0", "2", "3", "5"]


def test_unsupported_frames_are_found_before_any_prediction():
    class Periodic(ToyBackbone):
        def check_structure(self, atoms):
            super().check_structure(atoms)
            if len(atoms) == 3:
                msg = "structure must have a cell for this, got none"
                raise BackboneError(msg)

        def predict_many(self, frames, wanted=("energy", "forces")):
            assert computing
            return super().predict_many(frames, wanted)

    frames = labelled() + labelled(2, "H2O")
    frames[1].pbc = True  # without a cell
    computing = False
    with pytest.raises(LabelError, match=r"computable: 3 \(frames 1, 6, 7\).*frame 1:"):
        build_dataset(frames, Periodic(), Labels())
    frames[1].cell = np.full((3, 3), np.nan)
    with pytest.raises(LabelError, match=r"not finite: 1 .*frame 6: structure must"):
        build_dataset(frames, Periodic(), Labels())
    leave, computing = ["not computable", "not finite"], True
    data = build_dataset(frames, Periodic(), Labels(), exclude=leave)
    assert data.excluded == {"not finite": [1], "not computable": [6, 7]}


def test_labels_in_the_calculator_are_named_in_the_message(tmp_path):
    frames = labelled(2)
    for atoms in frames:
        atoms.arrays["forces"] = atoms.arrays.pop("REF_forces")
        atoms.info["energy"] = atoms.info.pop("REF_energy")
    ase.io.write(tmp_path / "a.xyz", frames)
    frames = ase.io.read(tmp_path / "a.xyz", ":")
    for what in ("forces", "energy"):
        match = rf"no {what} under 'REF_{what}'.*{what}_key='{what}' \(--{what}-key"
        with pytest.raises(LabelError, match=match):
            build_dataset(frames, ToyBackbone(), Labels(what))
        found = Labels(what, **{f"{what}_key": what})
        assert len(build_dataset(frames, ToyBackbone(), found)) == 2


def test_duplicates_and_empty_frames():
    frames = labelled(3)
    frames += [frames[1].copy(), Atoms(info={"REF_energy": 0.0})]
    frames[3].info["REF_energy"] = 5.0  # two answers to one question
    frames[3].positions += 1e-9
    backbone = ToyBackbone()
    with pytest.raises(LabelError, match=r"duplicate: 1 \(frames 3\); empty: 1"):
        build_dataset(frames, backbone, Labels())
    data = build_dataset(frames, backbone, Labels(), exclude=["duplicate", "empty"])
    assert data.excluded == {"duplicate": [3], "empty": [4]}
    assert len(data) == 3


def test_charge_states_of_one_geometry_are_not_duplicates():
    frames = labelled(1) * 2
    frames = [atoms.copy() for atoms in frames]
    frames[1].info["charge"] = 1
    assert len(build_dataset(frames, ToyBackbone(), Labels())) == 2


@pytest.mark.parametrize("value", [True, None, "-3.2", np.array([-3.2, 0.0])])
def test_energy_that_is_not_a_number_is_missing(value):
    frames = labelled(2)
    frames[1].info["REF_energy"] = value
    with pytest.raises(LabelError, match=r"missing: 1 \(frames 1\)"):
        build_dataset(frames, ToyBackbone(), Labels(target="energy"))


def test_prediction_that_is_not_finite_is_a_defect_too():
    class Broken(ToyBackbone):
        def predict_many(self, frames, wanted=("energy", "forces")):
            done = super().predict_many(frames, wanted)
            for frame, prediction in zip(frames, done, strict=True):
                if frame.info["REF_energy"] == -8:
                    prediction.features[0, 0] = torch.nan
            return done

    frames = labelled()
    with pytest.raises(LabelError, match=r"not finite: 1 \(frames 2\)"):
        build_dataset(frames, Broken(), Labels())
    data = build_dataset(frames, Broken(), Labels(), exclude=["not finite"])
    assert data.excluded == {"not finite": [2]}
    assert all(p.features.isfinite().all() for p in data.predictions)
    for target in ("forces", "energy"):
        with pytest.raises(LabelError, match=r"not finite: 1 \(frames 0\)"):
            build_dataset(frames[2:3], Broken(), Labels(target))


def test_nothing_usable_and_unknown_options_are_refused():
    frames = labelled(2)
    for atoms in frames:
        nan_label(atoms)
    with pytest.raises(LabelError, match="got none"):
        build_dataset(frames, ToyBackbone(), Labels(), exclude=["not finite"])
    with pytest.raises(LabelError, match="got none"):
        build_dataset([], ToyBackbone(), Labels())
    with pytest.raises(LabelError, match="exclude must name defects"):
        build_dataset(frames, ToyBackbone(), Labels(), exclude=["nan"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "virial"},
        {"percentile": 0},
        {"percentile": 100},
        {"boundary": -1.0},
        {"boundary": np.nan},
    ],
)
def test_labels_are_checked_at_once(wrong):
    with pytest.raises(LabelError, match=f"{next(iter(wrong))} must"):
        Labels(**wrong)


def test_errors_by_hand():
    frames = labelled(3)
    expected = {"energy": [], "energy_per_atom": [], "forces": [], "atom_forces": []}
    atoms_expected = []
    for atoms in frames:
        bare = atoms.copy()
        bare.calc = ToyBackbone().calculator
        missed = abs(bare.get_potential_energy() - atoms.info["REF_energy"])
        expected["energy"].append(missed)
        expected["energy_per_atom"].append(missed / 6)
        gap = bare.get_forces() - atoms.arrays["REF_forces"]
        expected["forces"].append(np.linalg.norm(gap) / np.sqrt(gap.size))
        atoms_expected.append(np.linalg.norm(gap, axis=1))
        expected["atom_forces"].append(max(atoms_expected[-1]))
    for target, errors in expected.items():
        data = build_dataset(frames, ToyBackbone(), Labels(target=target))
        close(data.errors, errors, FLOAT64)
        part = data.subset([2, 0])
        for found, index in zip(part.atom_errors, (2, 0), strict=True):
            close(found, atoms_expected[index], FLOAT64)


def test_energy_labels_use_forces_only_if_all_frames_have_them():
    frames = labelled(4)
    nan_label(frames[1])
    labels = Labels("energy")
    for absent in (False, True):
        if absent:
            unlabelled(frames[1])
        with pytest.warns(
            LabelWarning,
            match="1 of 4 have none, so that the probe gets no probabilities of",
        ):
            data = build_dataset(frames, ToyBackbone(), labels)
        assert data.atom_errors is None
    assert data.subset([0]).atom_errors is None


def shifted(count, *, seed, shift):
    """Energies that are off by ``shift`` eV per element, and a little by chance."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        name = ["CH3OH", "H2O", "CO2", "C2H6", "CH4"][index % 5]
        atoms = rattled(name, seed=1000 * seed + index)
        atoms.info["run"] = index // 5
        atoms.calc = ToyBackbone().calculator
        energy = atoms.get_potential_energy() + rng.normal(0, 0.01)
        atoms.calc = None
        atoms.info["REF_energy"] = energy + sum(shift[z] for z in atoms.numbers)
        frames.append(atoms)
    return frames


SHIFT = {1: -13.0, 6: -1030.0, 8: -2040.0}


def test_offsets_are_removed_recorded_and_used_again():
    frames = shifted(60, seed=0, shift=SHIFT)
    backbone = ToyBackbone()
    with pytest.warns(LabelWarning, match="level of theory"):
        raw = build_dataset(frames, backbone, Labels("energy"))
    assert raw.offsets == {}
    data = build_dataset(frames, backbone, Labels("energy_per_atom", offsets=True))
    assert data.errors.max() < 0.02 < 100 < raw.errors.min()
    assert {int(z): round(e) for z, e in data.offsets.items()} == SHIFT
    fresh = shifted(5, seed=9, shift=SHIFT)
    again = build_dataset(fresh, backbone, Labels("energy"), offsets=data.offsets)
    residuals = [
        a.info["REF_energy"]
        - p.results["energy"]
        - sum(data.offsets[str(z)] for z in a.numbers)
        for a, p in zip(fresh, again.predictions, strict=True)
    ]
    energies = [a.info["REF_energy"] for a in fresh]
    close(again.errors, np.abs(residuals), FLOAT64, of=energies)
    assert again.errors.max() < 0.1
    assert again.offsets == data.offsets


def test_held_out_labels_do_not_affect_the_offsets():
    frames = shifted(60, seed=0, shift=SHIFT)
    labels = Labels("energy", offsets=True, group_key="run")
    data = build_dataset(frames, ToyBackbone(), labels)
    train, test = data.split((0.5, 0.5), seed=0)
    for index, group in enumerate(data.groups):
        if group in set(test.groups):
            data.residuals[index] += 7.0
    again, moved = data.split((0.5, 0.5), seed=0)
    assert again.offsets == moved.offsets == train.offsets
    np.testing.assert_array_equal(again.errors, train.errors)
    assert moved.errors.min() > 6.9
    inner, other = again.split((0.5, 0.5), seed=0)  # and no held-out part of a share
    assert inner.fit_offsets().offsets == inner.offsets == other.offsets
    forces = build_dataset(labelled(3), ToyBackbone(), Labels())
    with pytest.raises(LabelError, match="offsets must be of energies"):
        forces.with_offsets({})
    with pytest.raises(LabelError, match="must have an energy target"):
        Labels("forces", offsets=True)


def test_training_errors_use_offsets_of_other_groups():
    frames = shifted(60, seed=0, shift=SHIFT)
    labels = Labels("energy_per_atom", offsets=True, group_key="run")
    data = build_dataset(frames, ToyBackbone(), labels)
    crossed = data.crossed()
    assert crossed.offsets == data.offsets
    folds = GroupKFold(10).split(frames, groups=data.groups)
    for rest, held in folds:
        others = data.subset(rest).fit_offsets().offsets
        expected = data.subset(held).with_offsets(others).errors
        close(crossed.errors[held], expected, FLOAT64, of=list(SHIFT.values()))
    assert np.abs(crossed.errors - data.errors).max() > 1e-5
    fixed = build_dataset(frames, ToyBackbone(), labels, offsets=data.offsets)
    assert fixed.crossed() is fixed  # offsets of other labels are fair


def test_keys_that_ase_moves_to_the_calculator(tmp_path):
    frames = labelled(3)
    for atoms in frames:
        atoms.info["energy"] = atoms.info.pop("REF_energy")
        atoms.arrays["forces"] = atoms.arrays.pop("REF_forces")
    ase.io.write(
        tmp_path / "frames.xyz", frames, columns=["symbols", "positions", "forces"]
    )
    read = ase.io.read(tmp_path / "frames.xyz", ":")
    assert "energy" not in read[0].info
    for target in ("energy", "forces"):
        labels = Labels(target, energy_key="energy", forces_key="forces")
        reference = labels.reference(read[2])
        expected = -8.0 if target == "energy" else np.full((6, 3), 0.02)
        np.testing.assert_allclose(reference, expected)
        assert Labels(target).reference(read[2]) is None


def test_group_key_is_required_where_it_is_named():
    frames = labelled(3)
    for atoms in frames:
        atoms.info["run"] = "a"
    del frames[1].info["run"]
    with pytest.raises(LabelError, match="frame 1 must have the group key 'run'"):
        build_dataset(frames, ToyBackbone(), Labels(group_key="run"))


@pytest.mark.parametrize("seed", range(4))
def test_split_keeps_groups_whole_and_shares_about_right(seed):
    frames = labelled(100)
    rng = np.random.default_rng(seed)
    for atoms in frames:
        atoms.info["run"] = int(rng.integers(30))
    data = build_dataset(frames, ToyBackbone(), Labels(group_key="run"))
    parts = data.split((0.7, 0.15, 0.15), seed)
    groups = [set(part.groups) for part in parts]
    assert sum(len(g) for g in groups) == len(set(data.groups))
    assert set.union(*groups) == set(data.groups)
    np.testing.assert_allclose([len(p) for p in parts], [70, 15, 15], atol=6)
    together = np.sort(np.concatenate([p.errors for p in parts]))
    np.testing.assert_array_equal(together, np.sort(data.errors))
    again = data.split((0.7, 0.15, 0.15), seed)
    assert [p.groups for p in again] == [p.groups for p in parts]


@pytest.mark.parametrize("seed", range(6))
def test_large_groups_go_where_they_fit(seed):
    for sizes, most in (([800, 50, 50, 50, 50], 150), ([400, 400, 50, 50], 100)):
        groups = np.repeat([str(i) for i in range(len(sizes))], sizes).tolist()
        train, test = divide(groups, (0.85, 0.15), seed)
        assert sorted(train + test) == list(range(sum(sizes)))
        assert 50 <= len(test) <= most
    train, test = divide(["a"] * 900 + ["b"] * 100, (0.85, 0.15), seed)
    assert (len(train), len(test)) == (900, 100)
    shares = divide(["a"] * 5 + ["b"] * 4 + ["c"] * 3, (0.7, 0.15, 0.15), seed)
    assert [len(share) for share in shares] == [5, 4, 3]  # no share is empty


def test_too_few_groups_to_split():
    data = build_dataset(labelled(2), ToyBackbone(), Labels())
    with pytest.raises(LabelError, match="at least 3 groups"):
        data.split((0.7, 0.15, 0.15), 0)
    data = build_dataset(labelled(9), ToyBackbone(), Labels(group_key="formula"))
    with pytest.raises(LabelError, match="got 1 \\(one molecule only: 'CH4O'\\)"):
        data.split((0.7, 0.15, 0.15), 0)


def test_test_frames_must_not_be_training_frames():
    frames = labelled(12)
    few = pytest.warns(LabelWarning)  # of few frames, all of one molecule
    with few, pytest.raises(LabelError, match="got 1 in two of them"):
        fit(frames[:6], ToyBackbone(), calibration=frames[6:9], test=frames[8:])
    few = pytest.warns(LabelWarning)  # of few frames, all of one molecule
    with few, pytest.raises(LabelError, match="got 2 in two of them"):
        fit(frames[:6], ToyBackbone(), test=frames[4:])
    with pytest.raises(LabelError, match="test frames must be given with calibration"):
        fit(frames[:6], ToyBackbone(), calibration=frames[6:9])


def test_native_batches_equal_single_evaluations():
    names = ["H2O", "CH3OH", "CO2", "CH4", "C2H6"]
    frames = [rattled(name, seed=3) for name in names]
    frames.append(molecule("H2O", cell=[6, 6, 6], pbc=True))
    for atoms in frames:
        atoms.arrays["REF_forces"] = np.ones((len(atoms), 3))
    backbone = tap(mace_calculator(0))
    data = build_dataset(frames, backbone, Labels())
    single = tap(mace_calculator(0))
    for frame, batched in zip(frames, data.predictions, strict=True):
        alone = single(frame, ["energy", "forces"])
        np.testing.assert_array_equal(batched.numbers, frame.numbers)
        close(batched.energy, alone.energy, FLOAT64)
        close(batched.forces, alone.forces, FLOAT64)
        close(batched.features, alone.features, FLOAT32)
