"""Give a reference the charge and the spin that ``info`` states.

Potentials read charge and spin from ``atoms.info``. Calculators of quantum chemistry do
not. Some of them (tblite, Gaussian) take the sums of the initial charges and of the
initial magnetic moments, if their parameters leave charge and spin open.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.chargespin import (
    CHARGES,
    INITIAL,
    SPINS,
    check_charge_spin,
    stated_charge_spin,
)
from uqcalc.errors import BackboneError


_MULTIPLICITIES = ("mult", "multiplicity", "spin_multiplicity")
_FRACTION = 2.0**-20  # sums of its multiples are exact
_SAME = 0.01  # e or unpaired electrons; allows for rounded initial values


def stated(atoms: Atoms) -> Atoms:
    """Return ``atoms`` as a reference must get them.

    The charge of ``info`` becomes initial charges, and its spin becomes initial
    magnetic moments, both equal on all atoms. Initial values that have this sum already
    stay. The multiplicity 2 S + 1 is odd for an even number of electrons, and the
    number of unpaired electrons is even: so "spin" can be either. The spin 0 of an odd
    number of electrons counts as not given, and so does a spin that is not a whole
    number: it is a magnetisation, which is a result. ``atoms`` do not change; they are
    returned if there is nothing to do.

    Raises
    ------
    BackboneError
        If a charge is not a whole number, if two values contradict each other, or if
        the electrons cannot have this multiplicity.
    """
    said = stated_charge_spin(atoms)
    said = {k: v for k, v in said.items() if k not in SPINS or _is_whole(v)}
    if not {*said} - {INITIAL}:
        return atoms
    check_charge_spin(atoms, {*said} - {INITIAL})
    charge = _agreed(said, {key: int(said[key]) for key in CHARGES if key in said})
    electrons = int(atoms.numbers.sum()) - (charge or 0)
    unpaired = {k: _unpaired(k, int(said[k]), electrons) for k in SPINS if k in said}
    spin = _agreed(said, {k: n for k, n in unpaired.items() if n is not None})
    copy: Atoms = atoms.copy()
    if charge is not None:
        known = atoms.get_initial_charges()
        if atoms.has("initial_charges") and not _near(known.sum(), 0, charge):
            raise _contradiction(said)
        if not _near(known.sum(), charge):
            copy.set_initial_charges(_even(charge, len(atoms)))
    if spin is not None and not _near(_moment(atoms), spin):
        copy.set_initial_magnetic_moments(_even(spin, len(atoms)))
    return copy


def _is_whole(value: Any) -> bool:
    array = np.asarray(value)
    return array.size == 1 and array.dtype.kind in "iuf" and not np.any(array % 1)


def _agreed(said: dict[str, Any], numbers: dict[str, int]) -> int | None:
    """Return the one value of ``numbers``; None if there is none."""
    if len({*numbers.values()}) > 1:
        raise _contradiction(said)
    return next(iter(numbers.values()), None)


def _unpaired(key: str, value: int, electrons: int) -> int | None:
    """Return the number of unpaired electrons; None if it is not given.

    Raises
    ------
    BackboneError
        If the electrons cannot have this multiplicity.
    """
    if value == 0 and (electrons % 2 or key in _MULTIPLICITIES):
        return None
    is_multiplicity = (electrons + value) % 2 == 1
    if key in _MULTIPLICITIES and not is_multiplicity:
        msg = (
            f"info[{key!r}] must be a multiplicity that {electrons} electrons can "
            f"have, got {value}; correct it or the charge"
        )
        raise BackboneError(msg)
    return value - 1 if is_multiplicity else value


def _contradiction(said: dict[str, Any]) -> BackboneError:
    shown = ", ".join(f"{name} {value}" for name, value in said.items())
    msg = f"charge and spin must be stated once, got {shown}; remove all but one"
    return BackboneError(msg)


def _moment(atoms: Atoms) -> float:
    moments = np.asarray(atoms.get_initial_magnetic_moments(), dtype=float)
    return float(moments.sum()) if moments.ndim == 1 else np.nan  # not collinear


def _near(value: float, *wanted: float) -> bool:
    return any(abs(value - one) <= _SAME for one in wanted)


def _even(total: int, atoms: int) -> NDArray[np.float64]:
    """Return equal shares whose sum is exactly ``total``; the first has the rest."""
    shares = np.full(atoms, np.floor(total / atoms / _FRACTION) * _FRACTION)
    shares[0] += total - shares.sum()
    return shares
