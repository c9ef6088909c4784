"""Parse an error with a unit: "1 kcal/mol", "50 meV/Å", "1 meV/atom", "0.5 GPa"."""

from __future__ import annotations

import math
import re
import unicodedata

from ase import units

from uqcalc.errors import LabelError
from uqcalc.targets import TARGETS, check_target


_KINDS = {
    "eV/Å": "a force",
    "eV": "an energy",
    "eV/atom": "an energy per atom",
    "eV/Å³": "a stress",
}
_SAMPLES = {
    "eV/Å": "50 meV/Å",
    "eV": "1 kcal/mol",
    "eV/atom": "1 meV/atom",
    "eV/Å³": "0.5 GPa",
}
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
# Upper and lower case differ: MPa is mega, mPa milli.
_PRESSURES = {
    "Pa": units.Pascal,
    "kPa": 1e3 * units.Pascal,
    "MPa": 1e6 * units.Pascal,
    "GPa": units.GPa,
    "bar": units.bar,
    "kbar": 1e3 * units.bar,
    "Mbar": 1e6 * units.bar,
}
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
        force, and per atom for an energy per atom. For a stress GPa, MPa, kPa, Pa,
        kbar, bar, Mbar, or an energy per Å^3, bohr^3 or nm^3. Spaces are optional.
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
    """Return the value in eV, eV/Å, eV/atom or eV/Å³, and the name of that unit.

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
            "itself, per Å, bohr or nm, or per atom; for a stress GPa, MPa, kbar, "
            "bar, or an energy per Å^3 or bohr^3"
        )
        raise LabelError(msg)
    factor, unit = found
    return float(match[1]) * factor, unit


def _factor(unit: str, bare: str) -> tuple[float, str] | None:
    """Return one ``unit`` in eV, eV/Å, eV/atom or eV/Å³, and which; None if unknown."""
    if not unit:
        return 1.0, bare
    if unit in _PRESSURES:
        return _PRESSURES[unit], "eV/Å³"
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
    # written as Å^3, Å**3 or Å³, which NFKC turns into Å3
    cubed = re.fullmatch(r"(.+?)\^?3", "".join(below))
    if cubed is not None and cubed[1] in _LENGTHS:
        return factor / _LENGTHS[cubed[1]] ** 3, "eV/Å³"
    return None
