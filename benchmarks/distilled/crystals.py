"""Crystals for CHGNet, with the PBE(+U) forces of the benchmark sets of MatterSim."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read

from uqcalc import tap
from uqcalc.types import Backbone


SEED = 22
LARGEST = 40  # atoms
TEACHING, TESTED = 500, 150
RATTLE = 0.1  # Å
KNOWN = "mptrj-random-1k"
SETS = {
    "held-out MPtrj": KNOWN,
    "highest stress": "mptrj-highest-stress-1k",
    "high T and p": "mpf-TP",
    "alkali, high T and p": "mpf-alkali-TP",
    "random cells": "random-TP",
}
FORCES = "REF_forces"


def chgnet() -> Backbone:
    """Return CHGNet 0.3.0, tapped."""
    with contextlib.redirect_stdout(io.StringIO()):  # hides the message of CHGNet
        from chgnet.model.dynamics import CHGNetCalculator

        return tap(CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore"))


def require_data(folder: Path) -> None:
    """Exit with a message if the labels are absent."""
    missing = [name for name in SETS.values() if not _path(folder, name).is_file()]
    if missing:
        raise SystemExit(f"needs {missing} as .xyz in {folder.name}, see --data")


def teaching_frames(folder: Path) -> list[Atoms]:
    """Return ordinary structures: a part of MPtrj, on which CHGNet was trained."""
    return _drawn(folder, KNOWN)[:TEACHING]


def rattled(frames: Sequence[Atoms]) -> list[Atoms]:
    """Return copies whose atoms are displaced at random by up to 0.1 Å.

    Each copy has its own standard deviation. The forces of relaxed crystals are too
    small for the fit of a head.
    """
    rng = np.random.default_rng(SEED)
    copies = [atoms.copy() for atoms in frames]
    for atoms in copies:
        width = rng.uniform(0, RATTLE)
        atoms.positions += rng.normal(0, width, atoms.positions.shape)
    return copies


def labelled_blocks(folder: Path) -> dict[str, list[Atoms]]:
    """Return the test blocks; PBE(+U) forces in ``REF_forces``, eV/Å."""
    return {
        block: _drawn(folder, name)[TEACHING if name == KNOWN else 0 :][:TESTED]
        for block, name in SETS.items()
    }


def materials(frames: Sequence[Atoms]) -> list[str]:
    """Return the reduced formula of each."""
    return [str(atoms.symbols.formula.reduce()[0]) for atoms in frames]


def _drawn(folder: Path, name: str) -> list[Atoms]:
    """Return the small structures of a set in random order."""
    frames = []
    for atoms in read(_path(folder, name), ":"):
        if len(atoms) <= LARGEST:
            plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
            plain.arrays[FORCES] = atoms.get_forces()
            frames.append(plain)
    order = np.random.default_rng(SEED).permutation(len(frames))
    return [frames[i] for i in order]


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.xyz"
