"""Measure the memory of a watched run, which must stay constant.

    python benchmarks/memory.py [steps] [--history all]

The run is velocity Verlet of a harmonic dimer with a minimal backbone, so nearly all
the memory is that of `ReliableCalculator` and `Monitor`. A log is written. The resident
memory is read a hundred times during the run. A million steps take about 20 minutes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.verlet import VelocityVerlet
from common import print_targets, target, write_result

from uqcalc import MaxForce, Monitor, Policy, ReliableCalculator, Threshold
from uqcalc.backbones.base import Capture
from uqcalc.types import Backbone


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
    """A backbone with one feature, which is 1."""

    name = "spring"

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Yield the capture of one call."""
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
    every, began = max(1, given.steps // 100), time.time()
    rows: list[dict[str, float]] = []
    dynamics.attach(
        lambda: rows.append({"step": dynamics.nsteps, "resident_MB": resident_mb()}),
        interval=every,
    )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run.jsonl"
        monitor = Monitor(dynamics, log=log, **options)
        dynamics.run(given.steps)
        logged = log.stat().st_size
    # the history is full from here on
    full = [r["resident_MB"] for r in rows if r["step"] >= 20_000]
    growth = full[-1] - full[0] if len(full) > 1 else float("nan")
    targets = [
        target("growth of resident memory from step 20 000 to the end, MB", growth, 1.0)
    ]
    print_targets(targets)
    write_result(
        "memory" if given.history == "bounded" else "memory_all",
        seeds=[],
        rows=rows,
        targets=targets if given.history == "bounded" else [],
        notes=["the growth is from step 20 000 to the end"],
        more={
            "steps": given.steps,
            "seconds": round(time.time() - began),
            "kept_events": len(monitor.history),
            "counted": monitor.history.seen,
            "log_bytes_a_step": logged / given.steps,
        },
    )


if __name__ == "__main__":
    main()
