"""Parse an error with a unit: "1 kcal/mol", "50 meV/Å", "1 meV/atom"."""

from __future__ import annotations

import math
import re
import unicodedata

from ase import units

from uqcalc.errors import LabelError
from uqcalc.targets import TARGETS, check_target


_KINDS = {"eV/Å": "a force", "eV": "an energy", "eV/atom": "an energy per atom"}
_SAMPLES = {"eV/Å": "50 meV/Å", "eV": "1 kcal/mol", "eV/atom": "1 meV/atom"}
_ENERGIES = {
    "ev": 1.0,
    "mev": 1e-3,
    "ha": units.Hartree,
    "hartree": units.Hartree,
    "eh": units.Hartree,
    "mha": units.Hartree / 1000,
    "mhartree": units.Hartree / 1000,
    "meh": units.Hartree / 1000,
    "ry": units.Rydberg,
    "rydberg": units.Rydberg,
    "mry": units.Rydberg / 1000,
}
_MOLAR_ENERGIES = {"kcal": units.kcal / units.mol, "kj": units.kJ / units.mol}
_LENGTHS = {
    **dict.fromkeys(("å", "ångström", "angstrom", "ang", "a"), units.Angstrom),
    **dict.fromkeys(("bohr", "a0"), units.Bohr),
    "nm": units.nm,
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)")


def parse_quantity(quantity: float | str, target: str, what: str = "boundary") -> float:
    """Convert an error to the unit of ``target`` (`uqcalc.targets.TARGETS`).

    Parameters
    ----------
    quantity : float or str
        A number in the target's own unit, or a number with any unit of its kind:
        eV, meV, Ha, mHa, Ry, mRy, kcal/mol and kJ/mol; each per Å, bohr or nm for a
        force, and per atom for an energy per atom. Spaces are optional.
    what : str
        Name of the quantity in messages.

    Raises
    ------
    LabelError
        If the value is not positive and finite, or its unit is unknown or does not fit
        the target.

    Examples
    --------
    >>> round(parse_quantity("1 kcal/mol", "energy"), 5)
    0.04336
    >>> parse_quantity("50 meV/angstrom", "forces")
    0.05
    """
    check_target(target)
    wanted = TARGETS[target].unit
    if isinstance(quantity, str):
        value, unit = _in_ev(quantity, wanted, what)
        if unit != wanted:
            msg = (
                f"{what} for the target {target!r} must be {_KINDS[wanted]}, such as "
                f"{_SAMPLES[wanted]!r}, got {quantity!r}, which is {_KINDS[unit]}"
            )
            raise LabelError(msg)
    else:
        value = float(quantity)
    if not 0 < value < math.inf:
        msg = f"{what} must be positive and finite, got {quantity}"
        raise LabelError(msg)
    return value


def _in_ev(text: str, bare: str, what: str) -> tuple[float, str]:
    """Return the value in eV, eV/Å or eV/atom, and the name of that unit.

    ``bare`` is the unit of a number without a unit.
    """
    # NFKC: Unicode has two characters for Å, the ångström sign and the letter
    clean = unicodedata.normalize("NFKC", text).strip()
    match = _QUANTITY.fullmatch(clean)
    found = None if match is None else _factor(match[2], bare)
    if match is None or found is None:
        msg = (
            f"{what} must be a number with a unit such as {_SAMPLES[bare]!r}, got "
            f"{text!r}; units: eV, meV, Ha, mHa, Ry, mRy, kcal/mol, kJ/mol, each by "
            "itself, per Å, bohr or nm, or per atom"
        )
        raise LabelError(msg)
    factor, unit = found
    return float(match[1]) * factor, unit


def _factor(unit: str, bare: str) -> tuple[float, str] | None:
    """Return one ``unit`` in eV, eV/Å or eV/atom, and which; None if unknown."""
    if not unit:
        return 1.0, bare
    numerator, *rest = re.sub(r"\bper\b", "/", unit).split("/")
    below = re.findall(r"[^\s()*·]+", " ".join(rest).lower())
    # M means mega: refused as a probable typing error for m
    energy = "" if numerator.startswith("M") else numerator.strip().lower()
    if energy in _MOLAR_ENERGIES and "mol" in below:
        below.remove("mol")
        factor = _MOLAR_ENERGIES[energy]
    elif energy in _ENERGIES:
        factor = _ENERGIES[energy]
    else:
        return None
    if not below:
        return factor, "eV"
    if below == ["atom"]:
        return factor, "eV/atom"
    if len(below) == 1 and below[0] in _LENGTHS:
        return factor / _LENGTHS[below[0]], "eV/Å"
    return None
