"""Labelled predictions from files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from uqcalc.backbones import Prediction
from uqcalc.labels.dataset import Dataset


SPREADS = ("energy_spread", "forces_spread")  # of a committee, eV and eV/Å
MOLECULES = {"gfn2", "gfn2_molecules", "acac"}  # files without periodic structures
APART = 100.0  # Å


@dataclass(frozen=True, eq=False)
class Labelled:
    """Structures of one potential: predictions, errors by target, sets and groups."""

    predictions: list[Prediction]
    errors: dict[str, np.ndarray]
    atom_errors: list[np.ndarray]
    groups: np.ndarray
    sets: np.ndarray

    def dataset(self, target: str, rows: np.ndarray, *, grouped: bool) -> Dataset:
        """Return the structures at ``rows``; if not grouped, each is its own group."""
        names = self.groups[rows] if grouped else rows.astype(str)
        errors = self.errors["forces" if target == "atoms" else target]
        atoms = [self.atom_errors[i] for i in rows]
        whole = all(np.isfinite(part).all() for part in atoms)
        return Dataset(
            [self.predictions[i] for i in rows],
            errors[rows],
            names.tolist(),
            {},
            atom_errors=atoms if whole else None,
        )


def load(paths: list[Path], cache: Path) -> Labelled:
    """Read files in the layout of ``sevennet0_mattersim``.

    The predictions of further members of a committee, in ``NAME_members.npz`` of
    ``cache``, give the spread of the committee.
    """
    predictions: list[Prediction] = []
    errors: dict[str, list[float]] = {"energy": [], "energy_per_atom": [], "forces": []}
    atom_errors, groups, sets = [], [], []
    for path in paths:
        data = np.load(path)
        cuts = np.cumsum(data["n"])[:-1]
        columns = [np.split(data[k], cuts) for k in ("z", "h", "f_pred", "f_ref")]
        spread = _spread(cache / f"{path.stem}_members.npz", data)
        for i, (z, h, force, reference) in enumerate(zip(*columns, strict=True)):
            energy = float(data["e_pred"][i])
            of_members = None if spread is None else (spread[0][i], spread[1][i])
            predictions.append(
                _prediction(
                    z, h, force, energy, of_members, periodic=path.stem not in MOLECULES
                )
            )
            error = abs(energy - float(data["e_ref"][i]))
            difference = force.astype(float) - reference
            errors["energy"].append(error)
            errors["energy_per_atom"].append(error / len(z))
            errors["forces"].append(float(np.sqrt(np.mean(difference**2))))
            atom_errors.append(np.linalg.norm(difference, axis=1))
            sets.append(str(data["set"][i]) if "set" in data else path.stem)
            groups.append(str(data["group"][i]) if "group" in data else _formula(z))
    return Labelled(
        predictions,
        {kind: np.array(values) for kind, values in errors.items()},
        atom_errors,
        np.array(groups),
        np.array(sets),
    )


def _prediction(
    z: np.ndarray,
    h: np.ndarray,
    forces: np.ndarray,
    energy: float,
    spread: tuple[float, np.ndarray] | None,
    *,
    periodic: bool,
) -> Prediction:
    # The files have no geometry. Atoms far apart have no bonds and no regime.
    positions = np.zeros((len(z), 3))
    positions[:, 0] = APART * np.arange(len(z))
    return Prediction(
        numbers=z.astype(int),
        positions=positions,
        cell=np.diag([APART * len(z), APART, APART]),
        pbc=np.full(3, periodic),
        results={} if spread is None else dict(zip(SPREADS, spread, strict=True)),
        energy=energy,
        forces=forces.astype(float),
        features=torch.from_numpy(h.astype(np.float32)),
    )


def _spread(
    beside: Path, data: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """Return the standard deviations of energies and of the atoms' forces."""
    if not beside.is_file():
        return None
    others = np.load(beside)
    if not np.array_equal(data["z"], others["z"]):
        msg = f"{beside} must hold the atoms of its block; make both again"
        raise SystemExit(msg)
    energies = np.vstack([data["e_pred"][None], others["e_pred"]])
    forces = np.concatenate([data["f_pred"][None], others["f_pred"]])
    of_atoms = np.linalg.norm(forces.std(axis=0, ddof=1), axis=1)
    return energies.std(axis=0, ddof=1), np.split(of_atoms, np.cumsum(data["n"])[:-1])


def _formula(z: np.ndarray) -> str:
    """Return the reduced composition as a group name."""
    kinds, counts = np.unique(z, return_counts=True)
    shares = counts // np.gcd.reduce(counts)
    return " ".join(f"{a}:{b}" for a, b in zip(kinds, shares, strict=True))
