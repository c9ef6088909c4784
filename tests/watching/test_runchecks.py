"""Findings on a run (not on a geometry) stop it at once, or lower its verdicts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter, StrainFilter, UnitCellFilter
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.melchionna import MelchionnaNPT
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from toys import GOOD, POLICY, Scripted, ToyBackbone, copper, watched

from uqcalc import (
    Level,
    Monitor,
    ReliableCalculator,
    default_calculator,
    read_assessment,
    relax,
)
from uqcalc.watching.runchecks import FARTHEST, HOTTEST, moves_cell


STEP = 0.5 * units.fs
FEMTO = 1.0 * units.fs


@pytest.fixture(scope="module")
def bundled():
    return default_calculator()


def fused_water(calculator):
    atoms = molecule("H2O")
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.0, 0.36]
    atoms.calc = calculator
    return atoms


@pytest.mark.parametrize("options", [{}, {"patience": 50}])
def test_fused_hydrogen_and_oxygen_stop_a_run_at_once(bundled, options, tmp_path):
    atoms = fused_water(bundled)
    dynamics = VelocityVerlet(atoms, STEP)
    monitor = Monitor(dynamics, log=tmp_path / "run.jsonl", **options)
    dynamics.run(60)
    assert monitor.halted
    assert monitor.step <= 1
    assert monitor.reason.startswith("Unphysical values at step 1: ")
    assert "H1 moves by" in monitor.reason
    assert " K > 100000 K" in monitor.reason
    last = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[-1])
    assert last["how"] == "halted"
    found = read_assessment(monitor.snapshot())
    assert found.absurd == monitor.last.absurd != ()


def test_speed_and_heat_are_those_of_the_velocities():
    hot = watched()
    hot.set_velocities(np.zeros((4, 3)))
    velocities = np.zeros((4, 3))
    velocities[2, 0] = 1.01 * FARTHEST / FEMTO
    for factor, absurd in ((1.0, True), (0.9, False)):
        hot.set_velocities(factor * velocities)
        # (1/2) m v^2 = (3/2) N k T
        kinetic = 0.5 * hot.get_masses()[2] * (factor * velocities[2, 0]) ** 2
        temperature = kinetic / (1.5 * 4 * units.kB)
        monitor = Monitor(VelocityVerlet(hot, FEMTO), patience=9)
        monitor.dynamics.run(0)
        assert ("moves by" in monitor.reason) == absurd
        assert ("temperature" in monitor.reason) == (temperature > HOTTEST)


def test_a_sound_run_has_no_such_reading():
    atoms = watched()
    dynamics = VelocityVerlet(atoms, FEMTO)
    monitor = Monitor(dynamics)
    dynamics.run(3)
    assert not monitor.halted
    assert [r.signal for r in monitor.last.readings] == ["scripted", "sanity", "flags"]
    assert {event.level for event in monitor.history} == {Level.RELIABLE}


class Falling(EMT):
    """EMT that falls by 150 eV an atom at its third evaluation."""

    evaluated = 0

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.evaluated += 1
        if self.evaluated > 2:
            self.results["energy"] -= 4 * 150.0


def test_energy_lost_in_a_step_stops_it():
    dynamics = VelocityVerlet(watched(base=Falling()), FEMTO)
    monitor = Monitor(dynamics, patience=50)
    dynamics.run(5)
    assert monitor.halted
    assert monitor.step == 2
    assert "the energy differs from that of the first step" in monitor.reason


def test_an_atom_that_leaves_is_unreliable_and_one_that_was_away_suspect():
    atoms = watched(after=GOOD)
    atoms.pbc = False
    dynamics = VelocityVerlet(atoms, FEMTO)
    monitor = Monitor(dynamics, patience=9)
    dynamics.attach(lambda: atoms.positions.__setitem__(0, [30.0, 30.0, 30.0]))
    dynamics.run(2)
    levels = [event.level for event in monitor.history]
    assert levels == [Level.RELIABLE, Level.UNRELIABLE, Level.UNRELIABLE]
    assert "atoms have left: 1 more" in monitor.history[-1].reasons[-1]
    again = VelocityVerlet(atoms, FEMTO)
    later = Monitor(again, patience=9)
    again.run(2)
    assert {event.level for event in later.history} == {Level.SUSPECT}


def barostats(atoms):
    bath = {"temperature_K": 300, "tdamp": 100 * FEMTO, "pdamp": 500 * FEMTO}
    yield NPTBerendsen(
        atoms,
        FEMTO,
        temperature_K=300,
        pressure_au=0.0,
        compressibility_au=1e-6 / units.bar,
    )
    yield IsotropicMTKNPT(atoms, FEMTO, pressure_au=0.0, **bath)
    yield MTKNPT(atoms, FEMTO, pressure_au=0.0, **bath)
    yield MelchionnaNPT(
        atoms,
        FEMTO,
        temperature_K=300,
        externalstress=0.0,
        ttime=25 * FEMTO,
        pfactor=1.0,
    )


def test_barostats_and_cell_filters_are_known_before_the_first_step():
    atoms = copper()
    atoms.calc = EMT()
    assert all(moves_cell(dynamics) for dynamics in barostats(atoms))
    thermostat = MelchionnaNPT(
        atoms, FEMTO, temperature_K=300, externalstress=0.0, ttime=25 * FEMTO
    )
    assert not moves_cell(thermostat)
    rng = np.random.default_rng(0)
    langevin = {"temperature_K": 300, "T_tau": 100 * FEMTO, "rng": rng}
    assert not moves_cell(LangevinBAOAB(atoms, FEMTO, **langevin))
    for kind in (UnitCellFilter, FrechetCellFilter, StrainFilter):
        assert moves_cell(BFGS(kind(atoms), logfile=None))
    assert not moves_cell(BFGS(atoms, logfile=None))
    assert not moves_cell(VelocityVerlet(atoms, FEMTO))


@pytest.mark.parametrize("judged", [False, True])
def test_a_moving_cell_is_suspect_until_its_stress_is_judged(judged, tmp_path):
    signal = Scripted()
    signal.judges = frozenset({"forces", "stress"} if judged else {"forces"})
    atoms = watched(signal=signal)
    path = relax(FrechetCellFilter(atoms), fmax=0.02, log=tmp_path / "log.jsonl")
    levels = {event.level for event in path.history}
    assert levels == {Level.RELIABLE if judged else Level.SUSPECT}
    kept = read_assessment(path.final)
    assert any("the cell moves" in why for why in kept.verdict.reasons) != judged


def test_a_cell_that_has_changed_counts_as_moving():
    atoms = watched(after=GOOD)
    dynamics = VelocityVerlet(atoms, FEMTO)
    monitor = Monitor(dynamics)
    dynamics.attach(lambda: atoms.set_cell(atoms.cell * 1.001, scale_atoms=True))
    dynamics.run(2)
    levels = [event.level for event in monitor.history]
    assert levels == [Level.RELIABLE, Level.SUSPECT, Level.SUSPECT]


def test_relaxation_stops_at_an_impossible_frame(bundled):
    path = relax(fused_water(bundled), steps=40, patience=30)
    assert path.went_bad_at == 0
    assert path.history[-1].step <= 1


class Still(Calculator):
    """No forces, so that atoms move at constant velocity."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def leaving_hydrogen(turns_at=None, **settings):
    """Methane whose last hydrogen leaves by 0.05 Å/fs, under a monitor."""
    atoms = molecule("CH4")
    atoms.calc = ReliableCalculator(
        ToyBackbone(Still()), signals=[Scripted()], policy=POLICY
    )
    away = atoms.positions[4] - atoms.positions[0]
    velocities = np.zeros((5, 3))
    velocities[4] = 0.05 / units.fs * away / np.linalg.norm(away)
    atoms.set_velocities(velocities)
    dyn = VelocityVerlet(atoms, FEMTO)
    monitor = Monitor(dyn, **settings)

    def turn():
        if dyn.nsteps == turns_at:
            atoms.set_velocities(-velocities)

    dyn.attach(turn)
    return dyn, monitor


def test_changed_bonds_halt_a_run_once_they_have_lasted():
    dyn, monitor = leaving_hydrogen(bond_change_fs=25.0)
    assert dyn.run(60) is False
    suspect = [event.step for event in monitor.history if event.level is Level.SUSPECT]
    bonds = [e for e in monitor.history if "bonds changed" in " ".join(e.reasons)]
    assert monitor.step == bonds[0].step + 25
    assert monitor.last.level is Level.UNRELIABLE
    assert set(range(bonds[0].step, monitor.step)) <= set(suspect)
    assert monitor.reason.startswith("Bonds have stayed changed at step")
    assert "broken: C0-H4" in monitor.reason
    monitor.resume()
    dyn.run(60)  # the time starts again
    assert monitor.step == bonds[0].step + 50

    dyn, monitor = leaving_hydrogen(bond_change_fs=25.0, on_unreliable="warn")
    dyn.run(75)
    acted = monitor.acted_on.step
    assert acted - bonds[0].step in (25, 50)


def test_bonds_that_return_in_time_do_not_halt_a_run():
    for settings in ({"turns_at": 20, "bond_change_fs": 25.0}, {}):
        dyn, monitor = leaving_hydrogen(**settings)
        dyn.run(40)
        assert any("bonds changed" in " ".join(e.reasons) for e in monitor.history)
        assert not monitor.halted


def test_a_time_for_changed_bonds_needs_dynamics_and_flags():
    with pytest.raises(ValueError, match="bond_change_fs must be a time above 0"):
        leaving_hydrogen(bond_change_fs=0.0)
    atoms = molecule("CH4")
    atoms.calc = ReliableCalculator(
        ToyBackbone(Still()), signals=[Scripted()], policy=POLICY, flags=False
    )
    with pytest.raises(ValueError, match="the signal 'flags'"):
        Monitor(VelocityVerlet(atoms, FEMTO), bond_change_fs=25.0)
