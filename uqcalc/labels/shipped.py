"""Labelled sets that ship with the package: one compact file with a checksum each.

A file has the frames of a set one after the other. Positions are fractions of the cell
in whole steps of 1/65520, in 16 bits: 65520 is a multiple of 2 to 10 and of 12, so that
atoms on sites of symmetry stay there and forces that vanish by symmetry still vanish.
Forces are half floats; cells, stresses and energies per atom have single precision.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.errors import LabelError
from uqcalc.files.tensorfile import Kind
from uqcalc.labels.groups import reduced_formula
from uqcalc.labels.labels import Labels, has_stress


if TYPE_CHECKING:
    import torch

STEPS = 65520  # of a cell vector; fractions from -1/2 to 1/2 fit into 16 bits
FILE = Kind(
    name="labelled set",
    key="uqcalc_labels",
    error=LabelError,
    make="install uqcalc again",
    otherwise="install uqcalc again",
)


@dataclass(frozen=True)
class ShippedLabels:
    """A labelled set of the package.

    Attributes
    ----------
    name, file : str
        Name on the command line, and file in the folder of the package's data.
    method : str
        Method of the labels, in words.
    origin : str
        Where the labels come from, and which potentials were trained on some of them.
    boundaries : mapping
        Target -> error of a reliable result, where the user gives none.
    near : tuple of str
        Sets of structures near equilibrium: there, energies of the potential and of
        the labels are compared.
    exclude : tuple of str
        Defects of frames that are left out and counted.
    """

    name: str
    file: str
    method: str
    origin: str
    boundaries: Mapping[str, str]
    near: tuple[str, ...]
    exclude: tuple[str, ...] = (
        "duplicate",
        "unknown elements",
        "not computable",
        "not finite",
    )

    def frames(self) -> list[Atoms]:
        """Return the frames (`read_packed`)."""
        with as_file(files("uqcalc") / "data" / self.file) as path:
            return read_packed(path)


SHIPPED = {
    "pbe-crystals": ShippedLabels(
        name="pbe-crystals",
        file="pbe-crystals.safetensors",
        method="PBE(+U) with the settings of the Materials Project",
        origin=(
            "benchmark sets of microsoft/mattersim (MIT licence), crystals of up to "
            "40 atoms; two of the six sets are MPtrj frames, which are in the training "
            "pool of potentials of the Materials Project"
        ),
        boundaries={
            "forces": "0.2 eV/angstrom",
            "stress": "0.5 GPa",
            "energy_per_atom": "30 meV/atom",
        },
        near=("alexandria-random-1k", "mptrj-random-1k"),
    )
}


def shipped_labels(name: str) -> ShippedLabels:
    """Return the labelled set of the package with this name.

    Raises
    ------
    LabelError
        If there is none; the message has the names.
    """
    if name not in SHIPPED:
        msg = (
            f"labels of the package must be one of {', '.join(SHIPPED)}, got {name!r}; "
            "give a file of your own as DATA"
        )
        raise LabelError(msg)
    return SHIPPED[name]


def write_packed(
    path: str | os.PathLike[str],
    frames: Sequence[Atoms],
    labels: Labels,
    card: Mapping[str, Any],
) -> Path:
    """Write periodic frames with energies, forces and stresses to a compact file.

    Parameters
    ----------
    frames : sequence of Atoms
        ``info["set"]`` names the set of each.
    labels : Labels
        Keys of the labels.
    card : mapping
        Description in the file.

    Raises
    ------
    LabelError
        If a frame is not periodic in three directions or lacks a label, or a force is
        too large for a half float.
    """
    sets = sorted({frame.info["set"] for frame in frames})
    content = {"schema": 1, "sets": sets, **card}
    return FILE.write(path, _packed(frames, labels, sets), content)


def read_packed(path: str | os.PathLike[str]) -> list[Atoms]:
    """Return the frames of a compact file.

    Returns
    -------
    list of Atoms
        With ``info["REF_energy"]`` [eV], ``arrays["REF_forces"]`` [eV/Å],
        ``info["REF_stress"]`` [eV/Å³, six components], ``info["formula"]`` (the reduced
        formula) and ``info["set"]``. Atoms may be in another cell than in the source.

    Raises
    ------
    LabelError
        If the file is incomplete, or its checksum differs.
    """
    tensors, card = FILE.read(path)
    stored = {key: value.numpy() for key, value in tensors.items()}
    cuts = np.cumsum(stored["sizes"])[:-1]
    keys = ("numbers", "fractions", "forces")
    atoms = [np.split(stored[key], cuts) for key in keys]
    of_frames = [stored[key].astype(float) for key in ("cells", "energies", "stresses")]
    frames = []
    for numbers, fractions, forces, cell, energy, stress, place in zip(
        *atoms, *of_frames, stored["sets"], strict=True
    ):
        positions = fractions / STEPS @ cell
        frame = Atoms(numbers, positions, cell=cell, pbc=True)
        frame.arrays["REF_forces"] = forces.astype(float)
        frame.info = {
            "REF_energy": float(energy) * len(frame),
            "REF_stress": stress,
            "formula": reduced_formula(frame),
            "set": card["sets"][place],
        }
        frames.append(frame)
    return frames


def _packed(
    frames: Sequence[Atoms], labels: Labels, sets: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return the columns of the file: of all atoms, and of all frames."""
    import torch

    energies, forces, stresses = (
        [_label(frame, labels, quantity) for frame in frames]
        for quantity in ("energy", "forces", "stress")
    )
    sizes = np.array([len(frame) for frame in frames])
    columns = {
        "sizes": sizes.astype(np.uint8),
        "sets": np.array([sets.index(f.info["set"]) for f in frames], dtype=np.uint8),
        "cells": np.array([f.cell.array for f in frames], dtype=np.float32),
        "energies": (np.array(energies) / sizes).astype(np.float32),
        "stresses": np.array(stresses, dtype=np.float32),
        "numbers": np.concatenate([f.numbers for f in frames]).astype(np.uint8),
        "fractions": np.concatenate([_fractions(f) for f in frames]),
    }
    with np.errstate(over="ignore"):  # infinite numbers are refused by the file
        columns["forces"] = np.concatenate(forces).astype(np.float16)
    return {key: torch.from_numpy(value) for key, value in columns.items()}


def _fractions(frame: Atoms) -> NDArray[np.int16]:
    """Return the positions in steps of the cell vectors, within half a cell of zero."""
    fractions = frame.cell.scaled_positions(frame.positions)
    steps = np.rint(STEPS * (fractions - np.rint(fractions)))
    return np.asarray(steps, dtype=np.int16)


def _label(frame: Atoms, labels: Labels, quantity: str) -> NDArray[np.float64]:
    found = labels.reference_of(frame, quantity)
    if not has_stress(frame) or found is None or len(frame) > np.iinfo(np.uint8).max:
        msg = (
            "packed frames must be periodic, of at most 255 atoms and with labels of "
            f"energy, forces and stress, got {frame} with {sorted(frame.info)}"
            "; leave it out"
        )
        raise LabelError(msg)
    return found
