"""Run molecular dynamics until the potential is UNRELIABLE."""

import argparse

from ase.build import molecule
from ase.md.langevin import Langevin
from ase.units import fs

from uqcalc import Monitor, default_calculator


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=2000)
steps = parser.parse_args().steps

atoms = molecule("CH3CH2OH")
atoms.calc = (
    default_calculator()
)  # or ReliableCalculator(MACECalculator(...), probe=...)
dyn = Langevin(atoms, 0.5 * fs, temperature_K=300, friction=0.01 / fs, fixcm=False)
monitor = Monitor(dyn, log="run.jsonl", flagged="flagged.xyz")
dyn.run(steps)

print(monitor.summary())
