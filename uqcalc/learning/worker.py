"""What a process of `uqcalc.label` does: evaluate one frame with the reference."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from uqcalc.errors import LabelError
from uqcalc.learning.references import FromText, Reference
from uqcalc.learning.unitcheck import check_units


# A reference is foreign code: it raises whatever it meets in its input, its output
# files or its own process. Catch it only where nothing but a reference runs.
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


class Evaluator:
    """Evaluates frames with the calculator that a reference makes.

    Parameters
    ----------
    reference : Reference
        A function that returns an ASE calculator; one with a parameter ``directory``
        is called for each frame, any other only once.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._calculator: Any = None

    def compute(self, atoms: Atoms, folder: Path | None) -> Computed:
        """Evaluate one frame; every failure becomes a reason.

        ``folder`` is passed as ``directory`` if the function takes it; it is made if it
        does not exist.
        """
        try:
            return _evaluated(self._made(folder), atoms)
        except FOREIGN as error:
            return Computed(error=reason_of(error))

    def first_look(self, atoms: Atoms | None, folder: Path | None) -> tuple[str, str]:
        """Make a calculator and check its units on one frame.

        ``atoms`` is None to make the calculator only.

        Returns
        -------
        outcome, words : str
            ("made", what was compared), ("not made", reason), ("failed", reason) if the
            reference fails on this frame, or ("wrong", reason) for foreign units.
        """
        try:
            calculator = self._made(folder)
        except FOREIGN as error:
            return "not made", reason_of(error)
        if atoms is None:
            return "made", "not asked for"
        try:
            return "made", check_units(atoms, calculator)
        except LabelError as error:
            return "wrong", str(error)
        except FOREIGN as error:
            return "failed", reason_of(error)

    def _made(self, folder: Path | None) -> Any:
        reference = self.reference
        make = reference.find() if isinstance(reference, FromText) else reference
        if folder is not None and "directory" in inspect.signature(make).parameters:
            folder.mkdir(parents=True, exist_ok=True)
            return make(directory=str(folder))
        if self._calculator is None:
            self._calculator = make()
        return self._calculator


# The evaluator of this process, if it was started by `uqcalc.learning.processes`.
_OWN: list[Evaluator] = []


def start(reference: Reference) -> None:
    """Give this process its reference; it makes the calculator at its first frame."""
    _OWN[:] = [Evaluator(reference)]


def compute(atoms: Atoms, folder: Path | None) -> Computed:
    """Evaluate one frame in a process that `start` has prepared."""
    return _OWN[0].compute(atoms, folder)


def first_look(atoms: Atoms | None, folder: Path | None) -> tuple[str, str]:
    """Check the reference in a process that `start` has prepared."""
    return _OWN[0].first_look(atoms, folder)


def reason_of(error: BaseException) -> str:
    """Return type and text of an error, shortened."""
    return f"{type(error).__name__}: {error}"[:_LONGEST_REASON]


def _evaluated(calculator: Any, atoms: Atoms) -> Computed:
    """Return the results of one frame after a check of shapes and numbers.

    Raises
    ------
    ValueError
        If a result has another shape, or NaN or infinite numbers.
    """
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
