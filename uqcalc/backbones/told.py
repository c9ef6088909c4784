"""What a structure says of its charge and its spin, and whether a model can read it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ase import Atoms

from uqcalc.errors import BackboneError


# Keys of ``atoms.info`` by what they mean. "spin" is the multiplicity for Orb, AIMNet2
# and MACE, and the number of unpaired electrons elsewhere.
CHARGES = ("charge", "total_charge")
SPINS = ("spin", "mult", "multiplicity", "spin_multiplicity", "total_spin")
NAMES = (*CHARGES, *SPINS)
INITIAL = "initial charges"


def told(atoms: Atoms) -> dict[str, Any]:
    """Return the entries of ``info`` that name a charge or a spin.

    The sum of initial charges is among them, as ``"initial charges"``, where it is not
    zero: a structure of point charges that cancel is neutral.
    """
    said = {name: atoms.info[name] for name in NAMES if name in atoms.info}
    if atoms.has("initial_charges"):
        total = float(atoms.get_initial_charges().sum())
        if not abs(total) <= 0.01:  # NaN, too; of rounded charges something remains
            said[INITIAL] = total
    return {name: value for name, value in said.items() if value is not None}


def unread(said: Mapping[str, Any], reads: Collection[str]) -> tuple[str, ...]:
    """Say which charges and spins a model that reads ``reads`` leaves out of account.

    A neutral singlet is what such a model takes a structure for: it is no reason, and
    neither is a value that the model reads under another name.
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
        shown = f"{value:.3g} e" if name == INITIAL else repr(value)[:40]
        reasons.append(f"{where} is {shown}, which this model does not read")
    return tuple(reasons)


def check_told(atoms: Atoms, parsed: Collection[str]) -> None:
    """Refuse a charge or a spin that a calculator takes, but cannot be one.

    Raises
    ------
    BackboneError
        If it is not a whole number, if a spin is negative, or if no electron is left.
    """
    electrons = int(atoms.numbers.sum())
    for name, value in told(atoms).items():
        if name not in parsed:
            continue
        number = _whole(value)
        limit = electrons if name in CHARGES else math.inf
        if number is None or number > limit or (name in SPINS and number < 0):
            wanted = (
                f"a whole number of at most {electrons} electrons"
                if name in CHARGES
                else "a whole number from 0"
            )
            msg = f"info[{name!r}] must be {wanted}, got {value!r}; set it or remove it"
            raise BackboneError(msg)


def _whole(value: Any) -> int | None:
    """Return a whole number; None for anything else."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        return None
    number = float(array.reshape(()))
    return int(number) if number.is_integer() else None
