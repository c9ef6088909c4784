"""Labelled frames for the training and the test of small Orbs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read


DATA = Path(__file__).parents[3] / "shared" / "data"
TRAINED = ("dft", "edi", "jbw")
UNSEEN = ("pty", "uoe")
HELD_OUT = 0.1


def require_data() -> None:
    """Exit with a message if the data are absent."""
    missing = [name for name in ("si_zeo22", "sio2") if not (DATA / name).is_dir()]
    if missing:
        raise SystemExit(f"needs {missing} under ../shared/data, which is absent")


def topology(name: str) -> list[Atoms]:
    """Return all frames of one zeolite; labels ``energy`` and ``forces`` (PBE-D3)."""
    data = np.load(DATA / "si_zeo22" / f"{name}.npz")
    frames = []
    for positions, cell, energy, forces in zip(
        data["positions"], data["cells"], data["energies"], data["forces"], strict=True
    ):
        atoms = Atoms(list(data["symbols"]), positions=positions, cell=cell, pbc=True)
        atoms.info["energy"] = float(energy)
        atoms.info["topology"] = name
        # some older files have a small net force
        atoms.arrays["forces"] = forces - forces.mean(axis=0)
        frames.append(atoms)
    return frames


def split(name: str) -> tuple[list[Atoms], list[Atoms]]:
    """Return the training and the held-out frames of one topology.

    The files are shuffled, so both parts have frames of one MD run. The held-out frames
    are thus similar to the training frames.
    """
    frames = topology(name)
    order = np.random.default_rng(22).permutation(len(frames))
    cut = round(HELD_OUT * len(frames))
    return [frames[i] for i in order[cut:]], [frames[i] for i in order[:cut]]


def silica(config_type: str) -> list[Atoms]:
    """Return the 72-atom cells of ``"crystal"`` or ``"melt_quench"``; forces only."""
    frames = []
    for atoms in read(DATA / "sio2" / "sio2.xyz", ":"):
        if atoms.info["config_type"] == config_type:
            plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
            plain.arrays["forces"] = atoms.arrays["REF_forces"]
            plain.info["topology"] = config_type
            frames.append(plain)
    return frames
