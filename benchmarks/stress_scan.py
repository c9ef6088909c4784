"""Test the verdicts of a stress probe on cells far from their usual volume.

The potential is ASE's EMT; the reference is a Morse potential for each metal
(parameters as in Girifalco & Weizer 1959, doi:10.1103/PhysRev.114.687, and later fits).
The reference is an exact function, so that errors are known at any volume. A probe is
fitted to 700 strained and rattled cells of seven metals and their alloys, at 0.9 to
1.12 times the lattice constant of EMT. Then eight crystals are read at 0.5 to 4 times
their lattice constant, perfect and rattled by 0.03 Å.

    python benchmarks/stress_scan.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress
from common import print_table, print_targets, target, write_result

from uqcalc import Labels, Level, Recipe, ReliableCalculator, fit
from uqcalc.backbones.base import Backbone, Capture


# eV, 1/Å and Å: depth, width and distance of the minimum.
MORSE = {
    "Al": (0.2703, 1.1646, 3.253),
    "Ni": (0.4205, 1.4199, 2.780),
    "Cu": (0.3429, 1.3588, 2.866),
    "Pd": (0.4761, 1.6189, 2.890),
    "Ag": (0.3323, 1.3690, 3.115),
    "Pt": (0.7102, 1.6047, 2.897),
    "Au": (0.4753, 1.5830, 3.024),
}
SCALES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75)
SCALES += (2.0, 2.5, 3.0, 4.0)
CUTOFF = 8.0  # Å, of the reference
COLUMNS = {
    "scale": "scale",
    "geometries": "geometries",
    "median_error_GPa": "median error (GPa)",
    "wrong": "wrong",
    "wrong_and_reliable": "wrong and RELIABLE",
    "right_and_reliable": "right and RELIABLE",
}
BOUNDARY = "4 GPa"  # about 40 % of the labels have smaller errors


class Morse(Calculator):
    """A smooth Morse potential; mixed pairs have mean parameters."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=(), system_changes=all_changes) -> None:
        """Compute energy, forces and stress of a periodic cell."""
        super().calculate(atoms, properties, system_changes)
        i, j, length, vector = neighbor_list("ijdD", atoms, CUTOFF)
        own = np.array([MORSE[symbol] for symbol in atoms.get_chemical_symbols()])
        depth = np.sqrt(own[i, 0] * own[j, 0])
        width, middle = (own[i, 1:] + own[j, 1:]).T / 2
        decay = np.exp(-width * (length - middle))
        inside = 1 - (length / CUTOFF) ** 2
        pair = depth * (decay**2 - 2 * decay)
        slope = depth * width * (2 * decay - 2 * decay**2) * inside**2
        slope -= pair * 4 * length / CUTOFF**2 * inside
        pull = 0.5 * (slope / length)[:, None] * vector
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        energy = 0.5 * float((pair * inside**2).sum())
        stress = full_3x3_to_voigt_6_stress(pull.T @ vector / atoms.get_volume())
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        self.results["stress"] = stress


class TappedEMT(Backbone):
    """EMT with the surroundings of each atom and its energy as features."""

    name = "toy"

    def __init__(self) -> None:
        emt = EMT()
        super().__init__(emt, emt, feature_dim=17, fingerprint="emt:surroundings")

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Compute the features after the pass."""
        captured = Capture([], [])
        yield captured
        atoms = self.calculator.atoms
        i, j, length = neighbor_list("ijd", atoms, 6.0)
        near = np.exp(-4 * (length[:, None] - np.linspace(1.5, 5.5, 8)) ** 2)
        near *= 0.5 * (1 + np.cos(np.pi * length / 6.0))[:, None]
        rows = np.zeros((len(atoms), self.feature_dim))
        np.add.at(rows[:, :8], i, near)
        np.add.at(rows[:, 8:16], i, near * atoms.numbers[j][:, None] / 50)
        rows[:, 16] = self.calculator.results["energies"]
        captured.features.append(torch.from_numpy(rows))


def labelled(count: int, seed: int) -> list[Atoms]:
    """Return strained and rattled cells with the reference stress."""
    rng = np.random.default_rng(seed)
    metals = [*MORSE]
    frames = []
    for k in range(count):
        atoms = bulk(metals[k % len(metals)], cubic=True)
        if rng.random() < 0.3:
            atoms.set_chemical_symbols([*map(str, rng.choice(metals, 4))])
            sides = [bulk(s, cubic=True).cell[0, 0] for s in atoms.symbols]
            atoms.set_cell(np.eye(3) * np.mean(sides), scale_atoms=True)
        strain = rng.normal(scale=0.01, size=(3, 3))
        shape = (np.eye(3) + strain + strain.T) * rng.uniform(0.9, 1.12)
        atoms.set_cell(atoms.cell @ shape, scale_atoms=True)
        atoms.rattle(rng.uniform(0, 0.25), rng=rng)
        atoms.info["run"] = f"{seed}/{k // 4}"
        atoms.calc = Morse()
        atoms.get_stress()
        frames.append(atoms)
    return frames


def crystals() -> dict[str, Atoms]:
    """Return eight crystals at their lattice constant."""
    found = {metal: bulk(metal, cubic=True) for metal in MORSE}
    found["Cu3Au"] = bulk("Cu", a=3.75, cubic=True)
    found["Cu3Au"].symbols[0] = "Au"
    return found


def read(atoms: Atoms, calc: ReliableCalculator, labels: Labels) -> tuple[float, Level]:
    """Return the stress error in GPa and the level of a geometry."""
    truth = atoms.copy()
    truth.calc = Morse()
    prediction = calc.backbone(atoms, ["energy", "forces", "stress"])
    error = labels.error(prediction, truth.get_stress()) / units.GPa
    return error, calc.assess(atoms).level


def row_of(scale: float, found: list[tuple[float, Level]], limit: float) -> dict:
    """Return the counts of one set of geometries."""
    wrong = np.array([error > limit for error, _ in found])
    trusted = np.array([level is Level.RELIABLE for _, level in found])
    return {
        "scale": scale,
        "geometries": len(found),
        "median_error_GPa": float(np.median([error for error, _ in found])),
        "wrong": int(wrong.sum()),
        "wrong_and_reliable": int((wrong & trusted).sum()),
        "right_and_reliable": int((~wrong & trusted).sum()),
    }


def main() -> None:
    """Fit the probe, read the crystals, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=700)
    count: Any = parser.parse_args().labels
    labels = Labels("stress", stress_key="stress", forces_key="forces", group_key="run")
    labels = replace(labels, boundary=BOUNDARY)
    fitted = fit(labelled(count, 0), TappedEMT(), labels, Recipe(folds=2, epochs=30))
    calc = ReliableCalculator(TappedEMT(), probe=fitted.probe)
    limit = fitted.probe.card.boundary / units.GPa
    rows = []
    for scale in SCALES:
        found = []
        for shake in (0.0, 0.03):
            for crystal in crystals().values():
                atoms = crystal.copy()
                atoms.set_cell(atoms.cell * scale, scale_atoms=True)
                atoms.rattle(shake, seed=3)
                found.append(read(atoms, calc, labels))
        rows.append(row_of(scale, found, limit))
    new = [read(atoms, calc, labels) for atoms in labelled(280, 9)]
    rows.append({"like_the_labels": True} | row_of(np.nan, new, limit))
    trusted = sum(row["wrong_and_reliable"] for row in rows[:-1])
    targets = [target("wrong and RELIABLE, far volumes", trusted, 0)]
    notes = [
        f"boundary {BOUNDARY}; held-out AUROC {fitted.report['auroc']:.3f}, "
        f"ECE {fitted.report['ece']:.3f}"
    ]
    write_result(
        "stress_scan", seeds=[0, 3, 9], rows=rows, targets=targets, notes=notes
    )
    print_table("stress of cells far from their volume", rows, COLUMNS)
    print_targets(targets)


if __name__ == "__main__":
    main()
