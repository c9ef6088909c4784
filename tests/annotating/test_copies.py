from __future__ import annotations

import json
import math
from urllib.parse import unquote

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from builders import mace_calculator, rattled, tiny_probe
from hypothesis import given, settings, strategies as st
from toys import copper

from uqcalc import (
    Level,
    Policy,
    ReliableCalculator,
    Threshold,
    annotated_copy,
    read_assessment,
    tap,
)
from uqcalc.annotating.copies import INFO_KEY, cleared_copy, percent_encoded
from uqcalc.annotating.targets import target_of
from uqcalc.asking import why_ask
from uqcalc.errors import RecordError
from uqcalc.files.structures import frames_of
from uqcalc.types import Assessment, Reading, Verdict


def results():
    return {"energy": -1.5, "forces": np.arange(12.0).reshape(4, 3)}


def summary(assessment):
    """Return all that a file must preserve, except the published numbers."""
    readings = [
        (r.signal, "nan" if math.isnan(r.risk) else r.risk, r.unit, r.note)
        for r in assessment.readings
    ]
    return assessment.verdict, readings


@pytest.mark.parametrize("risk", [0.9, math.nan])
@pytest.mark.parametrize("ending", ["xyz", "traj", "db"])
def test_concern_counts_in_a_reading_from_a_file(tmp_path, ending, risk):
    """A frame of a strained crystal was SUSPECT in the run and RELIABLE from a file."""
    policy = Policy([Threshold("probe", 0.2, 0.5)])
    strained = Reading("probe_stress", risk, concern=(0.5, "the pressure is 9 GPa"))
    readings = (Reading("probe", 0.1), strained)
    live = Assessment(readings, policy(readings))
    assert live.level is Level.SUSPECT
    path = tmp_path / f"judged.{ending}"
    with target_of(path) as file:
        file.append(annotated_copy(Atoms("H"), live, {}), "frame")
    [frame] = frames_of(path)
    back = read_assessment(frame)
    assert policy(back.readings) == live.verdict
    assert why_ask(back) == why_ask(live)


def test_reading_from_a_file_gives_the_same_verdict():
    """Novelty 3 with a limit of 1 was SUSPECT in the run and RELIABLE from a file."""
    policy = Policy([Threshold("probe", 0.2, 0.5)])
    one = Atoms("H")
    for entries in (
        {"limits": {"probe_novelty": 1.0}},
        {"limits": {"probe_novelty": 1.0}, "far_limits": {"probe_novelty": 2.0}},
        {"doubts": ("4 atoms",)},
        {"faults": ("two atoms fused",)},
        {"absurd": ("1e9 K",), "always": True},
    ):
        reading = Reading("probe", 0.1, results={"probe_novelty": 3.0}, **entries)
        live = Assessment((reading,), policy((reading,)))
        back = read_assessment(annotated_copy(one, live, {}))
        assert policy(back.readings) == live.verdict
        assert live.level is not Level.RELIABLE
        assert back.absurd == live.absurd


def through(atoms, folder, suffix):
    path = folder / f"frame.{suffix}"
    write(path, atoms)
    return read(path)


@pytest.fixture(scope="module")
def live():
    """A methanol molecule under a tiny MACE and a probe."""
    backbone = tap(mace_calculator())
    atoms = rattled()
    atoms.calc = ReliableCalculator(backbone, tiny_probe(backbone))
    return atoms


@pytest.mark.parametrize("suffix", ["xyz", "traj"])
def test_a_live_assessment_survives_files(tmp_path, live, suffix):
    assessment = live.calc.assess(live)
    frame = through(
        annotated_copy(live, assessment, live.calc.results), tmp_path, suffix
    )
    back = read_assessment(frame)
    assert summary(back) == summary(assessment)
    ours, theirs = assessment.reading("probe"), back.reading("probe")
    assert theirs.results["probe_reliability"] == ours.results["probe_reliability"]
    assert frame.calc is None  # a trainer would take stored results for labels
    assert frame.info["predicted_energy"] == pytest.approx(
        live.get_potential_energy(), abs=1e-8
    )
    if suffix == "xyz":
        forces = frame.arrays["predicted_forces"]
        np.testing.assert_allclose(forces, live.get_forces(), atol=1e-8)
        np.testing.assert_allclose(theirs.per_atom, ours.per_atom, atol=1e-8)
        assert back.worst_atoms() == assessment.worst_atoms()
    else:  # .traj drops arrays of unknown name: they are absent
        assert theirs.per_atom is None
        assert back.worst_atoms() == []


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
risks = st.floats(allow_nan=True, allow_infinity=True)
readings = st.builds(
    Reading,
    signal=st.sampled_from(["a", "b", "c"]),
    risk=risks,
    unit=texts,
    note=texts,
)
assessments = st.builds(
    Assessment,
    readings=st.lists(readings, max_size=3).map(tuple),
    verdict=st.builds(
        Verdict,
        level=st.sampled_from(Level),
        reasons=st.lists(texts, max_size=3).map(tuple),
        skipped=st.lists(texts, max_size=2).map(tuple),
    ),
)


@pytest.mark.parametrize("suffix", ["xyz", "traj"])
@given(assessment=assessments)
@settings(max_examples=60, deadline=None)
def test_any_text_and_any_number_survive_files(tmp_path_factory, suffix, assessment):
    folder = tmp_path_factory.mktemp("any")
    frame = through(annotated_copy(copper(), assessment, results()), folder, suffix)
    assert summary(read_assessment(frame)) == summary(assessment)


def test_values_keep_their_kind_in_extended_xyz(tmp_path):
    per_atom = np.array([1.0, np.nan, 1e-300, 0.1])
    reading = Reading(
        "s",
        math.nan,
        results={"bad": math.nan, "one": 1.0, "tiny": 0.1 + 0.2, "each": per_atom},
        per_atom_key="each",
    )
    assessment = Assessment((reading,), Verdict(Level.SUSPECT))
    frame = annotated_copy(copper(), assessment, results())
    back = read_assessment(through(frame, tmp_path, "xyz")).reading("s")
    assert math.isnan(back.results["bad"])
    assert back.results["one"] == 1.0
    assert back.results["tiny"] == 0.1 + 0.2
    assert not any(isinstance(v, bool) for v in back.results.values())
    np.testing.assert_allclose(back.per_atom, per_atom, atol=1e-8)


@pytest.mark.parametrize("number", [np.float32(-2.5), -2.5, np.nan])
def test_energies_of_any_kind_of_number_survive(tmp_path, number):
    """CHGNet gives float32, damaged structures NaN; both belong to the annotation."""
    assessment = Assessment((), Verdict(Level.SUSPECT))
    frame = annotated_copy(copper(), assessment, results() | {"energy": number})
    back = through(frame, tmp_path, "extxyz")
    assert read_assessment(back).level is Level.SUSPECT
    again = cleared_copy(back)
    assert not [key for key in again.info if "original" in key]


def test_frames_of_versions_before_02_are_read_without_their_predictions_as_labels():
    """Their calculator has results of the potential, in the place of ASE's labels."""
    assessment = Assessment((Reading("s", 0.7),), Verdict(Level.SUSPECT, ("why",)))
    old = annotated_copy(copper(), assessment, {})
    record = json.loads(unquote(old.info[INFO_KEY])) | {"energy": -1.5}
    old.info[INFO_KEY] = percent_encoded(json.dumps(record))
    old.calc = SinglePointCalculator(old, **results())
    assert summary(read_assessment(old)) == summary(assessment)
    assert not any("original" in key for key in cleared_copy(old).info)
    old.calc.results["energy"] = -2.5  # a label that was computed later
    assert cleared_copy(old).info["original_energy"] == -2.5


def test_the_copy_is_a_copy():
    atoms = copper()
    atoms.calc = EMT()
    atoms.info["mine"] = [1, 2]
    before, keys = dict(atoms.info), set(atoms.arrays)
    weights = np.ones(4)
    reading = Reading("s", 1.0, results={"w": weights}, per_atom_key="w")
    frame = annotated_copy(atoms, Assessment((reading,), Verdict(Level(2))), results())
    frame.arrays["w"][:] = 7
    frame.positions += 1
    frame.arrays["predicted_forces"][:] = 7
    assert (weights == 1).all()
    assert atoms.info == before
    assert set(atoms.arrays) == keys
    np.testing.assert_array_equal(atoms.positions, copper().positions)
    assert isinstance(atoms.calc, EMT)
    assert frame.info["reliability_level"] == 2


def test_stale_numbers_of_the_same_name_do_not_stop_the_writer(tmp_path):
    atoms = copper()  # as read from a data set that keeps its labels in info
    atoms.info.update(energy=99.0, REF_energy=98.0)
    atoms.set_array("forces", np.full((4, 3), 99.0))
    frame = annotated_copy(atoms, Assessment((), Verdict(Level(0))), results())
    back = through(frame, tmp_path, "xyz")
    assert back.info["predicted_energy"] == -1.5
    assert back.info["REF_energy"] == 98.0
    forces = back.arrays["predicted_forces"]
    np.testing.assert_allclose(forces, results()["forces"])
    # the old values belong to another geometry
    assert back.calc is None
    assert not {"energy", "forces"} & {*back.info, *back.arrays}
    assert atoms.info["energy"] == 99.0


def test_a_frame_without_an_annotation_is_refused():
    with pytest.raises(RecordError, match=r"info\['uqcalc'\], got keys \[\]"):
        read_assessment(copper())
