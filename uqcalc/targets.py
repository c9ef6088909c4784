"""A table of the errors that a probe can predict.

A new target needs an entry in `TARGETS` and a function that computes its error. If it
compares another quantity than energies or forces, it also needs an entry in
`QUANTITIES` and the key of the reference in `uqcalc.Labels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import units
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from numpy.typing import ArrayLike, NDArray

from uqcalc.errors import LabelError


@dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity that potentials compute and labels contain.

    Attributes
    ----------
    name : str
        Key of ``calc.results``; `uqcalc.Labels` has a field ``NAME_key`` for it.
    unit : str
    per_atom : bool
        True: labels are in ``atoms.arrays``, one row for each atom. False: labels are
        in ``atoms.info``.
    shape : tuple of int
        Shape of a label or, with ``per_atom``, of its row for one atom.
    other_units : mapping
        Unit that labels may have by mistake -> number of them in one ``unit``.
    """

    name: str
    unit: str
    per_atom: bool
    shape: tuple[int, ...]
    other_units: Mapping[str, float]

    def shape_for(self, atoms: int) -> tuple[int, ...]:
        """Return the shape of the label of a structure with so many ``atoms``."""
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
    "stress": Quantity(
        "stress",
        "eV/Å³",
        per_atom=False,
        shape=(6,),
        other_units={
            "GPa": 1 / units.GPa,
            "kbar": 10 / units.GPa,
            "hartree/bohr³": units.Bohr**3 / units.Hartree,
            "rydberg/bohr³": units.Bohr**3 / units.Rydberg,
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Target:
    """An error that a probe can predict.

    Attributes
    ----------
    name : str
    of : str
        Name of the compared quantity in `QUANTITIES`. A probe for this target judges
        that quantity only.
    unit : str
        Unit of the error and of its boundary.
    meaning : str
        The error in words, as in "P(RMS force error <= 0.03 eV/Å)".
    bounded : str
        The error in words, for statements about a bound on it.
    error : callable
        Takes prediction, reference and number of atoms; returns the error, at least 0.
        For a scalar quantity it also takes arrays of shape (structures,).
    grows : bool
        Whether the error grows with the number of atoms: the range of sizes of the
        labelled structures is then a limit without a margin.
    relative : bool
        Whether the error is that of a difference between frames: the median of the
        signed errors of all frames of one composition is subtracted first
        (`uqcalc.labels.comparison.relative_residuals`).
    """

    name: str
    of: str
    unit: str
    meaning: str
    bounded: str
    error: Callable[[Any, Any, Any], Any] = field(repr=False)
    grows: bool = False
    relative: bool = False


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


def voigt_stress(stress: ArrayLike) -> NDArray[np.float64]:
    """Return a stress as (6,) in the Voigt order of ASE: xx, yy, zz, yz, xz, xy.

    Parameters
    ----------
    stress : array (6,), (3, 3) or (9,)
        The two values of an off-diagonal component are averaged.
    """
    given = np.asarray(stress, dtype=float)
    if given.shape == (6,):
        return given
    return np.asarray(full_3x3_to_voigt_6_stress(given.reshape(3, 3)))


def _stress_error(predicted: Any, reference: Any, atoms: Any) -> Any:
    """Return the RMS over the nine components of the symmetric 3 x 3 matrix.

    Off-diagonal components count twice, so that the error does not change when the
    structure is rotated: it is a third of the Frobenius norm of the difference.
    """
    away = voigt_6_to_full_3x3_stress(voigt_stress(predicted) - voigt_stress(reference))
    return _root_mean_square(away, 0.0, atoms)


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
        Target(
            "stress",
            of="stress",
            unit="eV/Å³",
            meaning="RMS stress error",
            bounded="RMS error of the stress",
            error=_stress_error,
        ),
        Target(
            "relative_energy",
            of="energy",
            unit="eV",
            meaning="relative energy error",
            bounded="|error| of the energy relative to others of one composition",
            error=_absolute,
            grows=True,
            relative=True,
        ),
    )
}


def check_target(target: str) -> None:
    """Raise an error for an unknown target.

    Raises
    ------
    LabelError
        If it is not in `TARGETS`; the message lists the known targets.
    """
    if target not in TARGETS:
        msg = f"target must be one of {list(TARGETS)}, got {target!r}"
        raise LabelError(msg)
