"""Run ethanol in OpenMM until the potential is UNRELIABLE."""

import argparse

import openmm
from ase.build import molecule
from openmm import app, unit
from openmmml import MLPotential

from uqcalc import default_calculator
from uqcalc.errors import UnreliableError
from uqcalc.openmm import ReliabilityReporter


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=4000)
parser.add_argument("--temperature", type=float, default=300.0, help="K")
options = parser.parse_args()

atoms = molecule("CH3CH2OH")
topology = app.Topology()
residue = topology.addResidue("EOH", topology.addChain())
for symbol in atoms.symbols:
    topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)

calc = default_calculator()
system = MLPotential("ase").createSystem(topology, calculator=calc)
integrator = openmm.LangevinMiddleIntegrator(
    options.temperature * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond
)
platform = openmm.Platform.getPlatformByName("CPU")
simulation = app.Simulation(topology, system, integrator, platform)
simulation.context.setPositions(atoms.positions * unit.angstrom)

reporter = ReliabilityReporter(calc, log="run.jsonl", flagged="flagged.xyz")
simulation.reporters.append(reporter)
try:
    simulation.step(options.steps)
except UnreliableError as error:
    print(f"stopped: {error}")
print(reporter.covers)
print(reporter.monitor.summary())
