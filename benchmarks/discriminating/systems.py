"""Two systems with DFT labels for small potentials, and their splits.

Frames have ``energy`` (eV), ``forces`` (eV/Å; NaN if the source has energies only) and
``run``. A run is a part of a trajectory with consecutive frames. A split keeps the
frames of a run together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read

from discriminating.potentials import Training


DATA = Path(__file__).parents[3] / "shared" / "data"
ACAC_SETS = {
    "probe_300K": "test_MD_300K",
    "hot_600K": "test_MD_600K",
    "h_transfer": "test_H_transfer",
    "dihedral": "test_dihedral",
}
ACAC_TRAINED = 400
CRYSTAL_TRAINED = 120
STRETCH = 10  # frames


@dataclass(frozen=True)
class System:
    """Training of a potential, and its test sets."""

    train: list[Atoms]
    held_out: list[Atoms]
    sets: dict[str, list[Atoms]] = field(repr=False)
    how: Training


def acac() -> System:
    """Acetylacetone at 300 K; test sets: 600 K, hydrogen transfer, dihedral scan."""
    frames = labelled("acac", "train_300K")
    order = np.random.default_rng(5).permutation(len(frames))
    train = [frames[i] for i in sorted(order[:ACAC_TRAINED])]
    rest = [frames[i] for i in sorted(order[ACAC_TRAINED:])]
    sets = {name: labelled("acac", file) for name, file in ACAC_SETS.items()}
    how = Training(steps=9000, batch_size=8, r_max=5.0)
    return System(train, rest, sets | {"rest_300K": rest}, how)


def sio2() -> System:
    """Silica crystal, each second frame; test sets: the other frames, and the melt."""
    frames = labelled("sio2", "sio2")
    kinds = {
        kind: [a for a in frames if a.info["config_type"] == kind]
        for kind in ("crystal", "melt_quench")
    }
    for name, members in kinds.items():
        name_runs(members, name)
    crystal = kinds["crystal"]
    trained = set(range(0, 2 * CRYSTAL_TRAINED, 2))
    train = [crystal[i] for i in sorted(trained)]
    others = [a for i, a in enumerate(crystal) if i not in trained]
    how = Training(steps=2500, batch_size=2, r_max=4.5)
    return System(train, others, {"crystal": others, "melt": kinds["melt_quench"]}, how)


def labelled(folder: str, name: str) -> list[Atoms]:
    """Return the frames of one file."""
    frames = []
    for row, atoms in enumerate(read(DATA / folder / f"{name}.xyz", ":")):
        plain = Atoms(atoms.numbers, atoms.positions)
        if atoms.pbc.any():
            plain.cell, plain.pbc = atoms.cell, atoms.pbc
        results = atoms.calc.results if atoms.calc is not None else {}
        energy = atoms.info.get("REF_energy", results.get("energy"))
        absent = np.full((len(atoms), 3), np.nan)
        forces = atoms.arrays.get("REF_forces", results.get("forces", absent))
        plain.info = {"energy": float(energy), "row": row}
        plain.info["config_type"] = atoms.info["config_type"]
        plain.arrays["forces"] = np.array(forces)
        frames.append(plain)
    name_runs(frames, name)
    return frames


def name_runs(frames: list[Atoms], name: str) -> None:
    """Write into each frame the name of its part of the trajectory."""
    for place, atoms in enumerate(frames):
        atoms.info["run"] = f"{name}/{place // STRETCH:02d}"
