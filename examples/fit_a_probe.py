"""Fit a probe for a potential, on frames labelled with a reference method.

This script computes the labels: GFN2-xTB forces of rattled molecules. Read your own
labelled frames with ``frames = ase.io.read("labelled.xyz", ":")``.
"""

import argparse

import numpy as np
from ase.build import molecule
from tblite.ase import TBLite

from uqcalc import Labels, Recipe, ReliableCalculator, fit
from uqcalc.models.bundled import bare_calculator


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--frames", type=int, default=400)
parser.add_argument("--epochs", type=int, default=100)
options = parser.parse_args()

rng = np.random.default_rng(0)
names = ["CH4", "C2H6", "C6H6", "CH3OH", "CH3NO2", "C4H4O", "C5H5N", "CH3CONH2"]
frames = []
for index in range(options.frames):
    atoms = molecule(names[index % len(names)])
    # Larger displacements give atoms so close that the predicted forces explode.
    atoms.rattle(rng.uniform(0.01, 0.12), rng=rng)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    atoms.arrays["REF_forces"] = atoms.get_forces()
    atoms.calc = None
    frames.append(atoms)

# Labels("forces", boundary="100 meV/angstrom") sets the largest error that you accept.
potential = bare_calculator()  # or your ASE calculator
result = fit(frames, potential, Labels("forces"), Recipe(epochs=options.epochs))
print(result)
result.probe.save("my.probe")

atoms = molecule("CH3CHO")
atoms.calc = ReliableCalculator(potential, probe="my.probe")
print(f"P(reliable) = {atoms.calc.assess(atoms).results()['probe_reliability']:.2f}")
