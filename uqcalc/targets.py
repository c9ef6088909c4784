"""The errors that a probe may predict: one table, which everything else reads.

A new target is an entry of `TARGETS` and a function that computes its error. Where it
compares something else than energies or forces, it needs an entry of `QUANTITIES`, too,
and the key of the reference in `uqcalc.Labels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import units
from numpy.typing import ArrayLike, NDArray

from uqcalc.errors import LabelError


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a potential computes and labels hold.

    Attributes
    ----------
    name : str
        Key of ``calc.results``; `uqcalc.Labels` has a field ``NAME_key`` for it.
    unit : str
    per_atom : bool
        Whether labels are in ``atoms.arrays``, a row for each atom, or in
        ``atoms.info``.
    shape : tuple of int
        Of a label, or of its row for one atom.
    other_units : mapping
        Unit that labels may be in by mistake -> how many of it make one ``unit``.
    """

    name: str
    unit: str
    per_atom: bool
    shape: tuple[int, ...]
    other_units: Mapping[str, float]

    def shape_for(self, atoms: int) -> tuple[int, ...]:
        """Return the shape of a label of so many atoms."""
        return (atoms, *self.shape) if self.per_atom else self.shape


QUANTITIES = {
    "energy": Quantity(
        "energy",
        "eV",
        per_atom=False,
        shape=(),
        other_units={
            "kcal/mol": units.mol / units.kcal,
            "kJ/mol": units.mol / units.kJ,
            "hartree": 1 / units.Hartree,
            "rydberg": 1 / units.Rydberg,
            "meV": 1000.0,
        },
    ),
    "forces": Quantity(
        "forces",
        "eV/Å",
        per_atom=True,
        shape=(3,),
        other_units={
            "kcal/mol/Å": units.mol / units.kcal,
            "kJ/mol/Å": units.mol / units.kJ,
            "hartree/bohr": units.Bohr / units.Hartree,
            "rydberg/bohr": units.Bohr / units.Rydberg,
            "meV/Å": 1000.0,
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Target:
    """An error that a probe may predict.

    Attributes
    ----------
    name : str
    of : str
        Which of `QUANTITIES` is compared. A probe for it judges this result, and says
        nothing of the others.
    unit : str
        Of the error and of its boundary.
    meaning : str
        The error in words: "P(RMS force error <= 0.03 eV/Å)".
    bounded : str
        The same where a bound on it is meant.
    error : callable
        From prediction, reference and number of atoms to the error, at least 0. Of a
        scalar quantity it takes arrays (structures,), too.
    grows : bool
        Whether the error grows with the number of atoms: sizes of the labelled
        structures are then limits as they are.
    """

    name: str
    of: str
    unit: str
    meaning: str
    bounded: str
    error: Callable[[Any, Any, Any], Any] = field(repr=False)
    grows: bool = False


def force_errors(predicted: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Return |ΔF_i| of each atom, (atoms,), from forces (atoms, 3) in eV/Å."""
    difference = np.asarray(predicted, dtype=float) - np.asarray(reference, dtype=float)
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", difference, difference)))


def _absolute(predicted: Any, reference: Any, atoms: Any) -> Any:
    del atoms
    return np.abs(np.asarray(predicted, dtype=float) - reference)


def _absolute_per_atom(predicted: Any, reference: Any, atoms: Any) -> Any:
    return _absolute(predicted, reference, atoms) / atoms


def _root_mean_square(predicted: Any, reference: Any, atoms: Any) -> Any:
    return np.sqrt(np.mean(_absolute(predicted, reference, atoms) ** 2))


def _largest_of_an_atom(predicted: Any, reference: Any, atoms: Any) -> Any:
    del atoms
    return force_errors(predicted, reference).max()


TARGETS = {
    target.name: target
    for target in (
        Target(
            "forces",
            of="forces",
            unit="eV/Å",
            meaning="RMS force error",
            bounded="RMS error of the forces",
            error=_root_mean_square,
        ),
        Target(
            "energy",
            of="energy",
            unit="eV",
            meaning="total energy error",
            bounded="|error| of the total energy",
            error=_absolute,
            grows=True,
        ),
        Target(
            "energy_per_atom",
            of="energy",
            unit="eV/atom",
            meaning="energy error per atom",
            bounded="|error| of the energy per atom",
            error=_absolute_per_atom,
        ),
        Target(
            "atom_forces",
            of="forces",
            unit="eV/Å",
            meaning="largest force error of an atom",
            bounded="largest |error| of an atom's force",
            error=_largest_of_an_atom,
        ),
    )
}


def check_target(target: str) -> None:
    """Refuse a target that no probe has.

    Raises
    ------
    LabelError
        Naming those there are.
    """
    if target not in TARGETS:
        msg = f"target must be one of {list(TARGETS)}, got {target!r}"
        raise LabelError(msg)
