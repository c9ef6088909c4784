"""Groups of frames are not divided, by formula and over several sets."""

import pytest
from ase import Atoms
from ase.build import bulk
from builders import rattled
from labels.test_dataset import labelled
from probe.toys import ToyBackbone

from uqcalc import Labels
from uqcalc.errors import LabelError
from uqcalc.labels.dataset import build_dataset
from uqcalc.labels.groups import group_names, reduced_formula, refuse_shared_groups


def test_reduced_formula_does_not_depend_on_order_or_size():
    assert reduced_formula(Atoms("OHH")) == reduced_formula(Atoms("H2OH2O")) == "H2O"
    assert reduced_formula(Atoms("C4H8")) == "CH2"
    assert reduced_formula(bulk("NaCl", "rocksalt", 5.6) * (2, 2, 2)) == "ClNa"


def test_formula_is_a_group_unless_the_frames_have_their_own():
    frames = [rattled(name, seed=i) for i, name in enumerate(["H2O", "CO2", "H2O"])]
    for key in ("formula", "composition"):
        assert group_names(frames, key) == ["H2O", "CO2", "H2O"]
    assert group_names(frames, "formula", [1]) == ["CO2"]
    for frame, name in zip(frames, "aab", strict=True):
        frame.info["formula"] = name
    assert group_names(frames, "formula") == ["a", "a", "b"]
    del frames[2].info["formula"]
    with pytest.raises(LabelError, match="frame 2 must have the group key 'formula'"):
        group_names(frames, "formula")


def test_a_group_in_two_sets_is_refused_by_name():
    frames = labelled(6)
    for index, frame in enumerate(frames):
        frame.info["run"] = "abcdbe"[index]

    def sets(key):
        labels = Labels(group_key=key)
        parts = (frames[:2], frames[2:4], frames[4:])
        return [build_dataset(part, ToyBackbone(), labels) for part in parts]

    words = r"training and test .* got 1 .*\(run 'b'\)"
    first, second, last = sets("run")
    for held in ((second, last), (last,)):  # with a set for calibration and without
        with pytest.raises(LabelError, match=words):
            refuse_shared_groups(first, *held)
    refuse_shared_groups(first, second)
    refuse_shared_groups(*sets(None))  # "0" here is not "0" there
    frames[4].info["run"] = "f"
    refuse_shared_groups(*sets("run"))
