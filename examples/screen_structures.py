"""Rank structures by P(reliable)."""

import argparse

from ase.build import molecule

from uqcalc import default_calculator


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument(
    "--names", nargs="+", default=["CH4", "C6H6", "HCN", "CH3NO2", "C4H4O"]
)
names = parser.parse_args().names

calculator = default_calculator()
rows = []
for name in names:
    atoms = molecule(name)
    assessment = calculator.assess(atoms)  # one pass; energy and forces come with it
    energy = calculator.results["energy"]
    rows.append((calculator.results["probe_reliability"], name, energy, assessment))

for reliability, name, energy, assessment in sorted(rows, key=lambda row: -row[0]):
    reasons = "; ".join(assessment.verdict.reasons)
    print(f"{name:10s} {energy:12.3f} eV  P(reliable) {reliability:.2f}  {reasons}")
