"""What one forward pass gives: the record that every signal reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled

from uqcalc.backbones.told import told


_OF_SINGLE_ATOMS = (FixAtoms, FixCartesian, FixScaled, FixedLine, FixedPlane)
_NOTHING = 1e-9  # of a unit force: what projections leave of it by round-off
_GEOMETRY = ("numbers", "positions", "cell", "pbc", "results", "fixed", "told")
_OF_VOLUME = ("stress", "stresses", "virial", "virials")


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One forward pass of a backbone: all that a signal may look at.

    Attributes
    ----------
    numbers, positions, cell, pbc : arrays
        The geometry: (atoms,), (atoms, 3) Å, (3, 3) Å, (3,).
    results : dict
        The wrapped calculator's own results, untouched.
    energy, forces : float eV, (atoms, 3) eV/Å
        Of the tapped model itself: where the calculator is a sum (a potential plus
        a dispersion correction), ``results`` holds the sum and these do not.
    features : tensor (atoms, dim)
        Detached, on the model's device, in the model's dtype.
    charges : tensor (atoms,) or None
        Atomic charges in e, where the model predicts them.
    committee_forces : array (members, atoms, 3) or None
        Forces of each member in eV/Å, where the calculator is a committee.
    committee_energies, committee_stresses : arrays (members,), (members, 6) or None
        Likewise in eV, and in eV/Å³ (Voigt) where the structure has a cell.
    expected_errors : tensor (atoms,) or None
        What the model itself expects of its forces: mean |error| over the three
        components of each atom's, in eV/Å, where it has a head for that.
    direct_forces, conservative_forces : tensor or array (atoms, 3) or None
        In eV/Å, of the tapped model: from a head of their own, and -dE/dr; None where
        the model has none, or none was wanted on this step.
    direct_stress, conservative_stress : tensor or array (6,) or None
        In eV/Å³, Voigt order as in ASE: from a head, and of the energy.
    projected : frozenset of str
        What the head of the direct forces takes out of them by itself: "net_force",
        and "net_torque" (of molecules).
    vectors : tensor (atoms, channels, 3) or None
        Features that turn with the structure (l = 1), where the pass gives any.
    fixed : array (atoms,) of bool or None
        Atoms that constraints hold in all directions; None where there are none.
    told : mapping
        What the structure says of its charge and spin, whether the model reads it or
        not: `uqcalc.backbones.told.told`.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    results: dict[str, Any]
    energy: float
    forces: np.ndarray
    features: torch.Tensor
    charges: torch.Tensor | None = None
    committee_forces: np.ndarray | None = None
    committee_energies: np.ndarray | None = None
    committee_stresses: np.ndarray | None = None
    expected_errors: torch.Tensor | None = None
    direct_forces: torch.Tensor | np.ndarray | None = None
    conservative_forces: torch.Tensor | np.ndarray | None = None
    direct_stress: torch.Tensor | np.ndarray | None = None
    conservative_stress: torch.Tensor | np.ndarray | None = None
    projected: frozenset[str] = frozenset()
    vectors: torch.Tensor | None = None
    fixed: np.ndarray | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether all numbers on the host are finite: none is `broken`."""
        return not self.broken()

    def broken(self) -> tuple[str, ...]:
        """Return the names of the quantities on the host that are not all finite.

        These are this record's own and all that the calculator gave. Stresses and
        virials count in periodic structures with a volume only: others have none, and
        some calculators say infinity.
        """
        given = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.name not in _GEOMETRY
        }
        given |= self.results
        solid = bool(self.pbc.any()) and abs(np.linalg.det(self.cell)) > _NOTHING
        return tuple(
            name
            for name, value in given.items()
            if _on_host(value)
            and (solid or not name.endswith(_OF_VOLUME))
            and not _all_finite(value)
        )

    def on_device(self) -> dict[str, torch.Tensor]:
        """Return the quantities that are tensors elsewhere, by name."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            name: value
            for name, value in (given | self.results).items()
            if isinstance(value, torch.Tensor) and not _on_host(value)
        }

    def own(self) -> Prediction:
        """Return a copy that the next pass leaves alone: EMT writes into its forces."""
        results = {
            key: value.copy() if isinstance(value, np.ndarray) else value
            for key, value in self.results.items()
        }
        copies = {
            entry.name: _copy(getattr(self, entry.name))
            for entry in fields(self)
            if entry.name != "results"
        }
        return replace(self, results=results, **copies)


@dataclass(slots=True, eq=False)
class Capture:
    """What an armed tap saw: one entry per pass of each tapped model.

    ``more`` holds what else the pass gave, by the name it has in a `Prediction`.
    """

    features: list[torch.Tensor]
    charges: list[torch.Tensor]
    more: dict[str, torch.Tensor | np.ndarray] = field(default_factory=dict)


def fixed_atoms(atoms: Atoms) -> np.ndarray | None:
    """Return which atoms constraints hold in all directions, (atoms,).

    Those that act on single atoms are looked at (`FixAtoms`, and `FixCartesian`,
    `FixScaled`, `FixedLine` and `FixedPlane`, of which several may hold one atom): an
    atom is held if they leave nothing of any force on it. None where none is.
    """
    single = [c for c in atoms.constraints if isinstance(c, _OF_SINGLE_ATOMS)]
    if not single:
        return None
    left = np.zeros(len(atoms))
    for axis in np.eye(3):
        forces = np.tile(axis, (len(atoms), 1))
        for constraint in single:
            constraint.adjust_forces(atoms, forces)
        left = np.maximum(left, np.abs(forces).max(axis=1, initial=0.0))
    fixed = left < _NOTHING
    return fixed if fixed.any() else None


def geometry(atoms: Atoms) -> dict[str, Any]:
    """Return the fields of a `Prediction` that say which geometry it is of."""
    return {
        "numbers": atoms.numbers.copy(),
        "positions": atoms.positions.copy(),
        "cell": atoms.cell.array.copy(),
        "pbc": atoms.pbc.copy(),
        "fixed": fixed_atoms(atoms),
        "told": told(atoms),
    }


def _on_host(value: Any) -> bool:
    """Say whether these are numbers, and can be asked without waiting for a device."""
    if isinstance(value, torch.Tensor):
        return value.device.type == "cpu"
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "fc"
    return isinstance(value, float)


def _all_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    return bool(np.isfinite(value).all())


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    return value.clone() if isinstance(value, torch.Tensor) else value
