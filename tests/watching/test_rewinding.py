"""Rewinding a run, and the steps of a log that may enter an average."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.constraints import FixAtoms
from ase.md.andersen import Andersen
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.melchionna import MelchionnaNPT
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.nvtberendsen import NVTBerendsen
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from toys import BAD, GOOD, SUSPECT, FaultyEMT, Scripted, copper, watched

from uqcalc import Monitor, Rewind, read_log, reliable_frames
from uqcalc.info import file_info
from uqcalc.watching.eventlog import EventLog
from uqcalc.watching.rewinding import refresh_momenta
from uqcalc.watching.state import State


FS = units.fs
DT = 2.0 * FS


def verlet(atoms):
    return VelocityVerlet(atoms, DT)


def langevin(atoms):
    return Langevin(atoms, DT, temperature_K=300, friction=0.01, fixcm=False)


def breathing(atoms):
    return LangevinBAOAB(
        atoms, DT, temperature_K=300, externalstress=0.0, hydrostatic=False,
        T_tau=20 * DT, P_tau=50 * DT, P_mass=100.0, rng=np.random.default_rng(0),
    )  # fmt: skip


def chain(atoms):
    return NoseHooverChainNVT(atoms, DT, temperature_K=300, tdamp=50 * FS)


def isotropic(atoms):
    return IsotropicMTKNPT(
        atoms, DT, temperature_K=300, pressure_au=0.0, tdamp=50 * FS, pdamp=500 * FS
    )


def full(atoms):
    return MTKNPT(
        atoms, DT, temperature_K=300, pressure_au=0.0, tdamp=50 * FS, pdamp=500 * FS
    )


def berendsen(atoms):
    return NVTBerendsen(atoms, DT, temperature_K=300, taut=50 * FS)


def andersen(atoms):
    return Andersen(atoms, DT, temperature_K=300, andersen_prob=0.1)


def bussi(atoms):
    return Bussi(atoms, DT, temperature_K=300, taut=50 * FS)


ALL = [
    verlet, langevin, breathing, chain, isotropic, full, berendsen, andersen, bussi
]  # fmt: skip


def bad_after(good, bad=3):
    return [*[GOOD] * good, *[BAD] * bad]


def failing_once():
    """Return copper with scripted risks that judge the stress of a moving cell, too."""
    signal = Scripted(bad_after(16))
    signal.judges = frozenset({"forces", "stress"})
    return watched(signal=signal)


def recorded(dynamics):
    frames = []
    atoms = dynamics.atoms
    dynamics.attach(
        lambda: frames.append((atoms.positions.copy(), atoms.get_momenta()))
    )
    return frames


@pytest.mark.parametrize("make", ALL)
def test_an_unchanged_state_gives_the_same_path(make):
    """Without new momenta, dynamics without noise repeats its steps."""
    atoms = failing_once()
    dynamics = make(atoms)
    frames = recorded(dynamics)
    settings = Rewind(back_fs=16.0, refresh=0.0)
    monitor = Monitor(dynamics, patience=3, on_unreliable=settings)
    dynamics.run(26)
    [rewound] = monitor.rewinds
    assert (rewound.step, rewound.to_step) == (18, 10)
    assert not monitor.halted
    assert len(frames) == 27
    old, new = frames[11:19], frames[19:27]
    if hasattr(dynamics, "rng"):
        assert not np.allclose(old[-1][0], new[-1][0], atol=1e-6)
        np.testing.assert_allclose(old[0][0], new[0][0], atol=0.1)
    else:
        for (x, p), (y, q) in zip(old, new, strict=True):
            np.testing.assert_allclose(y, x, atol=1e-9)
            np.testing.assert_allclose(q, p, atol=1e-9)


@pytest.mark.parametrize("make", ALL)
def test_every_dynamics_takes_another_path_that_its_seed_repeats(make):
    ends = []
    for seed in (0, 0, 1):
        atoms = failing_once()
        np.random.seed(0)  # noqa: NPY002  (ASE's default generator)
        dynamics = make(atoms)
        settings = Rewind(back_fs=16.0, seed=seed)
        monitor = Monitor(dynamics, patience=3, on_unreliable=settings)
        dynamics.run(26)
        assert len(monitor.rewinds) == 1
        ends.append(atoms.positions.copy())
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.allclose(ends[0], ends[2], atol=1e-6)


def test_the_energy_of_an_isolated_system_stays():
    atoms = watched(bad_after(16))
    dynamics = verlet(atoms)
    energies = []
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    start = atoms.get_momenta().sum(axis=0)
    Monitor(dynamics, patience=3, on_unreliable=Rewind(back_fs=16.0))
    dynamics.run(60)
    assert np.ptp(energies) < 0.05 * atoms.get_kinetic_energy()
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), start, atol=1e-9)


def test_the_alarm_is_on_disk_and_then_the_run_goes_back(tmp_path):
    log = tmp_path / "run.jsonl"
    atoms = watched(bad_after(16))
    dynamics = verlet(atoms)
    frames = recorded(dynamics)
    settings = Rewind(back_fs=16.0)
    monitor = Monitor(dynamics, log=log, patience=3, on_unreliable=settings)
    dynamics.run(26)
    records = list(read_log(log))
    [rewind] = [r for r in records if r["event"] == "rewind"]
    assert (rewind["step"], rewind["to_step"], rewind["number"]) == (18, 10, 1)
    assert records[records.index(rewind) - 1]["step"] == 18
    assert [r["step"] for r in records if r["event"] == "step"] == list(range(27))
    assert records[-1]["rewinds"] == 1
    assert "Rewound 1 time, from step 18 to 10." in monitor.summary()
    assert ("rewind 1", f"step 18 to 10: {rewind['reason']}") in file_info(log).rows
    np.testing.assert_allclose(  # the frame of the alarm, not that of step 10
        frames[18][0] - frames[17][0], frames[17][0] - frames[16][0], atol=0.02
    )
    found = reliable_frames(log)
    assert found.steps.tolist() == [*range(11), *range(19, 27)]
    assert found.left_out == {"rewound": 5, "UNRELIABLE": 3}
    assert found.frames(5).tolist() == [0, 1, 2, 4, 5]


def test_repeated_failures_go_further_back_and_then_halt(tmp_path):
    risks = [*[GOOD] * 40, *bad_after(2) * 9]
    atoms = watched(risks, after=BAD)
    dynamics = verlet(atoms)
    log = tmp_path / "run.jsonl"
    settings = Rewind(max_rewinds=2, back_fs=16.0)
    monitor = Monitor(dynamics, log=log, patience=3, on_unreliable=settings)
    assert dynamics.run(100) is False
    assert monitor.halted
    first, second = monitor.rewinds
    assert second.to_step < first.to_step
    assert "after 2 rewinds" in monitor.reason
    assert "after 2 rewinds" in monitor.summary()


def test_without_a_reliable_state_the_run_is_halted():
    for risks in ([BAD] * 9, [SUSPECT] * 30 + [BAD] * 9, [GOOD] * 4 + [BAD] * 9):
        atoms = watched(risks)
        dynamics = verlet(atoms)
        settings = Rewind(back_fs=16.0)
        monitor = Monitor(dynamics, patience=3, on_unreliable=settings)
        dynamics.run(60)
        assert monitor.halted
        assert not monitor.rewinds
        assert "no RELIABLE state is left 16 fs before the alarm" in monitor.reason


def test_nan_goes_back_at_once():
    atoms = watched(base=FaultyEMT(16, "NaN"))
    dynamics = langevin(atoms)
    monitor = Monitor(dynamics, on_unreliable=Rewind(back_fs=8.0))
    dynamics.run(30)
    assert [r.step for r in monitor.rewinds] == [16]
    assert np.isfinite(atoms.positions).all()


def test_the_number_of_states_is_bounded():
    atoms = watched()
    dynamics = verlet(atoms)
    monitor = Monitor(dynamics, on_unreliable=Rewind(max_rewinds=1, back_fs=4.0))
    dynamics.run(60)
    assert len(monitor._rewinder._states) == 10


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_momenta_keep_energy_drift_and_constraints(share):
    rng = np.random.default_rng(5)
    atoms = copper()
    free = copper()
    atoms.set_constraint(FixAtoms([0, 2]))
    atoms.set_momenta(atoms.get_momenta())
    for one in (atoms, free):
        before = one.get_momenta()
        energy = one.get_kinetic_energy()
        refresh_momenta(one, share, rng)
        assert one.get_kinetic_energy() == pytest.approx(energy, rel=1e-9)
        assert np.allclose(one.get_momenta(), before) == (share == 0.0)
        total = before.sum(axis=0)
        if one is free:
            np.testing.assert_allclose(one.get_momenta().sum(axis=0), total)
    assert not atoms.get_momenta()[[0, 2]].any()


def test_refreshed_momenta_have_the_thermal_distribution():
    """Uniform on the sphere of the kinetic energy, for any start."""
    rng = np.random.default_rng(1)
    atoms = copper()
    atoms.set_momenta(np.eye(4, 3) - np.eye(4, 3).mean(axis=0))
    shares = []
    for _ in range(4000):
        refresh_momenta(atoms, 0.5, rng)
        squares = atoms.get_momenta() ** 2
        shares.append(squares / squares.sum())
    np.testing.assert_allclose(np.mean(shares, axis=0), 1 / 12, rtol=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_rewinds": 0},
        {"max_rewinds": 2.5},
        {"back_fs": 0.0},
        {"back_fs": "20"},
        {"back_fs": None},
        {"refresh": 1.5},
        {"refresh": "half"},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        Rewind(**settings)


def test_settings_from_numpy_are_taken():
    settings = Rewind(np.int64(2), np.float32(20.0), np.float64(0.5), np.int32(1))
    assert (settings.max_rewinds, settings.seed) == (2, 1)
    assert settings.back_fs == 20.0


@pytest.mark.parametrize(
    ("trigger", "failure"),
    [
        ({"window": 12, "fraction": 0.5}, [BAD, GOOD] * 5 + [BAD] * 30),
        ({"patience": 3}, [BAD] * 30),
    ],
)
def test_reliable_frame_within_the_failure_is_not_used(trigger, failure):
    """``back_fs`` is one step, and every second frame of the failure is RELIABLE."""
    atoms = watched([GOOD] * 20 + failure)
    dynamics = verlet(atoms)
    settings = Rewind(max_rewinds=1, back_fs=2.0)
    monitor = Monitor(dynamics, **trigger, on_unreliable=settings)
    dynamics.run(31)
    [rewound] = monitor.rewinds
    assert rewound.to_step == 19


def test_a_restarted_run_counts_its_rewinds(tmp_path):
    log = tmp_path / "run.jsonl"
    options = {"patience": 3, "on_unreliable": Rewind(max_rewinds=1, back_fs=16.0)}
    atoms = watched(bad_after(16))
    dynamics = verlet(atoms)
    Monitor(dynamics, log=log, **options)
    dynamics.run(26)
    again = watched(bad_after(10))
    again.set_positions(atoms.positions)
    dynamics = verlet(again)
    monitor = Monitor(dynamics, log=log, first_step=24, mode="append", **options)
    assert len(monitor.rewinds) == 1
    dynamics.run(40)
    assert monitor.halted
    assert "after 1 rewind" in monitor.reason


def test_dynamics_that_cannot_be_rewound_is_refused():
    with pytest.raises(ValueError, match="must be molecular dynamics"):
        Monitor(FIRE(watched(), logfile=None), on_unreliable="rewind")
    atoms = watched()
    stateful = MelchionnaNPT(
        atoms, DT, temperature_K=300, externalstress=0.0, ttime=50 * FS, pfactor=None
    )
    with pytest.raises(ValueError, match="got MelchionnaNPT"):
        Monitor(stateful, on_unreliable="rewind")


def test_a_state_without_a_generator_of_its_own_is_taken():
    atoms = watched()
    assert State.of(0, atoms, langevin(atoms)).generator is None


def written(path, events):
    log = EventLog(path, {"run": {}}, "new")
    for event, step, *more in events:
        record = {"event": event, "step": step}
        if event == "step":
            record |= {"level": more[0], "readings": {}, "time_fs": None}
        if event == "rewind":
            record |= {"to_step": more[0]}
        if event == "end":
            record |= {"how": more[0]}
        log.write(record)
    return path


R, S, U = "RELIABLE", "SUSPECT", "UNRELIABLE"


@pytest.mark.parametrize(
    ("events", "steps", "left_out"),
    [
        ([("step", 0, R), ("step", 1, S), ("step", 2, None)], [0],
         {"SUSPECT": 1, "not judged": 1}),
        ([("step", 0, R), ("step", 1, U), ("warning", 1), ("step", 2, R)], [0],
         {"UNRELIABLE": 1, "after an alarm": 1}),
        ([("step", 0, R), ("step", 1, U), ("end", 1, "halted"), ("step", 1, R),
          ("step", 2, R)], [0, 1],
         {"after an alarm": 1, "repeated after a restart": 1}),
        ([("step", 0, R), ("step", 1, U), ("end", 1, "halted"), ("step", 0, R),
          ("step", 1, R)], [0, 1], {"repeated after a restart": 2}),
        ([("step", 0, R), ("end", 0, "finished"), ("step", 1, R)], [0, 1], {}),
        ([("step", 0, R), ("step", 1, R), ("step", 2, U), ("rewind", 2, 0),
          ("step", 3, R), ("step", 4, U), ("rewind", 4, 3), ("step", 5, R)],
         [0, 3, 5], {"UNRELIABLE": 2, "rewound": 1}),
    ],
)  # fmt: skip
def test_steps_for_averages(tmp_path, events, steps, left_out):
    found = reliable_frames(written(tmp_path / "run.jsonl", events))
    assert found.steps.tolist() == steps
    assert found.left_out == left_out
    assert len(found) + sum(left_out.values()) == found.logged
    for reason, count in left_out.items():
        assert f"{count} {reason}" in str(found)


def test_suspect_steps_are_taken_on_request(tmp_path):
    path = written(
        tmp_path / "run.jsonl", [("step", 0, R), ("step", 1, S), ("step", 2, U)]
    )
    assert reliable_frames(path, "SUSPECT").steps.tolist() == [0, 1]
    with pytest.raises(ValueError, match="must be RELIABLE or SUSPECT, got 'UNRELI"):
        reliable_frames(path, "UNRELIABLE")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        reliable_frames(path).frames(0)
