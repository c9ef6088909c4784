"""Charge and spin given with a structure, and whether a model can read them.

Initial magnetic moments do not count: they are the start of a self-consistent
calculation, and structures from databases usually have them. Models are fitted to the
state at its end.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ase import Atoms

from uqcalc.errors import BackboneError


# Keys of ``atoms.info`` by meaning. "spin" is the multiplicity for Orb, AIMNet2
# and MACE, and the number of unpaired electrons elsewhere.
CHARGES = ("charge", "total_charge")
SPINS = ("spin", "mult", "multiplicity", "spin_multiplicity", "total_spin")
NAMES = (*CHARGES, *SPINS)
INITIAL = "initial charges"


def stated_charge_spin(atoms: Atoms) -> dict[str, Any]:
    """Return the entries of ``info`` for charge or spin.

    The sum of initial charges is added as ``"initial charges"`` if it is NaN or
    further than 0.01 e from zero: a structure with charges that cancel is neutral.
    """
    said = {name: atoms.info[name] for name in NAMES if name in atoms.info}
    if atoms.has("initial_charges"):
        total = float(atoms.get_initial_charges().sum())
        if not abs(total) <= 0.01:  # also NaN; 0.01 allows for rounded charges
            said[INITIAL] = total
    return {name: value for name, value in said.items() if value is not None}


def ignored_charge_spin(
    said: Mapping[str, Any], reads: Collection[str]
) -> tuple[str, ...]:
    """Return reasons: charges and spins that a model with ``reads`` ignores.

    Such a model treats every structure as a neutral singlet, so that these values give
    no reason. A value that the model reads under another key gives none either.
    """
    reasons = []
    for name, value in said.items():
        same = CHARGES if name in (*CHARGES, INITIAL) else SPINS
        usual = (0,) if same is CHARGES else (0, 1)
        number = _whole(value)
        others = [_whole(said[key]) for key in same if key in said and key in reads]
        known = number is not None and number in (*usual, *others)
        if name in reads or known:
            continue
        where = name if name == INITIAL else f"info[{name!r}]"
        shown = f"{value:.3g} e" if name == INITIAL else _repr(value)[:40]
        reasons.append(f"{where} is {shown}, which this model does not use")
    return tuple(reasons)


def impossible(
    said: Mapping[str, Any], numbers: np.ndarray, reads: Collection[str]
) -> tuple[str, ...]:
    """Return reasons: multiplicities in ``reads`` that these electrons cannot have.

    2 S + 1 is odd for an even number of electrons and even for an odd number. It is at
    most the number of electrons plus one.
    """
    charge = next(
        (_whole(said[key]) for key in CHARGES if key in {*said} & {*reads}), 0
    )
    electrons = int(numbers.sum()) - (charge or 0)
    reasons = []
    for name in (key for key in SPINS if key in said and key in reads):
        spin = _whole(said[name])
        if not spin:  # 0: not given
            continue
        if (electrons + spin) % 2 == 0 or spin > electrons + 1:
            reasons.append(
                f"info[{name!r}] is {spin}, a multiplicity that {electrons} electrons "
                "cannot have"
            )
    return tuple(reasons)


def check_charge_spin(atoms: Atoms, parsed: Collection[str]) -> None:
    """Raise an error for an impossible charge or spin that the calculator reads.

    Raises
    ------
    BackboneError
        If a value is not a whole number, a spin is negative, or a charge is larger than
        the number of electrons.
    """
    electrons = int(atoms.numbers.sum())
    for name, value in stated_charge_spin(atoms).items():
        if name not in parsed:
            continue
        number = _whole(value) if np.ndim(value) == 0 else None  # lists are refused
        limit = electrons if name in CHARGES else math.inf
        if number is None or number > limit or (name in SPINS and number < 0):
            wanted = (
                f"a whole number of at most {electrons} electrons"
                if name in CHARGES
                else "a whole number from 0"
            )
            msg = (
                f"info[{name!r}] must be {wanted}, got {_repr(value)}; set it or "
                "remove it"
            )
            raise BackboneError(msg)


def plain_numbers(atoms: Atoms, names: Collection[str]) -> Atoms:
    """Return a copy with these entries of ``info`` as Python integers.

    Some calculators refuse NumPy integers. Without such entries, ``atoms`` is returned.
    """
    found = {
        name: _whole(atoms.info[name])
        for name in names
        if not isinstance(atoms.info.get(name), int | float | None)
    }
    if not found:
        return atoms
    copy: Atoms = atoms.copy()
    copy.info |= found
    return copy


def _repr(value: Any) -> str:
    """Return 1 for ``np.int64(1)``, which ASE reads from extended XYZ."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _whole(value: Any) -> int | None:
    """Return a whole number; None for anything else."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        return None
    number = float(array.reshape(()))
    return int(number) if number.is_integer() else None
