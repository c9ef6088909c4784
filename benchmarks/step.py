"""Measure the time that the wrapper and the monitor add to a step.

    python benchmarks/step.py

The model is atoms on springs, which costs almost no time, under velocity Verlet. Three
runs of each structure take turns: the bare calculator, `ReliableCalculator` with
`MaxForce` and the default checks (`Sanity`, `Flags`), and the same with `Monitor` and a
log. Aspirin is intact. The grid of carbon and hydrogen is no molecule and is flagged at
every step. The time of the pass and the probe of a real model is added to this; see
benchmarks/overhead.py.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read
from ase.md.verlet import VelocityVerlet
from common import print_table, print_targets, target, write_result

from uqcalc import MaxForce, Monitor, Policy, ReliableCalculator, Threshold
from uqcalc.backbones.base import Capture
from uqcalc.types import Backbone


ROUNDS, STEPS = 15, 60
# Goals. A pass of the bundled model takes 13 ms at 21 atoms, one of CHGNet about
# 0.3 s at 864 atoms.
LIMIT_MS = {"aspirin": 1.3, "grid": 1.3, "copper": 2.6}


class Springs(Calculator):
    """Each atom on a spring to its place."""

    implemented_properties = ("energy", "forces")

    def __init__(self, places: np.ndarray) -> None:
        super().__init__()
        self.places = places

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        """Give energy and forces."""
        super().calculate(atoms, properties, system_changes)
        apart = self.atoms.positions - self.places
        energy = 2.5 * float((apart * apart).sum())
        self.results = {"energy": energy, "forces": -5.0 * apart}


class Bare(Backbone):
    """A backbone with one feature of each atom, which is 1."""

    name = "springs"

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Yield the capture of one call."""
        yield Capture([torch.ones(len(self.calculator.places), 1)], [])


def structure(name: str) -> Atoms:
    """Return 21 atoms of aspirin or of a grid of H and C, or 864 of copper."""
    if name == "copper":
        return bulk("Cu", cubic=True).repeat(6)
    if name == "aspirin":
        with as_file(files("uqcalc") / "data" / "aspirin.xyz") as path:
            return read(path)
    grid = np.indices((3, 3, 3)).reshape(3, -1).T[:21] * 1.3
    return Atoms(["C", "H", "H"] * 7, positions=grid)


def run_of(name: str, what: str, folder: Path) -> VelocityVerlet:
    """Return the dynamics for the timing."""
    atoms = structure(name)
    base = Springs(atoms.positions.copy())
    atoms.calc = base
    if what != "bare":
        atoms.calc = ReliableCalculator(
            Bare(base, base, feature_dim=1, fingerprint="springs:1"),
            signals=[MaxForce()],
            policy=Policy([Threshold("max_force", 10.0, 20.0)]),
        )
    atoms.rattle(0.02, seed=1)
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    if what == "watched":
        Monitor(dynamics, log=folder / f"{name}.jsonl")
    dynamics.run(STEPS)  # warm-up
    return dynamics


def main() -> None:
    torch.set_num_threads(1)
    rows, targets = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, limit in LIMIT_MS.items():
            runs = {
                what: run_of(name, what, Path(folder))
                for what in ("bare", "wrapped", "watched")
            }
            times: dict[str, list[float]] = {what: [] for what in runs}
            for _ in range(ROUNDS):
                for what, dynamics in runs.items():
                    start = time.perf_counter()
                    dynamics.run(STEPS)
                    times[what].append((time.perf_counter() - start) / STEPS)
            median = {what: 1e3 * float(np.median(t)) for what, t in times.items()}
            added = {w: median[w] - median["bare"] for w in ("wrapped", "watched")}
            rows.append(
                {"structure": name, "atoms": len(runs["bare"].atoms)}
                | {f"{what}_ms": ms for what, ms in median.items()}
                | {f"{what}_adds_ms": ms for what, ms in added.items()}
            )
            targets.append(
                target(f"{name}: watching adds, ms", added["watched"], limit)
            )
    print_table("a step", rows, {name: name.replace("_", " ") for name in rows[0]})
    print_targets(targets)
    write_result("step", seeds=[1], rows=rows, targets=targets, notes=[])


if __name__ == "__main__":
    main()
