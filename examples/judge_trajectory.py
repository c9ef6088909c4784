"""Judge a finished trajectory, and list the least reliable frames."""

import argparse

import numpy as np
from ase.io import iread

from uqcalc import annotate, default_calculator, read_assessment


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("trajectory", help="any trajectory that ASE reads")
trajectory = parser.parse_args().trajectory

rows = []
for number, frame in enumerate(annotate(iread(trajectory), default_calculator())):
    reliability = np.nan_to_num(frame.info["probe_reliability"], nan=-1)  # NaN is worst
    rows.append((reliability, number, read_assessment(frame).verdict))

for reliability, number, verdict in sorted(rows, key=lambda row: row[:2])[:5]:
    reasons = "; ".join(verdict.reasons)
    print(f"frame {number:5d}  P(reliable) {reliability:5.2f}  {reasons}")
