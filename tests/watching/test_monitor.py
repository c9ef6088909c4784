from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from ase import units
from ase.calculators.emt import EMT
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE, LBFGS, BFGSLineSearch, LBFGSLineSearch, MDMin
from ase.optimize.sciopt import SciPyFminBFGS
from hypothesis import given, strategies as st
from toys import (
    BAD,
    GOOD,
    NAN,
    SUSPECT,
    FaultyEMT,
    OfGeometry,
    Scripted,
    copper,
    watched,
)

from uqcalc import (
    Level,
    Monitor,
    Policy,
    ReliableCalculator,
    Threshold,
    UnreliableError,
    read_log,
)
from uqcalc.errors import RecordError
from uqcalc.types import Assessment, Verdict
from uqcalc.watching.eventlog import read_standing
from uqcalc.watching.trigger import Trigger


DT = 2.0 * units.fs


def verlet(atoms):
    return VelocityVerlet(atoms, DT)


def langevin(atoms):
    rng = np.random.default_rng(0)
    return Langevin(atoms, DT, temperature_K=300, friction=0.01, fixcm=False, rng=rng)


def quiet(optimizer):
    def make(atoms):
        return optimizer(atoms, logfile=None)

    make.__name__ = optimizer.__name__
    return make


MD = [verlet, langevin]
OPTIMISERS = [quiet(BFGS), quiet(LBFGS), quiet(FIRE), quiet(MDMin)]


def go(dynamics, steps):
    if dynamics.__class__ in {VelocityVerlet, Langevin}:
        return dynamics.run(steps)
    return bool(dynamics.run(fmax=0, steps=steps))  # ASE's is numpy's


def events(path, kind):
    return [record for record in read_log(path) if record["event"] == kind]


def steps_of(path):
    return [record["step"] for record in events(path, "step")]


@pytest.mark.parametrize("make", MD + OPTIMISERS)
@pytest.mark.parametrize(("patience", "expected"), [(1, 1), (2, 4), (3, 8), (4, 13)])
def test_halts_in_the_step_that_ends_the_streak(tmp_path, make, patience, expected):
    one, two, three = [BAD], [BAD, NAN], [NAN, BAD, BAD]
    risks = [GOOD, *one, GOOD, *two, SUSPECT, *three, GOOD]
    atoms = watched(risks, after=BAD)
    dynamics = make(atoms)
    log, flagged = tmp_path / "run.jsonl", tmp_path / "flagged.xyz"
    monitor = Monitor(dynamics, log=log, flagged=flagged, patience=patience)
    assert go(dynamics, 30) is False
    assert monitor.halted
    assert dynamics.nsteps == expected
    assert atoms.calc.backbone.passes == expected + 1
    assert steps_of(log) == list(range(expected + 1))
    [end] = events(log, "end")
    assert (end["how"], end["step"]) == ("halted", expected)
    frames = read(flagged, ":")
    assert all(f.info["reliability_level"] == 2 for f in frames)
    assert frames[-1].info["step"] == expected
    np.testing.assert_allclose(frames[-1].positions, atoms.positions, atol=1e-8)
    assert str(expected) in monitor.reason
    assert monitor.reason in monitor.summary()


@pytest.mark.parametrize("make", MD + OPTIMISERS + [quiet(BFGSLineSearch)])
def test_halts_before_the_first_step(make):
    atoms = watched([BAD])
    start = atoms.positions.copy()
    dynamics = make(atoms)
    monitor = Monitor(dynamics, patience=1)
    assert go(dynamics, 5) is False
    assert monitor.halted
    assert dynamics.nsteps == 0
    np.testing.assert_array_equal(atoms.positions, start)


@pytest.mark.parametrize(
    ("window", "fraction", "expected"),
    [(1, 1.0, 1), (3, 0.6, 3), (4, 0.5, 3), (4, 0.75, 6), (3, 1.0, 7), (10, 0.5, 7)],
)
def test_halts_when_a_share_of_the_window_is_bad(window, fraction, expected):
    atoms = watched([GOOD, BAD, GOOD, BAD, GOOD, BAD, BAD, BAD, BAD])
    dynamics = verlet(atoms)
    monitor = Monitor(dynamics, window=window, fraction=fraction)
    assert dynamics.run(20) is False
    assert monitor.halted
    assert dynamics.nsteps == expected


def spread(positions):
    return float(np.std(positions))


def bare_spreads(optimizer, options):
    """Return the spread of the positions at each step of the unwatched optimiser."""
    atoms = copper(amount=0.8)
    atoms.calc = EMT()
    seen = []
    dynamics = optimizer(atoms, logfile=None, **options)
    dynamics.attach(lambda: seen.append(spread(atoms.positions)))
    dynamics.run(fmax=1e-3, steps=6)
    return seen


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(BFGSLineSearch, {}), (LBFGSLineSearch, {}), (SciPyFminBFGS, {"alpha": 7.0})],
)
@pytest.mark.parametrize("patience", [4, 5])
def test_trial_points_of_line_searches_are_not_counted(
    tmp_path, optimizer, options, patience
):
    path = bare_spreads(optimizer, options)
    policy = Policy([Threshold("scripted", 0.0, 0.0)])  # every geometry is bad
    atoms = watched(signal=OfGeometry(spread), policy=policy, amount=0.8)
    dynamics = optimizer(atoms, logfile=None, **options)
    monitor = Monitor(dynamics, log=tmp_path / "run.jsonl", patience=patience)
    if optimizer is SciPyFminBFGS:  # it ignores the soft stop
        with pytest.raises(UnreliableError) as caught:
            dynamics.run(fmax=1e-3, steps=6)
        assert caught.value.step == patience - 1
        assert caught.value.assessment is monitor.last
    else:
        assert not dynamics.run(fmax=1e-3, steps=6)
    assert monitor.halted
    assert atoms.calc.backbone.passes > patience  # there were trial points
    assert [e.readings["scripted"] for e in monitor.history] == path[:patience]
    assert steps_of(tmp_path / "run.jsonl") == list(range(patience))
    [end] = events(tmp_path / "run.jsonl", "end")
    assert end["how"] == "halted"


@pytest.mark.parametrize("make", [verlet, quiet(BFGS)])
def test_a_later_run_resumes(tmp_path, make):
    log = tmp_path / "run.jsonl"
    atoms = watched([GOOD, BAD, BAD, GOOD, GOOD, GOOD])
    dynamics = make(atoms)
    monitor = Monitor(dynamics, log=log, patience=2)
    assert go(dynamics, 10) is False
    assert monitor.halted
    monitor.resume()
    go(dynamics, 3)
    assert not monitor.halted
    assert dynamics.nsteps == 5
    assert steps_of(log) == list(range(6))
    assert [e["how"] for e in events(log, "end")] == ["halted", "finished"]
    assert "Flagged, but not halted" in monitor.summary()


def test_a_resumed_run_needs_a_new_streak():
    dynamics = verlet(watched(after=BAD))
    monitor = Monitor(dynamics, patience=3)
    dynamics.run(50)
    assert dynamics.nsteps == 2
    monitor.resume()
    dynamics.run(50)
    assert dynamics.nsteps == 5
    assert monitor.halted
    monitor.resume()
    monitor.resume()  # no halt is left to lift
    dynamics.run(50)
    assert dynamics.nsteps == 8


@pytest.mark.parametrize("make", [*MD, *OPTIMISERS, quiet(BFGSLineSearch)])
@pytest.mark.parametrize("at", [0, 2])
def test_a_halted_run_makes_no_further_step(tmp_path, caplog, make, at):
    """Stages and loops call ``run`` again, without a check of the monitor."""
    log = tmp_path / "run.jsonl"
    atoms = watched([GOOD] * at, after=BAD)
    dynamics = make(atoms)
    seen = []
    monitor = Monitor(dynamics, log=log, patience=1)
    dynamics.attach(lambda: seen.append(dynamics.nsteps))
    assert go(dynamics, 9) is False
    positions, content = atoms.positions.copy(), log.read_bytes()
    for _ in range(3):
        assert go(dynamics, 9) is False
        assert [bool(done) for done in dynamics.irun(steps=4)] == [False]
    assert monitor.halted
    assert seen == list(range(at + 1))
    np.testing.assert_array_equal(atoms.positions, positions)
    assert log.read_bytes() == content
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 6
    assert f"UNRELIABLE at step {at}: scripted: risk 1 eV > 0.7 eV" in lines[0]
    assert "monitor.resume()" in lines[0]
    monitor.resume()
    assert "run" not in vars(dynamics)
    go(dynamics, 1)
    assert dynamics.nsteps == at + 1


def test_a_loop_that_began_before_the_halt_makes_one_step_at_most():
    dynamics = verlet(watched([GOOD], after=BAD))
    monitor = Monitor(dynamics, patience=1)
    early, late = dynamics.irun(5), dynamics.irun(5)
    next(late)
    assert list(early) == [False, False]  # step 0, and the halt at step 1
    assert dynamics.nsteps == 1
    dynamics.max_steps = 5  # as the other loop had set it
    assert list(late) == [False]
    assert dynamics.nsteps == 2
    assert monitor.halted
    assert monitor.reason.startswith("UNRELIABLE at step 1")


def test_raise_carries_step_and_assessment_and_resumes():
    atoms = watched([GOOD, GOOD, BAD])
    dynamics = verlet(atoms)
    monitor = Monitor(dynamics, on_unreliable="raise", patience=1)
    with pytest.raises(
        UnreliableError, match=r"step 2 .*scripted: risk 1 eV"
    ) as caught:
        dynamics.run(10)
    assert caught.value.step == 2
    assert caught.value.assessment.level is Level.UNRELIABLE
    assert monitor.halted
    with pytest.raises(UnreliableError, match="step 2 "):
        dynamics.run(4)
    assert dynamics.nsteps == 2
    monitor.resume()
    assert dynamics.run(4) is True
    assert (dynamics.nsteps, monitor.halted) == (6, False)


def test_warn_only_logs(tmp_path):
    log = tmp_path / "run.jsonl"
    dynamics = verlet(watched([GOOD, BAD, BAD, GOOD, BAD, BAD]))
    monitor = Monitor(dynamics, log=log, patience=2, on_unreliable="warn")
    assert dynamics.run(5) is True
    assert not monitor.halted
    assert [w["step"] for w in events(log, "warning")] == [2, 5]
    [end] = events(log, "end")
    assert end["how"] == "finished"
    assert end["levels"] == {"RELIABLE": 2, "SUSPECT": 0, "UNRELIABLE": 4}


def test_a_callable_is_called_with_the_monitor_and_the_run_goes_on():
    seen = []
    dynamics = verlet(watched([GOOD, BAD, GOOD, BAD]))

    def react(monitor):
        seen.append((monitor.step, monitor.last.level, monitor.snapshot().info["step"]))

    monitor = Monitor(dynamics, on_unreliable=react, patience=1)
    assert dynamics.run(5) is True
    assert seen == [(1, Level.UNRELIABLE, 1), (3, Level.UNRELIABLE, 3)]
    assert not monitor.halted


def test_a_run_that_goes_back_to_a_saved_step_is_one_run(tmp_path):
    log, flagged = tmp_path / "run.jsonl", tmp_path / "flagged.xyz"
    files = {"log": log, "flagged": flagged, "about": {"why": "test", "limits": (1,)}}
    first = verlet(watched([GOOD, GOOD, GOOD, BAD, BAD, GOOD]))
    Monitor(first, patience=4, **files)
    first.run(5)

    again = verlet(watched([BAD], after=BAD))
    with pytest.raises(RecordError, match=r"eV at step 4 and a structure with"):
        Monitor(again, patience=4, first_step=4, **files)
    with pytest.raises(RecordError, match="None eV at step 9"):
        Monitor(again, patience=4, first_step=9, **files)
    monitor = Monitor(again, patience=4, first_step=4, mode="append", **files)
    assert again.run(9) is False
    assert monitor.halted
    assert monitor.step == 6  # steps 3 to 6: the streak began before the saved step
    assert [r["step"] for r in read_standing(log)] == list(range(7))
    assert [frame.info["step"] for frame in read(flagged, ":")] == [3, 4, 5, 6]
    assert monitor.flagged.written == 4
    assert "This run continues from step 4" in monitor.summary()
    assert events(log, "header")[0]["run"]["about"] == {"why": "test", "limits": [1]}
    with pytest.raises(RecordError, match=r"about\.why"):
        Monitor(
            verlet(watched()),
            log=log,
            about={"why": "other", "limits": (1,)},
            patience=1,
        )


def test_suspect_only_records(tmp_path):
    dynamics = verlet(watched(after=SUSPECT))
    files = {"log": tmp_path / "run.jsonl", "flagged": tmp_path / "flagged.xyz"}
    monitor = Monitor(dynamics, **files, patience=1)
    assert dynamics.run(4) is True
    assert not files["flagged"].exists()
    assert monitor.acted_on is None
    levels = [e["level"] for e in events(files["log"], "step")]
    assert levels == ["SUSPECT"] * 5


def test_cap_on_flagged_frames_keeps_room_for_the_halting_one(tmp_path):
    flagged = tmp_path / "flagged.xyz"
    dynamics = verlet(watched([GOOD], after=BAD))
    monitor = Monitor(dynamics, flagged=flagged, patience=6, max_flagged=3)
    dynamics.run(20)
    assert [f.info["step"] for f in read(flagged, ":")] == [1, 2, 6]
    assert (monitor.flagged.written, monitor.flagged.left_out) == (3, 3)
    assert "3 more left out" in monitor.summary()


@pytest.mark.parametrize("make", [verlet, quiet(BFGS)])
def test_an_exception_in_the_base_passes_through(tmp_path, make):
    log = tmp_path / "run.jsonl"
    dynamics = make(watched(base=FaultyEMT(4, "raise")))
    monitor = Monitor(dynamics, log=log, patience=1)
    with pytest.raises(ZeroDivisionError, match="fell over"):
        go(dynamics, 10)
    assert not monitor.halted
    assert steps_of(log) == [0, 1, 2, 3]
    monitor.summary()
    assert events(log, "end") == []  # a crash is not recorded as a normal end
    with pytest.raises(ValueError, match="unchanged since step 3"):
        monitor.snapshot()  # the atoms have moved: not their label


def test_observers_attached_before_see_a_step_that_is_judged_already():
    dynamics = verlet(watched([GOOD, GOOD, BAD]))
    seen = []
    dynamics.attach(lambda: seen.append((monitor.step, monitor.halted)))
    monitor = Monitor(dynamics, patience=1)
    dynamics.run(9)
    assert seen == [(0, False), (1, False), (2, True)]
    assert [event.step for event in monitor.history] == [0, 1, 2]


def test_watching_changes_neither_atoms_nor_path(tmp_path):
    bare, atoms = copper(), watched(after=BAD)
    bare.calc = EMT()
    for each in (bare, atoms):
        each.info["note"] = "mine"
        each.set_tags(range(4))
    keys = set(atoms.arrays)
    Monitor(
        dynamics := verlet(atoms),
        on_unreliable="warn",
        log=tmp_path / "l",
        flagged=tmp_path / "f.xyz",
        patience=1,
    )
    dynamics.run(10)
    verlet(bare).run(10)
    assert atoms.info == {"note": "mine"}
    assert set(atoms.arrays) == keys
    assert atoms.constraints == []
    for key in keys:
        np.testing.assert_array_equal(atoms.arrays[key], bare.arrays[key])


def test_time_and_temperature_are_those_of_molecular_dynamics(tmp_path):
    log = tmp_path / "run.jsonl"
    atoms = watched()
    dynamics = langevin(atoms)
    kinetic = []
    Monitor(dynamics, log=log, patience=1)
    dynamics.attach(
        lambda: kinetic.append(
            0.5 * float((atoms.get_masses() @ atoms.get_velocities() ** 2).sum())
        )
    )
    dynamics.run(5)
    rows = events(log, "step")
    np.testing.assert_allclose([r["time_fs"] for r in rows], 2.0 * np.arange(6))
    expected = np.array(kinetic) / (0.5 * 3 * len(atoms) * units.kB)
    np.testing.assert_allclose([r["temperature_K"] for r in rows], expected)
    assert rows[-1]["energy_eV"] == atoms.get_potential_energy()


@pytest.mark.parametrize("make", OPTIMISERS)
def test_optimisers_have_neither_time_nor_temperature(make):
    dynamics = make(watched())  # FIRE and MDMin have a dt that is not physical
    monitor = Monitor(dynamics, patience=1)
    go(dynamics, 2)
    assert {(e.time_fs, e.temperature_K) for e in monitor.history} == {(None, None)}


@pytest.mark.parametrize("make", [verlet, quiet(BFGS), quiet(BFGSLineSearch)])
def test_one_end_record_when_the_run_ends_by_itself(tmp_path, make):
    log = tmp_path / "run.jsonl"
    dynamics = make(watched())
    monitor = Monitor(dynamics, log=log, patience=1)
    assert dynamics.run(6) if make is verlet else dynamics.run(fmax=0.05, steps=100)
    monitor.summary()
    monitor.close()
    [end] = events(log, "end")
    assert (end["how"], end["step"]) == ("finished", dynamics.nsteps)
    assert list(read_log(log))[-1] == end


def test_labels_of_the_first_geometry_are_not_in_later_frames(tmp_path):
    atoms = watched(after=BAD)
    atoms.info.update(REF_energy=-1.0, name="a")
    atoms.arrays["REF_forces"] = np.ones((4, 3))
    dynamics = verlet(atoms)
    Monitor(dynamics, flagged=tmp_path / "flagged.xyz", patience=3)
    dynamics.run(5)
    frame = read(tmp_path / "flagged.xyz", -1)
    assert frame.info["name"] == "a"
    assert not [key for key in (*frame.info, *frame.arrays) if "REF" in key]
    assert "REF_forces" in atoms.arrays  # the atoms of the run do not change


def test_nan_forces_end_the_run_with_any_patience(tmp_path):
    dynamics = verlet(watched([GOOD, GOOD, NAN], base=FaultyEMT(2, "nan")))
    monitor = Monitor(dynamics, log=tmp_path / "run.jsonl", patience=50)
    assert dynamics.run(9) is False
    assert (monitor.halted, dynamics.nsteps) == (True, 2)
    assert monitor.reason.startswith(
        "Energy, forces or stress of a moving cell are NaN or infinite at step 2"
    )


def test_by_default_half_of_the_last_50_fs_decides():
    """Steps of 2 fs: 13 of 25 frames; the last twelve and the next are too few."""
    risks = [BAD] * 12 + [GOOD] * 13 + [BAD] * 13
    dynamics = VelocityVerlet(watched(risks, after=GOOD), 2.0 * units.fs)
    monitor = Monitor(dynamics)
    assert dynamics.run(60) is False
    assert dynamics.nsteps == 37
    assert monitor.reason.startswith("13 of 25 frames UNRELIABLE at step 37")


def test_by_default_three_in_a_row_stop_an_optimiser():
    dynamics = BFGS(watched([BAD, BAD, GOOD, BAD, BAD, BAD]), logfile=None)
    Monitor(dynamics)
    assert not dynamics.run(fmax=1e-9, steps=30)
    assert dynamics.nsteps == 5


@pytest.mark.parametrize("optimizer", [BFGS, SciPyFminBFGS])
def test_one_end_record_when_an_optimiser_runs_out_of_steps(tmp_path, optimizer):
    log = tmp_path / "run.jsonl"
    dynamics = optimizer(watched(), logfile=None)
    Monitor(dynamics, log=log, patience=1)
    assert not dynamics.run(fmax=1e-9, steps=3)
    [end] = events(log, "end")
    assert (end["how"], end["step"]) == ("finished", 3)


def test_nan_becomes_null(tmp_path):
    log = tmp_path / "run.jsonl"
    dynamics = verlet(watched([GOOD, GOOD, NAN], base=FaultyEMT(2, "nan")))
    monitor = Monitor(dynamics, log=log, flagged=tmp_path / "flagged.xyz", patience=1)
    assert dynamics.run(9) is False

    def refuse(token):
        raise AssertionError(token)

    rows = [
        json.loads(line, parse_constant=refuse)
        for line in log.read_text(encoding="utf-8").splitlines()
    ]
    last = [row for row in rows if row["event"] == "step"][-1]
    # velocities follow from the forces: the run is absurd, too
    assert last["readings"] == {
        "scripted": None,
        "sanity": None,
        "flags": None,
        "run": None,
    }
    assert last["energy_eV"] is last["temperature_K"] is None
    assert last["level"] == "UNRELIABLE"
    assert "NaN" in last["reasons"][0]
    assert math.isnan(monitor.history[-1].readings["scripted"])
    assert len(read(tmp_path / "flagged.xyz", ":")) == 1


@pytest.mark.parametrize(
    ("risks", "expected"),
    [
        ([BAD, None, BAD, None, None, BAD], 5),  # neither grows nor resets
        ([BAD, None, BAD, GOOD, BAD, None, BAD, BAD], 7),  # a good frame resets
        ([None, None, BAD, BAD, BAD], 4),
    ],
)
def test_steps_without_the_signal_do_not_change_a_streak(risks, expected):
    dynamics = verlet(watched(risks))
    monitor = Monitor(dynamics, patience=3)
    assert dynamics.run(20) is False
    assert monitor.halted
    assert dynamics.nsteps == expected


def test_another_signal_can_end_a_streak_while_one_is_skipped():
    class Other(Scripted):
        name = "other"

    policy = Policy([Threshold("scripted", 0.3, 0.7), Threshold("other", 0.3, 0.7)])
    atoms = copper()
    signals = [Scripted([None] * 9), Other([GOOD, BAD, BAD])]
    backbone = watched().calc.backbone
    atoms.calc = ReliableCalculator(backbone, signals=signals, policy=policy)
    dynamics = verlet(atoms)
    Monitor(dynamics, patience=2)
    assert dynamics.run(9) is False
    assert dynamics.nsteps == 2


def assessment(level, *, skipped):
    return Assessment((), Verdict(level, (), ("s",) if skipped else ()))


@given(
    frames=st.lists(st.tuples(st.sampled_from(Level), st.booleans()), max_size=40),
    patience=st.integers(1, 4),
    window=st.none() | st.integers(1, 6),
    fraction=st.floats(0.05, 1),
)
def test_trigger_follows_its_definition(frames, patience, window, fraction):
    """Each step counts as the last frame before it."""
    trigger = Trigger(patience, window, None if window is None else fraction)
    bad, whole = [], []
    for now, (level, skipped) in enumerate(frames):
        is_bad = level is Level.UNRELIABLE
        counts = is_bad or not skipped
        if counts:
            bad.append(is_bad)
        whole.append((is_bad, skipped))
        if window is None:
            expected = len(bad) >= patience and all(bad[-patience:])
        else:
            covered = sum(
                stands_as(whole[: step + 1])
                for step in range(max(0, now + 1 - window), now + 1)
            )
            expected = is_bad and covered >= fraction * window - 1e-9
        assert trigger(assessment(level, skipped=skipped)) == (counts and expected)


def stands_as(frames):
    """Return whether the last step counts as UNRELIABLE."""
    is_bad, skipped = frames[-1]
    if is_bad or not skipped:
        return is_bad
    judged = [bad for bad, skipped in frames if not skipped]
    return bool(judged) and judged[-1]


@pytest.mark.parametrize(("every", "expected"), [(1, 49), (5, 50), (10, 50)])
def test_a_signal_read_less_often_halts_at_about_the_same_time(every, expected):
    """Half of the last 50 fs, 25 fs, are 50 steps of 0.5 fs, however many are read."""
    signal = Scripted(after=BAD)
    signal.interval = every
    dynamics = VelocityVerlet(watched(signal=signal), 0.5 * units.fs)
    monitor = Monitor(dynamics)
    assert dynamics.run(200) is False
    assert dynamics.nsteps == expected
    assert monitor.halted
    # one bad reading is not half of the window, however long it counts
    signal = Scripted([GOOD] * 10 + [BAD], after=GOOD)
    signal.interval = every
    dynamics = VelocityVerlet(watched(signal=signal), 0.5 * units.fs)
    monitor = Monitor(dynamics)
    dynamics.run(20 * every)
    assert (monitor.halted, dynamics.nsteps) == (False, 20 * every)


def test_invalid_settings_and_calculators_are_refused():
    dynamics = verlet(watched())
    for settings, message in [
        (
            {"patience": 0},
            "patience must be a whole number of frames, at least 1, got 0",
        ),
        ({"patience": 2.5}, "whole number of frames, at least 1, got 2.5"),
        ({"log": "same", "flagged": "same"}, "different files, got same for both"),
        ({"window": 5}, "together, got window=5 and fraction=None"),
        ({"window": 5, "fraction": 1.5}, "fraction in"),
        ({"on_unreliable": "stop"}, "callable, got 'stop'"),
        ({"mode": "w"}, "'continue', 'append' or 'new', got 'w'"),
        ({"interval": 0}, "interval must be a whole number of at least 1, got 0"),
        ({"log_every": 2.5}, "log_every must be a whole number of at least 1, got 2.5"),
        ({"flagged": "f.xyz", "max_flagged": 0}, "at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Monitor(dynamics, **settings)
    assert dynamics.observers == []
    bare = copper()
    bare.calc = EMT()
    with pytest.raises(ValueError, match="must carry a ReliableCalculator, got EMT"):
        Monitor(verlet(bare), patience=1)
    with pytest.raises(ValueError, match="got none; run the dynamics first"):
        Monitor(dynamics, patience=1).snapshot()


def test_a_monitor_attached_late_counts_as_the_dynamics_does():
    dynamics = verlet(watched())
    dynamics.run(3)
    monitor = Monitor(dynamics, patience=1)
    dynamics.run(2)
    assert [e.step for e in monitor.history] == [4, 5]
    assert [e.time_fs for e in monitor.history] == pytest.approx([8, 10])


# ---------------------------------------------------------------- continued files


def run_once(folder, steps=4, *, risks=(), mode="continue", atoms=None, **options):
    """Run; continue from ``atoms`` if they are given, with their velocities."""
    fresh = watched(risks, **options)
    if atoms is not None:
        fresh.positions, fresh.cell = atoms.positions, atoms.cell
        fresh.set_velocities(atoms.get_velocities())
    dynamics = verlet(fresh)
    monitor = Monitor(
        dynamics,
        log=folder / "run.jsonl",
        flagged=folder / "flagged.xyz",
        mode=mode,
        patience=1,
    )
    dynamics.run(steps)
    return monitor


def test_steps_count_on_across_restarts(tmp_path):
    first = run_once(tmp_path, 4, risks=[GOOD, GOOD, GOOD, GOOD, BAD])
    write(tmp_path / "last.xyz", first.dynamics.atoms)  # which rounds the positions
    last = read(tmp_path / "last.xyz")
    second = run_once(tmp_path, 3, risks=[GOOD, GOOD, BAD], atoms=last)
    # the first geometry of a restart is the last one of the run before
    assert [e.step for e in second.history] == [4, 5, 6]
    assert second.history[-1].time_fs == pytest.approx(12)
    assert steps_of(tmp_path / "run.jsonl") == [0, 1, 2, 3, 4, 4, 5, 6]
    assert [f.info["step"] for f in read(tmp_path / "flagged.xyz", ":")] == [4, 6]
    assert len(events(tmp_path / "run.jsonl", "header")) == 2


@pytest.mark.parametrize("make", [verlet, quiet(BFGS)])
def test_a_script_that_is_run_twice_does_not_join_two_runs(tmp_path, make):
    log, flagged = tmp_path / "run.jsonl", tmp_path / "flagged.xyz"

    def script(**options):
        dynamics = make(watched(after=BAD))
        monitor = Monitor(
            dynamics, log=log, flagged=flagged, on_unreliable="warn", **options
        )
        go(dynamics, 5)
        return monitor

    script()
    before = log.read_bytes(), flagged.read_bytes()
    for _ in range(2):
        with pytest.raises(RecordError, match=r'another file name .*mode="append"'):
            script()
        assert (log.read_bytes(), flagged.read_bytes()) == before
    assert script(mode="append").step == 10


def test_a_run_without_a_number_at_its_end_is_not_continued(tmp_path):
    log = tmp_path / "run.jsonl"
    dynamics = verlet(watched(base=FaultyEMT(2, "nan")))
    Monitor(dynamics, log=log)
    dynamics.run(9)
    with pytest.raises(RecordError, match="with None eV at step 2"):
        Monitor(verlet(watched()), log=log)


def test_one_process_with_two_monitors_counts_on(tmp_path):
    dynamics = verlet(watched())
    Monitor(dynamics, log=tmp_path / "run.jsonl", patience=1)
    dynamics.run(3)
    dynamics.observers.clear()
    Monitor(dynamics, log=tmp_path / "run.jsonl", patience=1)
    dynamics.run(2)
    assert steps_of(tmp_path / "run.jsonl") == [0, 1, 2, 3, 4, 5]


def test_files_of_another_run_are_refused(tmp_path):
    def content():  # without the locks of monitors that are no longer used
        paths = [p for p in tmp_path.iterdir() if p.suffix != ".lock"]
        return {path: path.read_bytes() for path in paths}

    run_once(tmp_path, risks=[BAD])
    before = content()
    other = Policy([Threshold("scripted", 0.1, 0.2)])
    with pytest.raises(RecordError, match=r"unreliable: 0\.7 there, 0\.2 here"):
        run_once(tmp_path, policy=other)
    with pytest.raises(RecordError, match=r'backbone: "toy:1" there, "toy:2" here'):
        run_once(tmp_path, fingerprint="toy:2")
    with pytest.raises(RecordError, match="must not exist in mode 'new'"):
        run_once(tmp_path, mode="new")
    (tmp_path / "flagged.xyz").unlink()
    with pytest.raises(RecordError, match="must not exist in mode 'new'"):
        run_once(tmp_path, mode="new")
    (tmp_path / "flagged.xyz").write_bytes(before[tmp_path / "flagged.xyz"])
    assert content() == before


def test_a_refused_monitor_leaves_no_new_file(tmp_path):
    (tmp_path / "flagged.xyz").write_text("1\n\nCu 0 0 0\n", encoding="utf-8")
    with pytest.raises(RecordError, match="must not exist"):
        run_once(tmp_path, mode="new")
    assert not (tmp_path / "run.jsonl").exists()


def test_incomplete_ends_are_cut_on_resume(tmp_path):
    first = run_once(tmp_path, 3, risks=[GOOD, GOOD, BAD])
    second = run_once(tmp_path, 1, risks=[GOOD, BAD], atoms=first.dynamics.atoms)
    log, flagged = tmp_path / "run.jsonl", tmp_path / "flagged.xyz"
    log.write_bytes(log.read_bytes() + '{"event": "step", "unit": "Å'.encode()[:-1])
    flagged.write_bytes(flagged.read_bytes()[:-20])
    last = second.dynamics.atoms
    third = run_once(tmp_path, 2, risks=[GOOD, GOOD, BAD], atoms=last)
    assert [e.step for e in third.history] == [3, 4, 5]
    for line in log.read_text(encoding="utf-8").splitlines():
        json.loads(line)
    assert [f.info["step"] for f in read(flagged, ":")] == [2, 5]


def test_the_cap_counts_frames_of_the_run_before(tmp_path):
    for expected in ([0], [0, 0], [0, 0]):
        dynamics = verlet(watched([BAD]))
        Monitor(dynamics, flagged=tmp_path / "flagged.xyz", max_flagged=2, patience=1)
        dynamics.run(1)
        frames = read(tmp_path / "flagged.xyz", ":")
        assert [f.info["step"] for f in frames] == expected


def test_the_error_survives_a_process_pool():
    error = UnreliableError(7, assessment(Level.UNRELIABLE, skipped=()))
    again = pickle.loads(pickle.dumps(error))
    assert (again.step, str(again)) == (7, str(error))
    assert again.assessment.level is Level.UNRELIABLE


def test_a_log_of_another_run_is_refused_and_kept(tmp_path):
    log = tmp_path / "run.jsonl"
    log.write_text(json.dumps({"event": "header", "run": {"formula": "Au3"}}) + "\n")
    before = log.read_bytes()
    with pytest.raises(RecordError, match="must belong to the same run"):
        Monitor(verlet(watched()), log=log)
    assert log.read_bytes() == before
