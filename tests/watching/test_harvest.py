"""`on_unreliable="harvest"`: frames after the alarm, spaced by novelty, and the end."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read
from ase.md.verlet import VelocityVerlet
from toys import POLICY, OfGeometry, ToyBackbone

from uqcalc import Monitor, ReliableCalculator, read_assessment, read_log, select
from uqcalc.annotating.descriptor import read_descriptor
from uqcalc.watching.harvest import Harvest
from uqcalc.watching.monitor import ABSURD


class Free(Calculator):
    """Atoms without forces: each moves on a straight line."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


class Places(ToyBackbone):
    """The features are the positions, so that novelty is a distance in space."""

    @contextmanager
    def armed(self):
        with super().armed() as captured:
            yield captured
            places = torch.as_tensor(self.calculator.atoms.positions.copy())
            captured.features[:] = [places for _ in captured.features]

    def __init__(self, calculator):
        super().__init__(calculator)
        self.feature_dim = 3


def drifting(rim=1.0, *, speed=0.05):
    """Two atoms that separate by ``speed`` Å a step, UNRELIABLE beyond ``rim``."""
    atoms = Atoms("Cu2", [(0, 0, 0), (2.3, 0, 0)])
    atoms.set_velocities([(0, 0, 0), (speed / units.fs, 0, 0)])
    signal = OfGeometry(lambda positions: float(positions[1, 0] - 2.3 > rim))
    atoms.calc = ReliableCalculator(
        Places(Free()), signals=[signal], policy=POLICY, sanity=False
    )
    return VelocityVerlet(atoms, 1.0 * units.fs)


def test_frames_beyond_the_reliable_region_are_kept_by_novelty(tmp_path):
    log, flagged = tmp_path / "run.jsonl", tmp_path / "flagged.xyz"
    dynamics = drifting()
    monitor = Monitor(
        dynamics, log=log, flagged=flagged, on_unreliable="harvest", patience=3
    )
    dynamics.run(100)
    assert not monitor.halted
    frames = read(flagged, ":")
    steps = [frame.info["step"] for frame in frames]
    alarm = steps[0]
    assert alarm == 23  # the third step in a row beyond the rim
    novelty = [frame.info["harvest_novelty"] for frame in frames]
    assert novelty == sorted(novelty)
    vectors = [read_descriptor(frame)[0] for frame in frames]
    apart = np.linalg.norm(np.diff(vectors, axis=0), axis=1)
    spacing = frames[0].info["harvest_spacing"]
    step = np.linalg.norm(vectors[1] - vectors[0]) / (steps[1] - steps[0])
    assert (apart >= spacing).all()
    assert (apart < spacing + 1.001 * step).all()  # the first that is far enough
    assert 5 < len(frames) < 70
    assert f"Harvested: {len(frames)} of at most 50 frames" in monitor.summary()
    assert monitor.end["harvested"] == len(frames)
    [warning] = [r for r in read_log(log) if r["event"] == "warning"]
    assert warning["step"] == alarm
    assert "the harvest of frames begins" in warning["reason"]
    assert all(read_assessment(frame).level == 2 for frame in frames)
    assert len(select(frames, 3)) == 3  # ready for `select`


def test_the_spacing_does_not_depend_on_the_speed(tmp_path):
    kept = []
    for speed in (0.02, 0.04):
        dynamics = drifting(speed=speed)
        path = tmp_path / f"{speed}.xyz"
        Monitor(dynamics, flagged=path, on_unreliable="harvest", patience=1)
        dynamics.run(round(4 / speed))
        kept.append(len(read(path, ":")))
    assert abs(kept[0] - kept[1]) <= 1


def test_a_full_budget_halts_the_run(tmp_path):
    dynamics = drifting()
    monitor = Monitor(
        dynamics,
        flagged=tmp_path / "f.xyz",
        on_unreliable="harvest",
        patience=1,
        max_harvest=4,
    )
    dynamics.run(500)
    assert monitor.halted
    frames = read(tmp_path / "f.xyz", ":")
    assert len(frames) == 4
    assert monitor.step == frames[-1].info["step"] < 500
    assert "budget of harvested frames is full" in monitor.reason
    assert monitor.flagged.left_out == 0


def test_impossible_frame_ends_the_harvest_and_is_not_kept(tmp_path):
    dynamics = drifting()
    atoms = dynamics.atoms
    monitor = Monitor(
        dynamics, flagged=tmp_path / "f.xyz", on_unreliable="harvest", patience=1
    )

    def faster():
        if dynamics.nsteps == 60:
            atoms.set_velocities([(0, 0, 0), (5 / units.fs, 0, 0)])

    dynamics.attach(faster)
    dynamics.run(100)
    assert monitor.halted
    assert monitor.reason.startswith(ABSURD)
    last = read(tmp_path / "f.xyz", -1)
    assert last.info["step"] < monitor.step
    assert not read_assessment(last).absurd


def test_impossible_frames_before_the_end_are_not_kept(tmp_path):
    atoms = Atoms("Cu2", [(0, 0, 0), (2.3, 0, 0)])
    atoms.set_velocities([(0, 0, 0), (-0.02 / units.fs, 0, 0)])  # they meet
    signal = OfGeometry(lambda positions: float(positions[1, 0] < 1.9))
    atoms.calc = ReliableCalculator(Places(Free()), signals=[signal], policy=POLICY)
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    flagged = tmp_path / "f.xyz"
    monitor = Monitor(dynamics, flagged=flagged, on_unreliable="harvest", patience=3)
    dynamics.run(200)
    assert monitor.reason.startswith(ABSURD)
    frames = read(flagged, ":")
    closest = min(frame.positions[1, 0] for frame in frames)
    assert 0.79 < closest < 1.0  # 0.79 Å: fused, before it is physically impossible
    assert len(select(frames, len(frames), near=0)) == len(frames)


def test_a_sound_run_harvests_nothing(tmp_path):
    dynamics = drifting(rim=1e9)
    monitor = Monitor(
        dynamics, flagged=tmp_path / "f.xyz", on_unreliable="harvest", patience=1
    )
    dynamics.run(20)
    assert not (tmp_path / "f.xyz").exists()
    assert "Nothing was harvested" in monitor.summary()


def test_a_continued_run_goes_on_with_its_harvest(tmp_path):
    whole = drifting()
    files = {"log": tmp_path / "a.jsonl", "flagged": tmp_path / "a.xyz"}
    options = {"on_unreliable": "harvest", "patience": 2}
    Monitor(whole, **files, **options)
    whole.run(80)
    files = {"log": tmp_path / "b.jsonl", "flagged": tmp_path / "b.xyz"}
    first = drifting()
    Monitor(first, **files, **options)
    first.run(50)
    atoms = first.atoms
    atoms.calc = drifting().atoms.calc
    second = VelocityVerlet(atoms, 1.0 * units.fs)
    monitor = Monitor(second, **files, **options)
    second.run(30)
    steps = [
        [f.info["step"] for f in read(tmp_path / n, ":")] for n in ("a.xyz", "b.xyz")
    ]
    assert monitor.harvest.kept == len(steps[1])
    assert len(steps[0]) == len(steps[1])
    assert np.abs(np.subtract(*steps)).max() <= 1  # the spacing has eight digits


def test_spread_and_spacing_are_those_of_the_frames_before_the_alarm():
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(400, 8))
    harvest = Harvest(5)
    for vector in cloud:
        harvest.learn(vector)
    spread = np.sqrt(((cloud - cloud.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert harvest.spacing == pytest.approx(1.5 * spread)
    assert not harvest.take(cloud[0])  # no alarm yet
    harvest.begun = True
    far = cloud.mean(axis=0) + 3 * spread * np.eye(8)[0]
    assert harvest.take(far)
    assert harvest.last_novelty == pytest.approx(3)
    assert not harvest.take(far + 1.4 * spread * np.eye(8)[1])
    assert not harvest.take(np.full(8, np.nan))
    assert harvest.take(far + 1.6 * spread * np.eye(8)[1])


def test_an_alarm_at_the_first_step_learns_the_spread_afterwards():
    harvest = Harvest(50)
    harvest.begun = True
    taken = [harvest.take(np.array([0.1 * k, 0.0])) for k in range(60)]
    assert taken[0]
    assert not any(taken[1:9])
    assert 5 < sum(taken) < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "flagged must be given with on_unreliable='harvest', got None"),
        ({"max_harvest": 0}, "max_harvest must be a whole number from 1, got 0"),
    ],
)
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Monitor(drifting(), on_unreliable="harvest", **options)
