"""OpenMM with a judged potential: energies of ASE, logs, stops and mixed systems."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from builders import import_mace, mace_calculator, tiny_probe

from uqcalc import ReliableCalculator, read_log
from uqcalc.backbones.registry import tap
from uqcalc.errors import UnreliableError
from uqcalc.openmm import ReliabilityReporter


openmm = pytest.importorskip("openmm")
openmmml = pytest.importorskip("openmmml")


def reliable(*, bias=0.0):
    import_mace()
    model = mace_calculator()
    return ReliableCalculator(model, tiny_probe(tap(model), bias=bias))


def topology_of(*structures):
    topology = openmm.app.Topology()
    for atoms in structures:
        residue = topology.addResidue("MOL", topology.addChain())
        for symbol in atoms.symbols:
            element = openmm.app.Element.getBySymbol(symbol)
            topology.addAtom(symbol, element, residue)
    return topology


def simulated(topology, system, positions, timestep_fs=0.5):
    integrator = openmm.VerletIntegrator(timestep_fs / 1000)
    platform = openmm.Platform.getPlatformByName("CPU")
    simulation = openmm.app.Simulation(topology, system, integrator, platform)
    simulation.context.setPositions(positions / 10)
    return simulation


def ethanol_in_vacuum(calculator):
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    topology = topology_of(atoms)
    potential = openmmml.MLPotential("ase")
    system = potential.createSystem(
        topology, removeCMMotion=False, calculator=calculator
    )
    return atoms, simulated(topology, system, atoms.positions)


def steps_of(path):
    return [record for record in read_log(path) if record["event"] == "step"]


def test_a_run_is_logged_with_the_energies_of_ase_and_without_further_passes(tmp_path):
    calculator = reliable(bias=50.0)
    atoms, simulation = ethanol_in_vacuum(calculator)
    log = tmp_path / "run.jsonl"
    reporter = ReliabilityReporter(calculator, 2, log=log)
    simulation.reporters.append(reporter)
    passes = calculator.backbone.passes
    simulation.step(10)
    assert calculator.backbone.passes - passes == 11
    assert reporter.extra_passes == 0
    assert reporter.covers == "the verdict covers all 9 atoms"
    records = steps_of(log)
    assert [record["step"] for record in records] == [2, 4, 6, 8, 10]
    assert records[0]["time_fs"] == pytest.approx(1.0)
    assert records[-1]["temperature_K"] > 1

    state = simulation.context.getState(positions=True)
    atoms.positions = state.getPositions(asNumpy=True)._value * 10
    atoms.calc = mace_calculator()
    assert records[-1]["energy_eV"] == pytest.approx(
        atoms.get_potential_energy(), rel=1e-9
    )


def test_an_unreliable_run_is_stopped_and_keeps_its_state(tmp_path):
    calculator = reliable(bias=-50.0)
    _, simulation = ethanol_in_vacuum(calculator)
    reporter = ReliabilityReporter(
        calculator, log=tmp_path / "run.jsonl", flagged=tmp_path / "bad.xyz", patience=4
    )
    simulation.reporters.append(reporter)
    with pytest.raises(UnreliableError, match="step 4 is UNRELIABLE"):
        simulation.step(100)
    assert simulation.currentStep == 4
    assert reporter.monitor.halted
    assert len(steps_of(tmp_path / "run.jsonl")) == 4
    with pytest.raises(UnreliableError):
        simulation.step(100)  # halted: at its first report
    assert simulation.currentStep == 5
    reporter.monitor.resume()
    simulation.step(2)
    assert simulation.currentStep == 7


@pytest.mark.parametrize("box_nm", [None, 3.0])
def test_in_a_mixed_system_the_verdict_covers_the_ml_region(tmp_path, box_nm):
    """Two molecules and a force field between them; the second is the ML region."""
    calculator = reliable(bias=50.0)
    first, second = molecule("CH3OH"), molecule("H2O")
    second.translate([6.0, 0.0, 0.0])
    both = first + second
    topology = topology_of(first, second)
    field = openmm.System()
    nonbonded = openmm.NonbondedForce()
    for atom in both:
        field.addParticle(atom.mass)
        nonbonded.addParticle(0.0, 0.3, 0.1)
    field.addForce(nonbonded)
    if box_nm is not None:
        vectors = np.eye(3) * box_nm
        topology.setPeriodicBoxVectors(vectors)
        field.setDefaultPeriodicBoxVectors(*vectors)
        nonbonded.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    region = [6, 7, 8]
    system = openmmml.MLPotential("ase").createMixedSystem(
        topology, field, region, calculator=calculator, mlLongRange=False
    )
    simulation = simulated(topology, system, both.positions)
    log = tmp_path / "run.jsonl"
    reporter = ReliabilityReporter(calculator, atoms=region, log=log)
    simulation.reporters.append(reporter)
    simulation.step(2)
    assert reporter.covers.startswith("the verdict covers 3 of 9 atoms")
    header = next(iter(read_log(log)))
    assert header["run"]["about"]["atoms"] == region
    assert header["run"]["formula"] == "OH2"
    alone = Atoms(second)
    alone.positions = reporter.monitor.snapshot().positions
    if box_nm is not None:
        alone.set_cell([10 * box_nm] * 3)
        alone.pbc = True
    alone.calc = mace_calculator()
    assert steps_of(log)[-1]["energy_eV"] == pytest.approx(
        alone.get_potential_energy(), rel=1e-9
    )
    simulation.reporters[:] = [ReliabilityReporter(calculator)]
    with pytest.raises(ValueError, match="see 9 atoms, got 3 atoms; pass"):
        simulation.step(1)


def test_a_calculator_without_verdict_is_refused():
    with pytest.raises(ValueError, match="must carry a ReliableCalculator"):
        ReliabilityReporter(mace_calculator())


def test_velocities_are_those_of_openmm(tmp_path):
    calculator = reliable()
    atoms, simulation = ethanol_in_vacuum(calculator)
    simulation.context.setVelocitiesToTemperature(300, 1)
    reporter = ReliabilityReporter(calculator, log=tmp_path / "run.jsonl")
    simulation.reporters.append(reporter)
    simulation.step(1)
    kinetic = simulation.context.getState(velocities=True)
    speeds = kinetic.getVelocities(asNumpy=True)._value  # nm/ps
    joules = 0.5 * (atoms.get_masses() * (speeds**2).sum(axis=1)).sum()  # kJ/mol
    expected = joules * units.kJ / units.mol / (1.5 * len(atoms) * units.kB)
    (record,) = steps_of(tmp_path / "run.jsonl")
    assert record["temperature_K"] == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(
        simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
        * 10,
        reporter.monitor.snapshot().positions,
        atol=1e-6,
    )
