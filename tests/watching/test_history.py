from __future__ import annotations

import pytest
from ase.md.verlet import VelocityVerlet
from ase.optimize.basin import BasinHopping
from toys import BAD, GOOD, OfGeometry, watched

from uqcalc import Level, Monitor, UnreliableError, read_log


def test_old_events_are_dropped_and_still_counted(tmp_path):
    risks = [BAD, GOOD, BAD, *[GOOD] * 18]
    atoms = watched(risks)
    dynamics = VelocityVerlet(atoms, 1.0)
    log = tmp_path / "run.jsonl"
    monitor = Monitor(dynamics, log=log, history=5, on_unreliable="warn")
    dynamics.run(20)
    assert [event.step for event in monitor.history] == [16, 17, 18, 19, 20]
    assert monitor.history[-1].step == 20
    assert [event.step for event in monitor.history[-2:]] == [19, 20]
    assert monitor.history.seen == 21
    assert monitor.counts() == {
        Level.RELIABLE: 19,
        Level.SUSPECT: 0,
        Level.UNRELIABLE: 2,
    }
    assert "steps 0 to 20: 19 RELIABLE, 0 SUSPECT, 2 UNRELIABLE" in monitor.summary()
    assert monitor.end["levels"]["UNRELIABLE"] == 2
    steps = [r["step"] for r in read_log(log) if r["event"] == "step"]
    assert steps == list(range(21))


def test_all_events_are_kept_on_request():
    atoms = watched()
    dynamics = VelocityVerlet(atoms, 1.0)
    monitor = Monitor(dynamics, history=None)
    dynamics.run(12)
    assert len(monitor.history) == 13


@pytest.mark.parametrize("kept", [0, -1, 2.5, True, "all"])
def test_the_number_kept_is_checked(kept):
    dynamics = VelocityVerlet(watched(), 1.0)
    with pytest.raises(
        ValueError, match="history must be the number of events to keep"
    ):
        Monitor(dynamics, history=kept)


def hop(atoms, folder, **options):
    hopping = BasinHopping(
        atoms,
        temperature=1.0,
        dr=0.4,
        logfile=None,
        optimizer_logfile=None,
        trajectory=str(folder / "lowest.traj"),
        local_minima_trajectory=None,
    )
    return hopping, Monitor(hopping, log=folder / "run.jsonl", **options)


def test_each_new_minimum_of_basin_hopping_is_a_step(tmp_path):
    atoms = watched(signal=OfGeometry(lambda _: GOOD), amount=0.6)
    hopping, monitor = hop(atoms, tmp_path)
    seen = []
    hopping.attach(lambda: seen.append(hopping.Emin))
    for _ in range(3):
        hopping.call_observers()
    hopping.run(2)
    monitor.close()
    steps = [r["step"] for r in read_log(tmp_path / "run.jsonl") if "readings" in r]
    assert steps == list(range(len(seen)))
    assert monitor.history.seen == len(seen)
    assert monitor.end["how"] == "finished"
    assert "converged" not in monitor.end


def test_basin_hopping_is_halted_by_raising(tmp_path):
    atoms = watched(signal=OfGeometry(lambda _: BAD))
    hopping, monitor = hop(atoms, tmp_path, patience=1)
    with pytest.raises(UnreliableError):
        hopping.call_observers()
    assert monitor.halted
    assert monitor.end["how"] == "halted"
