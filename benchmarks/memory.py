"""Memory of a watched run over very many steps: it must not grow.

    python benchmarks/memory.py [steps] [--history all]

A harmonic dimer under velocity Verlet, with the cheapest backbone there is, so that
what is measured is `ReliableCalculator` and `Monitor`: resident memory every hundredth
of the run. Writes `benchmarks/memory.json`, which is replaced while the run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.verlet import VelocityVerlet

from uqcalc import Backbone, MaxForce, Monitor, Policy, ReliableCalculator, Threshold
from uqcalc.backbones.base import Capture


class Spring(Calculator):
    """Two atoms on a spring."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        """Give energy and forces."""
        super().calculate(atoms, properties, system_changes)
        bond = self.atoms.positions[1] - self.atoms.positions[0]
        length = float(np.linalg.norm(bond))
        pull = 5.0 * (length - 1.0) * bond / length
        energy = 2.5 * (length - 1.0) ** 2
        self.results = {"energy": energy, "forces": np.array([pull, -pull])}


class Bare(Backbone):
    """One feature of ones."""

    name = "spring"

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Stand for the one call."""
        yield Capture([torch.ones(2, 1)], [])


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--history", choices=["bounded", "all"], default="bounded")
    given = parser.parse_args()
    torch.set_num_threads(1)
    atoms = Atoms("N2", positions=[[0, 0, 0], [1.05, 0, 0]])
    base = Spring()
    atoms.calc = ReliableCalculator(
        Bare(base, base, feature_dim=1, fingerprint="spring:1"),
        signals=[MaxForce()],
        policy=Policy([Threshold("max_force", 10.0, 20.0)]),
    )
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    options = {} if given.history == "bounded" else {"history": None}
    monitor = Monitor(dynamics, **options)
    target = Path(__file__).with_suffix(".json")
    if given.history == "all":
        target = target.with_name("memory_all.json")
    every, began, samples = max(1, given.steps // 100), time.time(), []

    def sample() -> None:
        samples.append([dynamics.nsteps, round(resident_mb(), 2)])
        report = {
            "steps": dynamics.nsteps,
            "kept_events": len(monitor.history),
            "counted": monitor.history.seen,
            "seconds": round(time.time() - began, 1),
            "resident_mb_by_step": samples,
        }
        full = [mb for step, mb in samples if step >= 20_000]
        if len(full) > 1:
            report["growth_mb_once_the_history_is_full"] = round(full[-1] - full[0], 2)
        partial = target.with_suffix(".part")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        partial.replace(target)

    dynamics.attach(sample, interval=every)
    dynamics.run(given.steps)
    print(monitor.summary())
    print(f"{samples[0][1]} MB at the start, {samples[-1][1]} MB at the end")


if __name__ == "__main__":
    main()
