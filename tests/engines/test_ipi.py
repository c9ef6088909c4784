"""i-PI with judged potentials: two replicas, a log for each, extras and a soft stop."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.calculators.socketio import SocketIOCalculator
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from builders import import_mace, mace_calculator, rattled, salt, tiny_probe

import uqcalc.ipi
from uqcalc import (
    Committee,
    ForceSpread,
    Policy,
    ReliableCalculator,
    Threshold,
    read_log,
)
from uqcalc.backbones.registry import tap
from uqcalc.errors import RecordError
from uqcalc.ipi import IpiClient
from uqcalc.ipi.extras import Extras


INPUT = """<simulation verbosity='low'>
  <output prefix='sim'>
    <properties filename='out'> [step, potential{{electronvolt}}] </properties>
    <trajectory filename='level' stride='1' extra_type='reliability_level'> extras
    </trajectory>
    <trajectory filename='p' stride='1' extra_type='probe_reliability'> extras
    </trajectory>
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>1</seed></prng>
  <ffsocket name='uqcalc' mode='unix' pbc='false'>
    <address>{address}</address><latency>0.0001</latency>
  </ffsocket>
  <system>
    <initialize nbeads='2'>
      <file mode='ase' units='angstrom'>start.xyz</file>
      <velocities mode='thermal' units='kelvin'>300</velocities>
    </initialize>
    <forces><force forcefield='uqcalc'/></forces>
    <motion mode='dynamics'>
      <dynamics mode='nve'><timestep units='femtosecond'>0.5</timestep></dynamics>
    </motion>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
  </system>
</simulation>
"""


def reliable(*, bias=0.0):
    model = mace_calculator()
    return ReliableCalculator(model, tiny_probe(tap(model), bias=bias))


def start_ipi(folder, address, steps):
    atoms = rattled()
    atoms.set_cell([20.0, 20.0, 20.0])
    write(folder / "start.xyz", atoms, format="extxyz")
    text = INPUT.format(address=address, steps=steps)
    (folder / "input.xml").write_text(text, encoding="utf-8")
    program = Path(sys.executable).with_name("i-pi")
    with (folder / "ipi.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, program, "input.xml"],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return server, atoms


def wait_for(address, server):
    place = Path(f"/tmp/ipi_{address}")
    for _ in range(1200):
        if place.exists():
            return
        assert server.poll() is None, "i-PI has ended"
        threading.Event().wait(0.1)
    pytest.fail("i-PI has not opened its socket")


def served(folder, *, steps, bias=0.0, clients=1, **options):
    """Run i-PI against clients in threads; return the clients."""
    pytest.importorskip("ipi")
    address = f"uqcalc-{folder.name}"
    server, atoms = start_ipi(folder, address, steps)
    made, threads = [], []
    try:
        wait_for(address, server)
        for _ in range(clients):
            atoms = atoms.copy()
            atoms.calc = reliable(bias=bias)
            made.append(
                IpiClient(
                    atoms,
                    unixsocket=address,
                    exit_file=folder / "EXIT",
                    timestep_fs=0.5,
                    log=str(folder / "replica-{replica}.jsonl"),
                    flagged=str(folder / "flagged-{replica}.xyz"),
                    **options,
                )
            )
            threads.append(threading.Thread(target=made[-1].run))
            threads[-1].start()
        for thread in threads:
            thread.join(timeout=300)
        server.wait(timeout=120)
    finally:
        server.kill()
        server.wait()
    return made


def steps_of(path):
    return [record for record in read_log(path) if record["event"] == "step"]


def test_two_replicas_have_a_log_each_and_i_pi_writes_the_signals(tmp_path):
    import_mace()
    (client,) = served(tmp_path, steps=4, bias=50.0)
    assert sorted(client.monitors) == [0, 1]
    logs = [steps_of(tmp_path / f"replica-{number}.jsonl") for number in (0, 1)]
    assert [[r["step"] for r in log] for log in logs] == [[0, 1, 2, 3, 4]] * 2
    assert logs[0][-1]["temperature_K"] is None
    assert logs[0][-1]["time_fs"] == pytest.approx(2.0)
    # the potential of a ring polymer is the mean of its beads
    energies = np.array([[record["energy_eV"] for record in log] for log in logs])
    written = np.loadtxt(tmp_path / "sim.out")
    np.testing.assert_allclose(written[:, 1], energies.mean(axis=0), atol=1e-6)
    assert not np.allclose(energies[0], energies[1]), "replicas were mixed up"
    for number in (0, 1):
        (found,) = tmp_path.glob(f"sim.p_{number}*")
        values = [float(w) for w in found.read_text().split() if w[0].isdigit()]
        logged = [r["values"]["probe_reliability"] for r in logs[number]]
        assert set(np.round(logged, 5)) <= set(np.round(values, 5))
    assert not (tmp_path / "EXIT").exists()


def test_i_pi_ends_normally_when_a_monitor_halts(tmp_path):
    import_mace()
    (client,) = served(tmp_path, steps=1000, bias=-50.0, patience=3)
    assert any(monitor.halted for monitor in client.monitors.values())
    assert (tmp_path / "EXIT").exists()
    assert len(np.loadtxt(tmp_path / "sim.out")) < 100
    assert (tmp_path / "RESTART").exists()
    records = list(read_log(tmp_path / "replica-0.jsonl"))
    assert records[-1]["event"] == "end"
    assert records[-1]["how"] == "halted"
    assert len(read(tmp_path / "flagged-0.xyz", ":")) >= 3
    with pytest.raises(RecordError, match="exit_file must not exist"):
        IpiClient(client._start, exit_file=tmp_path / "EXIT")


def test_the_protocol_carries_forces_and_virial_of_the_bare_potential(tmp_path):
    """ASE's own server replaces i-PI; a salt tests the stress."""
    atoms = salt()
    start = atoms.copy()
    start.calc = reliable()
    address = f"uqcalc-{tmp_path.name}-ase"
    with SocketIOCalculator(unixsocket=address, timeout=300) as server:
        client = IpiClient(start, unixsocket=address)
        thread = threading.Thread(target=client.run)
        launch = threading.Timer(0.5, thread.start)
        launch.start()
        atoms.calc = server
        dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
        dynamics.run(3)
        forces, stress = atoms.get_forces(), atoms.get_stress()
    thread.join(timeout=60)
    atoms.calc = mace_calculator()
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-7)
    np.testing.assert_allclose(stress, atoms.get_stress(), atol=1e-9)
    assert client.monitors[0].history[-1].step == 3
    np.testing.assert_array_equal(start.positions, salt().positions)


def test_members_of_a_committee_have_the_names_of_i_pi():
    atoms = rattled()
    committee = Committee([mace_calculator(seed) for seed in (0, 1, 2)])
    policy = Policy([Threshold("force_spread", suspect=0.1, unreliable=0.2)])
    calculator = ReliableCalculator(committee, None, [ForceSpread()], policy)
    atoms.calc = calculator
    assessment = calculator.assess(atoms)
    make = Extras()
    text = make(assessment.results(), calculator.results, len(atoms))
    entries = json.loads(text)
    members = np.array(entries["committee_pot"]) * units.Ha
    assert np.mean(members) == pytest.approx(atoms.get_potential_energy())
    assert entries["committee_uncertainty"] == pytest.approx(
        np.std(members, ddof=1) / units.Ha
    )
    forces = np.array(entries["committee_force"]).reshape(3, len(atoms), 3)
    np.testing.assert_allclose(
        forces.mean(axis=0) * units.Ha / units.Bohr, atoms.get_forces(), atol=1e-8
    )
    assert "raw" not in entries
    later = json.loads(make({}, {}, len(atoms)))
    assert later.keys() == entries.keys() - {n for n in entries if "committee" in n}
    assert np.isnan(later["reliability_level"])


def test_names_of_files_must_contain_the_replica():
    atoms = rattled()
    atoms.calc = reliable()
    with pytest.raises(ValueError, match=r"log must have \{replica\} in its name"):
        IpiClient(atoms, log="run.jsonl")


def test_the_driver_gives_i_pi_the_same_numbers(tmp_path):
    pytest.importorskip("ipi")
    import_mace()
    from ipi.pes import load_pes
    from ipi.utils.units import unit_to_internal

    write(tmp_path / "start.xyz", rattled())
    path = Path(uqcalc.ipi.__file__).with_name("driver.py")
    driver = load_pes("custom", path)(
        template=str(tmp_path / "start.xyz"),
        log=str(tmp_path / "run.jsonl"),
        timestep_fs="0.5",
    )
    atoms = rattled(seed=5)
    bohr = unit_to_internal("length", "angstrom", 1.0)
    energy, forces, virial, extras = driver(np.eye(3) * 40, atoms.positions * bohr)
    atoms.calc = uqcalc.default_calculator()
    hartree = unit_to_internal("energy", "electronvolt", 1.0)
    assert energy == pytest.approx(atoms.get_potential_energy() * hartree, rel=1e-6)
    np.testing.assert_allclose(forces, atoms.get_forces() * hartree / bohr, atol=1e-6)
    np.testing.assert_allclose(virial, virial.T)
    level = json.loads(extras)["reliability_level"]
    assert level == int(atoms.calc.assess(atoms).level)
    assert [record["step"] for record in steps_of(tmp_path / "run.jsonl")] == [0]


def test_the_command_of_the_driver_serves_i_pi(tmp_path):
    pytest.importorskip("ipi")
    import_mace()
    address = f"uqcalc-{tmp_path.name}"
    server, _ = start_ipi(tmp_path, address, steps=2)
    options = "template=start.xyz,log=run.jsonl,exit_file=EXIT"
    program = Path(sys.executable).with_name("i-pi-driver-py")
    file = Path(uqcalc.ipi.__file__).with_name("driver.py")
    command = [sys.executable, program, "-u", "-a", address, "-m", "custom"]
    try:
        wait_for(address, server)
        # the potential has single precision
        subprocess.run(
            [*command, "-P", file, "-o", options],
            cwd=tmp_path,
            check=True,
            timeout=300,
        )
        server.wait(timeout=120)
    finally:
        server.kill()
        server.wait()
    assert len(steps_of(tmp_path / "run.jsonl")) == 2 * 3  # two replicas, one log
    assert len(np.loadtxt(tmp_path / "sim.out")) == 3
