"""Measure how the output of a probe for Orb changes when a structure is rotated.

    python benchmarks/orb_rotation.py

Orb has no exact rotational symmetry. A probe is fitted for the small Orb of the
examples. It then judges unseen frames in random orientations, without and with
`uqcalc.RotationAverage` over n rotations.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from common import print_table, write_result
from scipy.spatial.transform import Rotation


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

ORIENTATIONS = 8
TEST_FRAMES = 30
AVERAGES = (1, 2, 4, 8)
PER_SOURCE = 170


def main() -> None:
    """Fit the probe, rotate the frames, and write the changes of the output."""
    from small_orb.model import small_orb_calculator
    from zeolites.blocks import labelled_blocks
    from zeolites.frames import require_data

    from uqcalc import Labels, Recipe, fit

    warnings.simplefilter("ignore")
    require_data()
    calculator = small_orb_calculator()
    blocks = labelled_blocks()
    rng = np.random.default_rng(0)
    labelled, tests = [], []
    for name, block in blocks.items():
        shuffled = [block[i] for i in rng.permutation(len(block))]
        tests += [_labelled(a, name) for a in shuffled[:8]]
        labelled += [_labelled(a, name) for a in shuffled[8:PER_SOURCE]]
    labels = Labels("forces", percentile=50.0)
    result = fit(labelled, calculator, labels, Recipe(seed=0, epochs=60))
    print(result)
    rows = [
        _row(calculator, result.probe, tests[:TEST_FRAMES], count) for count in AVERAGES
    ]
    columns = {
        "rotations": "averaged over",
        "features": "features move by",
        "energy": "energy, meV/atom",
        "probability": "P moves by (mean)",
        "probability, largest": "largest",
        "verdicts": "frames whose verdict changes",
    }
    print_table(f"{TEST_FRAMES} frames in {ORIENTATIONS} orientations", rows, columns)
    write_result(
        "orb_rotation",
        seeds=[0],
        rows=rows,
        notes=[
            "changes: standard deviation over the orientations of one frame, mean over "
            "frames; features relative to their standard deviation over frames",
            f"the probe, fitted without averaging: {result}",
        ],
    )


def _row(
    calculator: Any, probe: Any, frames: Sequence[Atoms], count: int
) -> dict[str, Any]:
    """Return the changes of features, energy, P and verdict under rotation."""
    from uqcalc import RotationAverage, tap

    backbone = tap(calculator)
    if count > 1:
        backbone = RotationAverage(calculator, rotations=count, seed=1)
    turns = Rotation.random(ORIENTATIONS, random_state=2).as_matrix()
    features, energies, chances = [], [], []
    for atoms in frames:
        seen = [
            backbone(_turned(atoms, turn), ["energy", "forces"]).own() for turn in turns
        ]
        features.append(torch.stack([p.features for p in seen]).numpy())
        energies.append([p.energy / len(atoms) for p in seen])
        chances.append(probe(seen)[0].numpy())
    spread = np.concatenate([f.mean(axis=0) for f in features]).std(axis=0).mean()
    moved = np.mean([f.std(axis=0).mean() for f in features])
    chance = np.stack(chances)
    suspect, unreliable = probe.card.suspect, probe.card.unreliable
    levels = (chance < suspect).astype(int) + (chance < unreliable)
    return {
        "rotations": count,
        "features": float(moved / spread),
        "energy": float(1000 * np.mean(np.std(energies, axis=1))),
        "probability": float(chance.std(axis=1).mean()),
        "probability, largest": float(np.ptp(chance, axis=1).max()),
        "verdicts": float(np.mean(np.ptp(levels, axis=1) > 0)),
    }


def _turned(atoms: Atoms, turn: np.ndarray) -> Atoms:
    cell = atoms.cell.array @ turn.T
    return Atoms(atoms.numbers, atoms.positions @ turn.T, cell=cell, pbc=True)


def _labelled(atoms: Atoms, source: str) -> Atoms:
    plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    plain.arrays["REF_forces"] = atoms.arrays["forces"]
    plain.info["source"] = source
    return plain


if __name__ == "__main__":
    main()
