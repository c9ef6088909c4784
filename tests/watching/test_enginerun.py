"""A monitor on a run of another program: its steps, halts, and limits."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.calculators.emt import EMT
from toys import BAD, GOOD, watched

from uqcalc import Monitor, read_log
from uqcalc.watching.enginerun import EngineRun, shapes_of, virial_of


def driven(run, steps):
    """Move the atoms as another program would; return the step at which it stops."""
    for step in steps:
        run.atoms.positions += run.atoms.get_velocities() * units.fs
        if run.arrived(step):
            return step
    return None


def test_a_monitor_halts_the_program_and_its_log_has_each_step(tmp_path):
    run = EngineRun(watched([GOOD] * 3, after=BAD), timestep_fs=2.0, step=100)
    monitor = Monitor(run, log=tmp_path / "run.jsonl", patience=2)
    assert driven(run, range(100, 120)) == 104
    assert monitor.halted
    records = list(read_log(tmp_path / "run.jsonl"))
    steps = [record for record in records if record["event"] == "step"]
    assert [record["step"] for record in steps] == [100, 101, 102, 103, 104]
    assert steps[-1]["time_fs"] == 208.0
    temperature = run.atoms.get_temperature()
    assert steps[-1]["temperature_K"] == pytest.approx(temperature)
    assert records[-1]["how"] == "halted"
    assert records[0]["run"]["timestep_fs"] == 2.0
    assert run.arrived(104), "halted until resume"
    monitor.resume()
    assert not run.arrived(104)
    assert driven(run, [105, 106]) == 105  # its second check, at step 104, has counted


def test_a_log_goes_on_where_it_ended(tmp_path):
    for start in (0, 4):
        run = EngineRun(watched(), timestep_fs=None, step=start)
        run.atoms.positions += start * run.atoms.get_velocities() * units.fs
        monitor = Monitor(run, log=tmp_path / "run.jsonl")
        for step in range(start, start + 5):
            run.arrived(step)
            run.atoms.positions += run.atoms.get_velocities() * units.fs
        monitor.close()
    steps = [r for r in read_log(tmp_path / "run.jsonl") if r["event"] == "step"]
    assert [record["step"] for record in steps] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert steps[0]["temperature_K"] is steps[0]["time_fs"] is None


def test_the_temperature_is_unknown_without_velocities():
    atoms = watched()
    del atoms.arrays["momenta"]
    run = EngineRun(atoms, timestep_fs=1.0)
    monitor = Monitor(run)
    run.arrived(0)
    assert monitor.history[-1].temperature_K is None
    assert monitor.history[-1].time_fs == 0.0


def test_another_program_is_not_rewound():
    with pytest.raises(ValueError, match=r"got EngineRun; choose on_unreliable=.halt"):
        Monitor(EngineRun(watched(), timestep_fs=1.0), on_unreliable="rewind")


def test_the_virial_is_minus_the_derivative_of_the_energy_by_strain():
    atoms = watched().copy()
    atoms.calc = EMT()
    atoms.get_stress()
    found = virial_of(atoms, atoms.calc.results)
    cell = atoms.cell.array.copy()
    for i, j in ((0, 0), (0, 1), (2, 1)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * 1e-5 / 2
            strain[j, i] += sign * 1e-5 / 2
            atoms.set_cell(cell @ strain, scale_atoms=True)
            energies.append(atoms.get_potential_energy())
            atoms.set_cell(cell, scale_atoms=True)
        assert found[i, j] == pytest.approx(-np.subtract(*energies) / 2e-5, abs=1e-5)
    atoms.pbc = False
    atoms.get_forces()
    cluster = virial_of(atoms, atoms.calc.results)
    atoms.translate([3, 1, 2])
    np.testing.assert_allclose(virial_of(atoms, atoms.calc.results), cluster, atol=1e-9)
    atoms.pbc = [True, False, True]
    assert np.isnan(virial_of(atoms, atoms.calc.results)).all()


def test_numbers_and_atomic_numbers_are_separated_from_other_results():
    results = {"p": 0.1, "shares": np.ones(4), "vectors": np.ones((4, 3)), "m": [1, 2]}
    assert shapes_of(results, 4) == {"p": (), "shares": (4,)}
