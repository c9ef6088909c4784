"""Processes of `uqcalc.label`: each evaluates one frame with the reference."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ase import Atoms

from uqcalc.errors import LabelError
from uqcalc.learning.unitcheck import check_units
from uqcalc.references.evaluating import FOREIGN, Computed, evaluated, reason_of
from uqcalc.references.named import FromText, Reference
from uqcalc.references.stated import stated


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
            return evaluated(self._made(folder), atoms)
        except FOREIGN as error:
            return Computed(error=reason_of(error))

    def first_look(self, atoms: Atoms | None, folder: Path | None) -> tuple[str, str]:
        """Make a calculator and check its units on one frame.

        ``atoms`` is None to make the calculator only.

        Returns
        -------
        outcome, words : str
            ("made", what was compared), ("not made", reason), ("failed", reason) if the
            reference fails on this frame, or ("wrong", reason) for wrong units.
        """
        try:
            calculator = self._made(folder)
        except FOREIGN as error:
            return "not made", reason_of(error)
        if atoms is None:
            return "made", "not asked for"
        try:
            return "made", check_units(stated(atoms), calculator)
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
