"""Relax a structure, and halt when the path leaves the reliable region."""

import argparse

from ase.build import molecule
from ase.optimize import BFGS

from uqcalc import default_calculator, relax
from uqcalc.types import Outcome


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
steps = parser.parse_args().steps

atoms = molecule("CH3CONH2")
atoms.rattle(0.1, seed=1)
atoms.calc = default_calculator()
result = relax(atoms, BFGS, fmax=0.05, steps=steps, log="relax.jsonl")

print(result)
if result.outcome is Outcome.LEFT and result.trusted is not None:
    print(f"last geometry to trust: step {result.trusted_step}")
