"""Evaluate one frame with a reference calculator, and name every failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from uqcalc.references.stated import stated


# Entries of a labelled frame: ``info``, ``arrays``, ``info``.
ENERGY, FORCES, STRESS = "REF_energy", "REF_forces", "REF_stress"
REFERENCE_KEY = "uqcalc_reference"
# A reference is external code and may raise any error. Catch these errors only where
# nothing but a reference runs.
FOREIGN = (Exception,)
_LONGEST_REASON = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """Results of one frame, or the reason for its failure.

    Attributes
    ----------
    energy : float
        eV; 0 for a failure.
    forces : array (atoms, 3) or None
        eV/Å; None for a failure.
    stress : array (6,) or None
        eV/Å³, Voigt order and sign as in ASE; None without a stress.
    error : str
        Empty if the frame was evaluated.
    """

    energy: float = 0.0
    forces: NDArray[np.float64] | None = None
    stress: NDArray[np.float64] | None = None
    error: str = ""

    def label(self, frame: Atoms) -> None:
        """Write energy, forces and stress into ``frame``; nothing for a failure."""
        if self.forces is None:
            return
        frame.info[ENERGY] = self.energy
        frame.arrays[FORCES] = self.forces
        if self.stress is not None:
            frame.info[STRESS] = self.stress


def reason_of(error: BaseException) -> str:
    """Return type and text of an error, shortened."""
    return f"{type(error).__name__}: {error}"[:_LONGEST_REASON]


def evaluated(calculator: Any, atoms: Atoms) -> Computed:
    """Return the results of one frame after a check of shapes and numbers.

    Charge and spin that ``info`` states are given to the calculator (`stated`).

    Raises
    ------
    ValueError
        If a result has another shape, or NaN or infinite numbers.
    BackboneError
        As `uqcalc.references.stated.stated`.
    """
    atoms = stated(atoms)
    energy = float(calculator.get_property("energy", atoms))
    forces = np.array(calculator.get_property("forces", atoms), dtype=float)
    stress = None
    if "stress" in calculator.implemented_properties and atoms.pbc.all():
        stress = np.array(calculator.get_property("stress", atoms), dtype=float)
        if stress.shape == (3, 3):
            stress = full_3x3_to_voigt_6_stress(stress)
    wanted: dict[str, tuple[Any, tuple[int, ...]]] = {
        "energy": (energy, ()),
        "forces": (forces, (len(atoms), 3)),
    }
    if stress is not None:
        wanted["stress"] = (stress, (6,))
    for name, (value, shape) in wanted.items():
        if np.shape(value) != shape or not np.isfinite(value).all():
            msg = (
                f"{name} of the reference must be finite with shape {shape}, got shape "
                f"{np.shape(value)} and {np.count_nonzero(~np.isfinite(value))} numbers"
                " that are not finite; look at its output"
            )
            raise ValueError(msg)
    return Computed(energy, forces, stress)


def attempted(calculator: Any, atoms: Atoms) -> Computed:
    """Return the results of one frame; every failure becomes a reason."""
    try:
        return evaluated(calculator, atoms)
    except FOREIGN as error:
        return Computed(error=reason_of(error))
