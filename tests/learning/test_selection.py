"""`select`: risky frames that differ, at most a share of one event, reproducible."""

from __future__ import annotations

import math
from itertools import count

import numpy as np
import pytest
from ase.io import read, write
from toys import BAD, copper, watched

from uqcalc import ReliableCalculator, annotated_copy, read_assessment, select
from uqcalc.annotating.copies import refused_copy
from uqcalc.annotating.descriptor import (
    LENGTH,
    potential_name,
    read_descriptor,
    store_descriptor,
    structure_descriptor,
)
from uqcalc.errors import LabelError, RecordError
from uqcalc.learning.candidates import IMPOSSIBLE, NOT_EVALUATED, REPEATED
from uqcalc.learning.selection import EVENT_KEY, NEAR_DUPLICATES, ROW_KEY
from uqcalc.records import Assessment, Level, Reading, Verdict


torch = pytest.importorskip("torch")
SEEDS = count()  # each frame is another geometry


def flagged(place, risk=0.9, step=None, potential="toy:1", **reading):
    """An annotated frame at a place in feature space."""
    readings = [Reading("probe", risk, results={"probe_reliability": 1 - risk})]
    if reading:
        readings.append(Reading("sanity", 0.0, **reading))
    assessment = Assessment(tuple(readings), Verdict(Level.UNRELIABLE))
    frame = annotated_copy(copper(seed=next(SEEDS)), assessment, {})
    if place is not None:
        store_descriptor(frame, np.atleast_1d(np.asarray(place, float)), potential)
    if step is not None:
        frame.info["step"] = step
    return frame


def test_the_frames_are_risky_and_far_from_each_other():
    rng = np.random.default_rng(0)
    clouds = [(0, 0), (10, 0), (0, 10)]
    frames = [flagged(c + rng.normal(0, 0.1, 2)) for c in clouds for _ in range(20)]
    chosen = select(frames, 3)
    assert {row // 20 for row in chosen.rows} == {0, 1, 2}
    risky = [flagged(k / 10, risk=0.5 + 0.01 * k) for k in range(20)]
    first, second = select(risky, 2).rows
    assert first == 19  # the largest risk
    # the farthest one has the lowest risk: the product decides
    assert 0 < second < 15


def test_the_choice_does_not_depend_on_unit_or_scale_and_is_reproducible():
    rng = np.random.default_rng(1)
    places, risks = rng.normal(size=(40, 5)), rng.random(40)
    rows = select([flagged(p, r) for p, r in zip(places, risks, strict=True)], 8).rows
    scaled = [flagged(1000 * p, 7 * r**3) for p, r in zip(places, risks, strict=True)]
    np.testing.assert_array_equal(select(scaled, 8).rows, rows)
    np.testing.assert_array_equal(select(scaled, 8).rows, rows)
    # a shorter choice is the beginning of a longer one
    few = select(scaled, 5, per_event=40).rows
    np.testing.assert_array_equal(select(scaled, 8, per_event=40).rows[:5], few)


def test_near_duplicates_of_one_event_are_dropped_and_those_of_others_kept():
    spread = [flagged((10.0 * k, 0)) for k in range(1, 6)]
    event = [flagged((0, 0.01 * k), step=k) for k in range(30)]
    chosen = select([*event, *spread], 35, per_event=35)
    assert sum(row < 30 for row in chosen.rows) == 1
    assert chosen.left_out == {NEAR_DUPLICATES: 29}
    assert "Fewer than the 35" in str(chosen)
    assert "29 near-duplicates" in str(chosen)
    apart = [flagged((0, 0.01 * k)) for k in range(30)]  # without steps: no event
    assert len(select([*apart, *spread], 35)) == 35


def test_an_event_gives_at_most_its_share():
    long = [flagged((k, 0), risk=0.99, step=k) for k in range(60)]
    other = [flagged((0, 5.0 * k), risk=0.6, step=1000 * k) for k in range(3)]
    frames = [*long, *other]
    # twice the share of 7 frames of 4 events
    assert sum(event == "e0" for event in select(frames, 7, near=0).events) == 4
    # the others have no more
    assert len(select(frames, 20, near=0)) == 20
    few = select(frames, 8, near=0, per_event=2)
    assert sum(event == "e0" for event in few.events) == 2
    # the same choice by risk alone
    assert sorted(select([*long, *other], 3, diverse=False, per_event=2).rows)[-1] >= 60


@pytest.mark.parametrize("step", ["frame_3", [1, 2], 1.5, math.nan, None, True])
def test_invalid_step_entry_is_ignored(step):
    frames = [flagged(k, step=step) for k in range(3)]
    assert len(set(select(frames, 3, per_event=1).events)) == 3
    whole = [flagged(k, step=np.float64(k)) for k in range(3)]
    assert len(select(whole, 3, per_event=1)) == 1


def test_another_molecule_far_away_makes_no_frames_near_duplicates():
    own = [flagged((3.0 * k, 0), step=k) for k in range(6)]
    other = [flagged((1e4 + 3 * k, 0), step=k) for k in range(6)]
    for frame in other:
        frame.numbers[:] = 28
    assert len(select(own, 12)) == 6
    assert len(select([*own, *other], 12)) == 12


def test_groups_end_events_and_stay_with_the_frames():
    frames = [flagged((k, 0), step=k) for k in range(6)]
    for k, frame in enumerate(frames):
        frame.info["run"] = "first" if k < 3 else "second"
    chosen = select(frames, 6, group="run", near=0)
    assert {frame.info[EVENT_KEY] for frame in chosen} == {"first:e0", "second:e1"}
    for frame in chosen:
        assert frame.info["run"] == frames[frame.info[ROW_KEY]].info["run"]
    del frames[4].info["run"]
    with pytest.raises(LabelError, match="frame 4 must have the group key 'run'"):
        select(frames, 2, group="run")
    assert EVENT_KEY not in frames[0].info


@pytest.mark.parametrize("diverse", [True, False])
def test_frames_that_cannot_be_labelled_are_left_out_and_counted(diverse):
    broken = refused_copy(copper(), read_assessment(flagged(0.0)), "no forces")
    frames = [
        flagged(0.0),
        broken,
        flagged(1.0, absurd=("fused",)),
        flagged(2.0, faults=("fused",)),
        flagged(3.0, risk=math.nan),
    ]
    chosen = select(frames, 5, diverse=diverse)
    assert list(chosen.rows) == [4, 0]  # NaN is the largest risk
    assert chosen.left_out == {NOT_EVALUATED: 1, IMPOSSIBLE: 2}


def test_other_quantities_rank_the_frames():
    frames = [flagged(k, step=k) for k in range(5)]
    frames[2].info["probe_novelty"] = 9.0
    for k in (0, 1, 3, 4):
        frames[k].info["probe_novelty"] = 0.1 * k
    assert list(select(frames, 1, by="probe_novelty").rows) == [2]
    assert list(select(frames, 2, by="step", diverse=False).rows) == [4, 3]
    with pytest.raises(RecordError, match=r"one of \['probe', 'risk'\].*'energy'"):
        select(frames, 1, by="energy")
    with pytest.raises(RecordError, match="the probability that a frame is right"):
        select(frames, 1, by="probe_reliability")


def test_missing_descriptors_need_a_calculator():
    frames = [flagged(0.0), flagged(None)]
    with pytest.raises(RecordError, match=r"frame 1 without one; pass the calculator"):
        select(frames, 1)
    assert len(select(frames, 2, diverse=False)) == 2
    with pytest.raises(RecordError, match="frame 0 without info"):
        select([copper()], 1)
    with pytest.raises(RecordError, match="of one potential, got those of 2"):
        select([flagged(0.0), flagged(1.0, potential="other")], 1)
    frames[0].info["uqcalc_descriptor"] = "none"
    with pytest.raises(RecordError, match="must be a list of numbers, got 'none'"):
        select(frames[:1], 1)


def test_a_calculator_judges_and_describes_what_is_missing():
    calculator = watched(after=BAD).calc
    plain, foreign = copper(seed=3), flagged(1.0, potential="other")
    plain.calc = None
    chosen = select([plain, foreign], 2, calculator=calculator)
    assert len(chosen) == 2
    for frame in chosen:
        vector, name = read_descriptor(frame)
        assert name == potential_name(calculator.backbone.fingerprint)
        np.testing.assert_allclose(vector, [1, 0])  # one feature of ones
    [row] = [k for k, f in enumerate(chosen) if f.info[ROW_KEY] == 1]
    assert read_assessment(chosen[row]).readings[0].risk == 0.9  # not judged again


def test_a_descriptor_keeps_distances_and_sees_one_atom_of_many(tmp_path):
    torch.manual_seed(0)
    rows = torch.randn(50, 200)
    base = structure_descriptor(rows)
    assert base.shape == (LENGTH,)
    np.testing.assert_allclose(structure_descriptor(rows[torch.randperm(50)]), base)
    frames = [torch.randn(50, 200) * (1 + k / 5) for k in range(8)]
    ours = np.array([structure_descriptor(f) for f in frames])
    full = np.array(
        [[*f.mean(0).tolist(), *f.std(0, correction=0).tolist()] for f in frames]
    )
    ratio = [
        np.linalg.norm(ours[i] - ours[j]) / np.linalg.norm(full[i] - full[j])
        for i in range(8)
        for j in range(i)
    ]
    assert 0.6 < min(ratio) <= max(ratio) < 1.4
    one = rows.clone()
    one[7] += 10.0
    thermal = structure_descriptor(torch.randn(50, 200))
    moved = structure_descriptor(one)
    assert np.linalg.norm(moved - base) > 2 * np.linalg.norm(thermal - base)
    frame = copper()
    store_descriptor(frame, base, "toy:1")
    write(tmp_path / "f.xyz", frame)
    vector, _ = read_descriptor(read(tmp_path / "f.xyz"))
    np.testing.assert_allclose(vector, base, rtol=1e-6)


def test_pictures_show_every_candidate(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    frames = [flagged((k, k % 3), risk=0.5 + k / 50, step=k) for k in range(12)]
    frames[3].info["uqcalc_descriptor"] = np.array([3.0, 0.0])
    for diverse in (True, False):
        axes = select(frames, 4, diverse=diverse).plot()
        assert len(axes.collections[0].get_offsets()) == 12
        assert len(axes.collections[1].get_offsets()) == 4
    single = select([flagged(1.0), flagged(2.0)], 1).plot()  # one component only
    assert len(single.collections[0].get_offsets()) == 2
    impossible = select([flagged(1.0, absurd=("fused",))], 1).plot()
    assert impossible.get_title() == "no candidates"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be a whole number of at least 1, got 0"),
        ({"n": 1.5}, "n must be a whole number of at least 1, got 1.5"),
        ({"n": 1, "per_event": 0}, "per_event must be a whole number of at least 1"),
        ({"n": 1, "near": -1.0}, "near must be a number of at least 0"),
        ({"n": 1, "near": math.nan}, "near must be a number of at least 0"),
    ],
)
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        select([flagged(0.0)], **options)


def test_features_of_the_last_geometry_cost_no_pass():
    atoms = watched()
    calculator = atoms.calc
    assert isinstance(calculator, ReliableCalculator)
    calculator.assess(atoms)
    passes = calculator.backbone.passes
    np.testing.assert_array_equal(calculator.features(atoms), np.ones((4, 1)))
    assert calculator.backbone.passes == passes
    results = dict(calculator.results)
    moved = copper(seed=9)
    assert calculator.features(moved).shape == (4, 1)
    assert calculator.backbone.passes == passes + 1
    assert calculator.get_property("energy", atoms) == results["energy"]


def test_repeated_geometry_is_not_a_further_event():
    first = flagged((0.0, 0.0))
    turned = first.copy()
    turned.rotate(30, "z", rotate_cell=True)
    charged = first.copy()
    charged.info["charge"] = 1
    others = [flagged((10.0 * k, 0.0)) for k in (1, 2)]
    chosen = select([first, *[first.copy()] * 5, turned, charged, *others], 9)
    assert sorted(chosen.rows) == [0, 7, 8, 9]
    assert chosen.left_out == {REPEATED: 6}
    assert len(set(chosen.events)) == 4
