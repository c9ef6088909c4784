"""The results of one forward pass: the input of every signal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled

from uqcalc.chargespin import stated_charge_spin


_OF_SINGLE_ATOMS = (FixAtoms, FixCartesian, FixScaled, FixedLine, FixedPlane)
_NOTHING = 1e-9  # share of a unit force that may remain by round-off
_GEOMETRY = ("numbers", "positions", "cell", "pbc", "results", "fixed", "charge_spin")
_OF_VOLUME = ("stress", "stresses", "virial", "virials")


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The results of one forward pass of a backbone: the input of every signal.

    Attributes
    ----------
    numbers, positions, cell, pbc : arrays
        The geometry: (atoms,), (atoms, 3) Å, (3, 3) Å, (3,).
    results : dict
        The wrapped calculator's own results, unchanged.
    energy, forces : float eV, (atoms, 3) eV/Å
        Energy and forces of the tapped model alone. If the calculator is a sum (a
        potential plus a dispersion correction), ``results`` holds the sum. The forces
        have the shape (0, 3) if they were not computed (`Backbone.skips_forces`).
    features : tensor (atoms, dim)
        Detached, on the model's device, in the model's dtype.
    charges : tensor (atoms,) or None
        Atomic charges in e, if the model predicts them.
    committee_forces : array (members, atoms, 3) or None
        Forces of each member in eV/Å, if the calculator is a committee.
    committee_energies, committee_stresses : arrays (members,), (members, 6) or None
        Of each member, in eV, and in eV/Å³ (Voigt order) for periodic structures.
    perturbed_energies, perturbed_forces, perturbed_stresses : arrays or None
        Of each member of a learned perturbation (`uqcalc.perturb`): (members,) in eV,
        (members, atoms, 3) in eV/Å and (members, 6) in eV/Å³.
    expected_errors : tensor (atoms,) or None
        The model's own estimate of its force error: mean |error| over the three
        components, for each atom, in eV/Å, if the model has a head for it.
    energy_uncertainties : tensor (atoms,) or None
        The model's own standard deviation of the energy of each atom, in eV, if it
        computes one.
    direct_forces, conservative_forces : tensor or array (atoms, 3) or None
        Forces of the tapped model in eV/Å: from a force head, and -dE/dr. None if the
        model has none, or if they were not requested at this step.
    direct_stress, conservative_stress : tensor or array (6,) or None
        In eV/Å³, Voigt order as in ASE: from a stress head, and from the energy.
    projected : frozenset of str
        Parts that the head removes from the direct forces: "net_force", and
        "net_torque" (for molecules).
    vectors : tensor (atoms, channels, 3) or None
        Features that rotate with the structure (l = 1), if the pass gives them.
    fixed : array (atoms,) of bool or None
        True for atoms fixed in all directions by constraints; None if all may move.
    charge_spin : mapping
        Charge and spin given with the structure, even if the model does not read them:
        `uqcalc.chargespin.stated_charge_spin`.
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
    perturbed_energies: np.ndarray | None = None
    perturbed_forces: np.ndarray | None = None
    perturbed_stresses: np.ndarray | None = None
    expected_errors: torch.Tensor | None = None
    energy_uncertainties: torch.Tensor | None = None
    direct_forces: torch.Tensor | np.ndarray | None = None
    conservative_forces: torch.Tensor | np.ndarray | None = None
    direct_stress: torch.Tensor | np.ndarray | None = None
    conservative_stress: torch.Tensor | np.ndarray | None = None
    projected: frozenset[str] = frozenset()
    vectors: torch.Tensor | None = None
    fixed: np.ndarray | None = None
    charge_spin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_forces(self) -> bool:
        """Whether the pass computed forces."""
        return len(self.forces) == len(self.numbers)

    @property
    def finite(self) -> bool:
        """Whether all numbers on the host are finite: `broken` is empty."""
        return not self.broken()

    def broken(self) -> tuple[str, ...]:
        """Return the names of the quantities on the host that hold NaN or infinity.

        All fields of this record and all ``results`` are checked. Stresses and virials
        are checked only for periodic structures with a volume: without a volume they
        have no meaning, and some calculators give infinity.
        """
        given = {name: getattr(self, name) for name in _JUDGED} | self.results
        found = tuple(
            name
            for name, value in given.items()
            if _on_host(value) and not _all_finite(value)
        )
        solid = found and self.pbc.any() and abs(np.linalg.det(self.cell)) > _NOTHING
        return tuple(name for name in found if solid or not name.endswith(_OF_VOLUME))

    def on_device(self) -> dict[str, torch.Tensor]:
        """Return the tensors on other devices than the CPU, by name."""
        given = {name: getattr(self, name) for name in _FIELDS}
        return {
            name: value
            for name, value in (given | self.results).items()
            if isinstance(value, torch.Tensor) and not _on_host(value)
        }

    def own(self) -> Prediction:
        """Return a copy: the next pass may overwrite arrays, as EMT does its forces."""
        results = {
            key: value.copy() if isinstance(value, np.ndarray) else value
            for key, value in self.results.items()
        }
        copies = {
            name: _copy(getattr(self, name)) for name in _FIELDS if name != "results"
        }
        return replace(self, results=results, **copies)


@dataclass(slots=True, eq=False)
class Capture:
    """The data that an armed tap recorded: one entry per pass of each tapped model.

    ``more`` holds all other data of the pass, by name in a `Prediction`.
    """

    features: list[torch.Tensor]
    charges: list[torch.Tensor]
    more: dict[str, torch.Tensor | np.ndarray] = field(default_factory=dict)


_FIELDS = tuple(entry.name for entry in fields(Prediction))
_JUDGED = tuple(name for name in _FIELDS if name not in _GEOMETRY)
NO_FORCES = np.empty((0, 3))  # of a pass that computed none


def fixed_atoms(atoms: Atoms) -> np.ndarray | None:
    """Return a mask of the atoms fixed in all directions, (atoms,), None without any.

    Only constraints on single atoms count: `FixAtoms`, `FixCartesian`, `FixScaled`,
    `FixedLine` and `FixedPlane`. Several of them may act on one atom. An atom is fixed
    if they remove every force on it.
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
    """Return the fields of a `Prediction` that describe the geometry."""
    return {
        "numbers": atoms.numbers.copy(),
        "positions": atoms.positions.copy(),
        "cell": atoms.cell.array.copy(),
        "pbc": atoms.pbc.copy(),
        "fixed": fixed_atoms(atoms),
        "charge_spin": stated_charge_spin(atoms),
    }


def _on_host(value: Any) -> bool:
    """Return whether ``value`` is floating-point data in the memory of the host."""
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
