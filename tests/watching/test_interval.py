"""Every k-th geometry judged, a switch for all checks, and a thinned log."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, BFGSLineSearch
from toys import (
    BAD,
    GOOD,
    POLICY,
    SUSPECT,
    FaultyEMT,
    OfGeometry,
    Scripted,
    ToyBackbone,
    copper,
)

from uqcalc import (
    Level,
    Monitor,
    ReliableCalculator,
    annotate,
    read_assessment,
    read_log,
    relax,
)
from uqcalc.info import log_info
from uqcalc.watching.eventlog import read_standing
from uqcalc.watching.logsummary import summarise_log
from uqcalc.watching.trigger import Trigger


class Counting(Scripted):
    """Counts how many times it is read."""

    read = 0

    def __call__(self, prediction):
        self.read += 1
        return super().__call__(prediction)


def judged(risks=(), *, after=GOOD, base=None, **options):
    atoms = copper()
    atoms.calc = ReliableCalculator(
        ToyBackbone(base or EMT()),
        signals=[Counting(risks, after)],
        policy=POLICY,
        **options,
    )
    return atoms


def verlet(atoms, femtoseconds=0.5):
    return VelocityVerlet(atoms, femtoseconds * units.fs)


def reads(atoms):
    return atoms.calc.signals[0].read


def test_every_third_geometry_is_judged_and_the_others_have_no_level():
    atoms, bare = judged(interval=3), copper()
    bare.calc = EMT()
    levels = []
    for step in range(7):
        for each in (atoms, bare):
            each.positions[0, 0] += 0.01
        np.testing.assert_array_equal(atoms.get_forces(), bare.get_forces())
        levels.append("reliability_level" in atoms.calc.results)
        assert (atoms.calc.assessment is None) == (step % 3 != 0)
    assert levels == [True, False, False] * 2 + [True]
    assert reads(atoms) == 3
    assert atoms.calc.backbone.passes == 3
    atoms.positions[0, 0] += 0.01
    assert atoms.calc.assess(atoms).level is Level.RELIABLE  # requested, so judged
    assert atoms.calc.results["reliability_level"] == 0


@pytest.mark.parametrize("interval", [0, -1, 2.5, True])
def test_an_interval_is_a_whole_number(interval):
    with pytest.raises(
        ValueError, match="interval must be a whole number of at least 1"
    ):
        judged(interval=interval)


def test_a_calculator_that_is_switched_off_is_the_bare_one(tmp_path):
    log = tmp_path / "run.jsonl"
    atoms, bare = judged(after=BAD, enabled=False), copper()
    bare.calc = EMT()
    dynamics, other = verlet(atoms), verlet(bare)
    monitor = Monitor(dynamics, log=log, patience=1)
    assert dynamics.run(5)
    other.run(5)
    np.testing.assert_array_equal(atoms.positions, bare.positions)
    assert atoms.get_potential_energy() == bare.get_potential_energy()
    assert set(atoms.calc.results) == set(bare.calc.results)
    assert (atoms.calc.assessment, reads(atoms)) == (None, 0)
    assert atoms.calc.backbone.passes == 0
    assert not monitor.history
    assert [r["event"] for r in read_log(log)] == ["header"]
    with pytest.raises(ValueError, match="calculator must be enabled to assess"):
        atoms.calc.assess(atoms)
    with pytest.raises(ValueError, match="calculator must be enabled"):
        annotate([copper()], atoms.calc)
    atoms.calc.enabled = True  # the geometry is judged now, and not before
    assert atoms.calc.assess(atoms).level is Level.UNRELIABLE
    atoms.calc.enabled = False
    assert "reliability_level" not in (atoms.get_forces(), atoms.calc.results)[1]


def test_a_monitor_that_is_switched_off_neither_watches_nor_writes(tmp_path):
    dynamics = verlet(judged(after=BAD))
    log, flagged = tmp_path / "run.jsonl", tmp_path / "flagged.xyz"
    monitor = Monitor(dynamics, log=log, flagged=flagged, enabled=False, patience=1)
    assert dynamics.run(3)
    assert dynamics.observers == []
    assert list(tmp_path.iterdir()) == []
    assert monitor.summary() == "Nothing was watched: the monitor is not enabled."
    monitor.close()
    assert not monitor.halted


@pytest.mark.parametrize(
    ("calculator", "monitor"), [(1, 10), (10, 1), (10, 10), (5, 10), (3, 10)]
)
def test_half_of_the_last_50_fs_does_not_depend_on_the_interval(calculator, monitor):
    """25 fs are 50 steps of 0.5 fs: the halt is at the next judged step."""
    atoms = judged(after=BAD, interval=calculator)
    dynamics = verlet(atoms)
    watching = Monitor(dynamics, interval=monitor)
    assert dynamics.run(200) is False
    assert watching.halted
    assert 49 <= dynamics.nsteps <= 49 + max(calculator, monitor)
    atoms = judged([GOOD] * 12 + [BAD], interval=calculator)
    dynamics = verlet(atoms)
    watching = Monitor(dynamics, interval=monitor)
    assert dynamics.run(200)  # one bad reading in between is not half of the window
    assert not watching.halted


def test_steps_between_the_judged_ones_are_not_called_reliable(tmp_path):
    log = tmp_path / "run.jsonl"
    dynamics = verlet(judged(interval=4))
    monitor = Monitor(dynamics, log=log)
    dynamics.run(6)
    assert [e.level for e in monitor.history] == [0, None, None, None, 0, None, None]
    assert monitor.counts()[Level.RELIABLE] == 2
    assert "2 RELIABLE, 0 SUSPECT, 0 UNRELIABLE, 5 not judged" in monitor.summary()
    assert monitor.end["not_judged"] == 5
    found = summarise_log(log)
    assert (found.levels[Level.RELIABLE], found.unjudged) == (2, 5)
    assert ("judged", "2 RELIABLE, 0 SUSPECT, 0 UNRELIABLE, 5 not judged") in log_info(
        found
    ).rows
    levels = [r["level"] for r in read_log(log) if r["event"] == "step"]
    assert levels == ["RELIABLE", None, None, None, "RELIABLE", None, None]
    frame = monitor.snapshot()  # requested, so judged
    assert read_assessment(frame).level is Level.RELIABLE
    again = Trigger(patience=1)
    again.replay(read_standing(log), ["scripted"])


def test_a_monitor_looks_at_every_kth_step_and_at_the_last(tmp_path):
    dynamics = verlet(judged())
    monitor = Monitor(dynamics, interval=4, log=tmp_path / "run.jsonl")
    dynamics.run(10)
    assert [event.step for event in monitor.history] == [0, 4, 8, 10]
    assert monitor.end["how"] == "finished"


def test_monitor_judges_if_intervals_do_not_coincide():
    atoms = judged(after=BAD, interval=7)
    atoms.get_forces()  # the first geometry is judged; the next of them is the eighth
    atoms.rattle(0.01, seed=1)
    dynamics = verlet(atoms)
    monitor = Monitor(dynamics, interval=5, window=20, fraction=0.5)
    assert dynamics.run(60) is False
    assert [e.level for e in monitor.history[:1]] == [Level.UNRELIABLE]
    assert dynamics.nsteps <= 20


def test_a_line_search_is_judged_at_its_steps_in_time():
    atoms = judged(after=BAD, interval=5)
    atoms.rattle(0.3, seed=1)
    dynamics = BFGSLineSearch(atoms, logfile=None)
    monitor = Monitor(dynamics, patience=2)
    dynamics.run(fmax=1e-9, steps=40)
    steps = [e.step for e in monitor.history if e.level is not None]
    assert max(np.diff(steps)) <= 5
    assert monitor.halted


def test_nan_and_impossible_speed_stop_a_step_that_was_not_judged():
    dynamics = verlet(judged(interval=50, base=FaultyEMT(3, "nan")))
    monitor = Monitor(dynamics, patience=9)
    assert dynamics.run(20) is False
    assert monitor.history[-1].level is Level.UNRELIABLE
    assert dynamics.nsteps == 3
    atoms = judged(interval=50)
    dynamics = verlet(atoms)
    monitor = Monitor(dynamics, patience=9)
    fast = np.zeros((4, 3))
    fast[0] = 3.0 / (0.5 * units.fs)
    dynamics.attach(lambda: dynamics.nsteps == 2 and atoms.set_velocities(fast))
    dynamics.run(20)
    assert monitor.reason.startswith("Unphysical values at step 3")


def test_relaxation_does_not_trust_unjudged_geometries():
    done = relax(judged(interval=3), BFGS, fmax=1e-6, steps=4)
    assert done.trusted_step == 3
    assert read_assessment(done.final).level is Level.RELIABLE
    assert done.history[-1].level is None


# ------------------------------------------------------------------ thinned logs


def steps_of(path):
    return [r["step"] for r in read_log(path) if r["event"] == "step"]


def test_a_thinned_log_keeps_flagged_steps_changes_and_the_last(tmp_path):
    log = tmp_path / "run.jsonl"
    risks = [GOOD] * 3 + [SUSPECT] * 4 + [BAD, BAD] + [GOOD] * 30
    dynamics = verlet(judged(risks))
    monitor = Monitor(dynamics, log=log, log_every=10, on_unreliable="warn", patience=2)
    dynamics.run(26)
    assert steps_of(log) == [0, 3, 7, 8, 9, 19, 26]
    assert list(read_log(log))[-1]["event"] == "end"
    assert monitor.history.seen == 27
    rows = dict(log_info(summarise_log(log)).rows)
    assert rows["logged"].startswith("every 10 steps; also UNRELIABLE steps")


@pytest.mark.parametrize("window", [None, 12])
def test_a_thinned_log_goes_on_as_the_whole_one(tmp_path, window):
    rng = np.random.default_rng(0)
    levels = rng.choice([GOOD, SUSPECT, BAD, None], 200, p=[0.5, 0.2, 0.15, 0.15])
    fraction = None if window is None else 0.5
    replayed = []
    for every in (1, 7):
        log = tmp_path / f"{every}.jsonl"
        dynamics = verlet(judged(list(levels)))
        Monitor(dynamics, log=log, log_every=every, on_unreliable=lambda _: None)
        dynamics.run(199)
        trigger = Trigger(3 if window is None else 1, window, fraction)
        trigger.replay(read_standing(log), ["scripted"])
        assessment = judged([BAD]).calc.assess(copper())
        replayed.append([trigger(assessment, 200 + k) for k in range(12)])
    assert len(steps_of(tmp_path / "7.jsonl")) < 150
    assert replayed[0] == replayed[1]


def test_signals_of_geometries_that_are_judged_are_those_of_every_step():
    def risk(positions):
        return float(np.abs(positions).sum())

    found = []
    for interval in (1, 5):
        atoms = copper()
        atoms.calc = ReliableCalculator(
            ToyBackbone(EMT()),
            signals=[OfGeometry(risk)],
            policy=POLICY,
            interval=interval,
        )
        dynamics = verlet(atoms)
        monitor = Monitor(dynamics, on_unreliable="warn")
        dynamics.run(20)
        found.append([e.readings.get("scripted") for e in monitor.history])
    assert found[1][::5] == found[0][::5]
    assert set(found[1]) - set(found[1][::5]) == {None}
