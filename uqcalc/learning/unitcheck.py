"""Whether the energy, forces and stress of a reference are of one set of units.

Central differences of the energy are compared with the forces and the stress that the
reference gives: F = -dE/dr and stress = (1/V) dE/dstrain, in eV, Å and ASE's sign.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.stress import voigt_6_to_full_3x3_stress

from uqcalc.errors import LabelError


_STEP = 0.01  # Å, displacement of all atoms together
_STRAIN = 0.002
_LEAST_FORCE = 0.05  # eV/Å, norm over all atoms; smaller forces are not compared
_LEAST_STRESS = 0.1 * units.GPa
_AGREE = 0.2  # smeared electrons and fixed basis sets give up to some per cent
# Factors that are found if one of two quantities has a wrong unit.
_KNOWN = {
    "hartree": units.Hartree,
    "rydberg": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "hartree/bohr": units.Hartree / units.Bohr,
    "rydberg/bohr": units.Rydberg / units.Bohr,
    "1/bohr": 1 / units.Bohr,
    "GPa": units.GPa,
    "kbar": 0.1 * units.GPa,
}


def check_units(atoms: Atoms, calculator: Any) -> str:
    """Compare forces and stress of a reference with differences of its energy.

    It costs two to four evaluations. Forces and stresses close to zero are not
    compared.

    Returns
    -------
    str
        What was compared, in words.

    Raises
    ------
    LabelError
        If they differ by more than 20 %; the message gives the ratio and the unit that
        would explain it.
    """
    done = []
    forces = np.asarray(calculator.get_property("forces", atoms), dtype=float)
    norm = float(np.linalg.norm(forces))
    if norm > _LEAST_FORCE:
        direction = forces / norm
        slope = -_slope(atoms, calculator, direction, _STEP)
        _compare("forces", norm, slope, "eV/Å")
        done.append("forces")
    if "stress" in calculator.implemented_properties and atoms.pbc.all():
        stress = calculator.get_property("stress", atoms)
        full = voigt_6_to_full_3x3_stress(np.asarray(stress, dtype=float))
        pressure = float(np.trace(full)) / 3
        if abs(pressure) > _LEAST_STRESS:
            slope = _strain_slope(atoms, calculator) / (3 * atoms.get_volume())
            _compare("stress", pressure, slope, "eV/Å³")
            done.append("stress")
    if not done:
        return "not compared: forces and stress are close to zero"
    return f"{' and '.join(done)} agree with differences of the energy"


def _slope(atoms: Atoms, calculator: Any, direction: np.ndarray, step: float) -> float:
    """Return dE along a direction of unit norm, in eV/Å."""
    energies = []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        moved.positions += sign * step * direction
        energies.append(float(calculator.get_property("energy", moved)))
    return (energies[0] - energies[1]) / (2 * step)


def _strain_slope(atoms: Atoms, calculator: Any) -> float:
    """Return dE for a strain that is equal in all directions, in eV."""
    energies = []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        moved.set_cell(atoms.cell * (1 + sign * _STRAIN), scale_atoms=True)
        energies.append(float(calculator.get_property("energy", moved)))
    return (energies[0] - energies[1]) / (2 * _STRAIN)


def _compare(what: str, given: float, slope: float, unit: str) -> None:
    ratio = given / slope if slope else math.inf
    if abs(ratio - 1) <= _AGREE:
        return
    msg = (
        f"{what} of the reference must be the derivative of its energy in {unit}, got "
        f"{given:.4g} where differences of the energy give {slope:.4g} (ratio "
        f"{ratio:.4g}{_explained(ratio)}); convert its results to eV and Å, with the "
        "sign that ASE uses, or pass check=False (--no-check) if it is right"
    )
    raise LabelError(msg)


def _explained(ratio: float) -> str:
    """Return the unit that explains a ratio, as the end of a sentence."""
    if ratio < 0:
        return ": the sign differs"
    for name, factor in _KNOWN.items():
        if (
            abs(ratio * factor - 1) <= _AGREE / 4
            or abs(ratio / factor - 1) < _AGREE / 4
        ):
            return f": one of them may be in {name}"
    return ""
