"""The regime of a structure: relaxed, near-equilibrium, hot, strained and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from ase import units

from uqcalc.errors import LabelError
from uqcalc.geometry.surroundings import Geometry


Regime = Literal[
    "relaxed",
    "near-equilibrium",
    "hot",
    "strained",
    "surface",
    "cluster",
    "reactive",
    "random",
]
REGIMES: tuple[str, ...] = get_args(Regime)
KEY = "regime"
TEMPERATURES = ("temperature_K", "temperature", "T_K")  # entries of ``info``, in K

STILL = 0.05  # eV/Å; the usual limit of a relaxation
# RMS of the atoms' forces, eV/Å. A classical oscillator of stiffness k has k kT: the
# bonds of molecules are stiff, so that theirs is this large at 300 K.
WARM, WARM_MOLECULE = 0.9, 2.1
HOT = 450.0  # K
PRESSED = 10.0  # GPa, the largest component of the stress
DENSE, SPARSE = 0.72, 1.25  # median of the closest contacts, sums of covalent radii
UNEVEN = 0.86  # smallest / median of the closest contacts
VACUUM = 6.0  # Å


def regime_of(
    geometry: Geometry,
    forces: np.ndarray,
    contacts: np.ndarray,
    *,
    breaking: bool,
    fragments: int,
    stress: np.ndarray | None = None,
    temperature: float | None = None,
) -> str:
    """Return the regime of a structure by the first rule that holds.

    1. reactive: a bond is between whole and broken (`uqcalc.types.Flags`).
    2. cluster: open in all directions, and more than one molecule, or metals.
    3. surface: 6 Å of vacuum along one or two directions.
    4. random: forces as in 5, and the smallest of the atoms' closest contacts is below
       0.86 of their median.
    5. hot: the temperature is above 450 K; without one, the RMS force is above
       0.9 eV/Å (2.1 eV/Å with vacuum), and at least 1.8 eV/Å if rule 6 holds.
    6. strained: a component of the stress is above 10 GPa, or the median of the atoms'
       closest contacts is outside 0.72 to 1.25 sums of covalent radii.
    7. relaxed: no force above 0.05 eV/Å. 8. near-equilibrium: all others.

    benchmarks/flags.py has its confusion table on sets of known origin.

    Parameters
    ----------
    geometry : Geometry
    forces : array (atoms, 3)
        In eV/Å. NaN counts as large.
    contacts : array (atoms,)
        Closest contact of each atom (`uqcalc.geometry.environments.Coordination`).
    breaking : bool
        Whether a bond is between whole and broken.
    fragments : int
        Number of molecules; 0 if the structure has metals.
    stress : array (6,), optional
        In eV/Å³.
    temperature : float, optional
        In K.
    """
    if breaking:
        return "reactive"
    open_ = open_directions(geometry)
    if open_ == 3 and fragments != 1:
        return "cluster"
    if 0 < open_ < 3:
        return "surface"
    sizes = np.linalg.norm(forces, axis=1)
    rms = float(np.sqrt(np.mean(sizes**2)))
    warm = not rms <= (WARM_MOLECULE if open_ else WARM)
    middle = float(np.median(contacts))
    if not open_ and warm and contacts.min() < UNEVEN * middle:
        return "random"
    pressed = stress is not None and np.abs(stress).max() / units.GPa > PRESSED
    strained = pressed or not (DENSE <= middle <= SPARSE or len(contacts) == 1)
    if temperature is not None and temperature > HOT:
        return "hot"
    if temperature is None and warm and not (strained and rms < 2 * WARM):
        return "hot"
    if strained:
        return "strained"
    return "relaxed" if sizes.max() <= STILL else "near-equilibrium"


def open_directions(geometry: Geometry) -> int:
    """Return the number of directions, 0 to 3, with vacuum or without a period."""
    count = 0
    inverse = None
    for axis in range(3):
        if not geometry.pbc[axis]:
            count += 1
            continue
        if inverse is None:
            inverse = np.linalg.pinv(geometry.cell)
        along = np.sort(geometry.positions @ inverse[:, axis] % 1.0)
        gaps = np.diff(along, append=along[0] + 1.0)
        height = 1.0 / np.linalg.norm(inverse[:, axis])
        count += bool(gaps.max() * height > VACUUM)
    return count


def stated_regime(info: Mapping[str, Any]) -> str | None:
    """Return ``info["regime"]``; None if it is missing.

    Raises
    ------
    LabelError
        If it is not a text.
    """
    given = info.get(KEY)
    if given is None:
        return None
    if not isinstance(given, str) or not given:
        msg = (
            f"info[{KEY!r}] must be a name such as {', '.join(REGIMES[:3])}, got "
            f"{given!r}; name the regime or remove the entry"
        )
        raise LabelError(msg)
    return given


def stated_temperature(info: Mapping[str, Any]) -> float | None:
    """Return the temperature of a structure in K; None if ``info`` has none."""
    for name in TEMPERATURES:
        value = np.asarray(info.get(name))
        if value.size == 1 and value.dtype.kind in "iuf":
            number = float(value.reshape(()))
            return number if np.isfinite(number) and number >= 0 else None
    return None
