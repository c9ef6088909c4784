"""Entries of frames that ASE's trajectories and databases do not hold by themselves.

A ``.traj`` file keeps ``info``, but of ``arrays`` only those that ASE knows. An ase.db
file keeps neither; it has ``key_value_pairs`` and ``data``. Here ``arrays`` go to
``info["uqcalc_arrays"]`` and, in a database, ``info`` goes to ``data["uqcalc_info"]``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import ase.db
import numpy as np
from ase import Atoms
from ase.db.core import bytes_to_object, check, object_to_bytes
from ase.io.jsonio import decode, encode


ARRAYS_KEY = "uqcalc_arrays"
INFO_KEY = "uqcalc_info"
# Arrays that both formats hold.
_NATIVE = {
    "numbers",
    "positions",
    "momenta",
    "masses",
    "tags",
    "initial_magmoms",
    "initial_charges",
}


def stowed(frame: Atoms) -> tuple[Atoms, tuple[str, ...]]:
    """Return a copy whose arrays of other names are in ``info["uqcalc_arrays"]``.

    Returns
    -------
    copy : Atoms
        With the results of the calculator.
    left_out : tuple of str
        Names of entries and constraints that cannot be written as JSON.
    """
    copy: Atoms = frame.copy()
    copy.calc = frame.calc
    lost = []
    copy.info = {}
    for key, given in frame.info.items():
        value = _plain(given)
        if isinstance(key, str) and _is_held(value):
            copy.info[key] = value
        else:
            lost.append(f"info {key!r}")
    arrays = {}
    for key in [key for key in frame.arrays if key not in _NATIVE]:
        value = _plain(copy.arrays.pop(key))
        if isinstance(key, str) and _is_held(value):
            arrays[key] = value
        else:
            lost.append(f"array {key!r}")
    if arrays:
        copy.info[ARRAYS_KEY] = arrays
    held = [c for c in frame.constraints if hasattr(c, "todict")]
    lost += [f"constraint {type(c).__name__}" for c in frame.constraints
             if c not in held]  # fmt: skip
    copy.set_constraint(held)
    return copy, tuple(lost)


def restored(atoms: Atoms) -> Atoms:
    """Put the arrays in ``info["uqcalc_arrays"]`` back into ``arrays``, in place."""
    found = atoms.info.get(ARRAYS_KEY)
    if isinstance(found, Mapping):
        del atoms.info[ARRAYS_KEY]
        for key, value in found.items():
            if len(value) == len(atoms):
                atoms.set_array(str(key), np.asarray(value))
    return atoms


def columns_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``info`` that a database can be searched for.

    These are numbers, flags and texts under names that ase.db allows.
    """
    return {key: value for key, value in info.items() if _is_column(key, value)}


def database_frames(
    path: str | os.PathLike[str], index: slice | int = slice(None)
) -> Iterator[Atoms]:
    """Yield the structures of an ase.db file in the order of their rows.

    ``info`` and ``arrays`` are those that uqcalc stored.

    Raises
    ------
    IndexError
        If ``index`` is one number, and there is no such row.
    """
    with ase.db.connect(os.fspath(path), use_lock_file=False) as database:
        rows = range(database.count())
        chosen = rows[index] if isinstance(index, slice) else [rows[index]]
        if not len(chosen):
            return
        first, last = min(chosen), max(chosen)
        selected = database.select(offset=first, limit=last - first + 1)
        for number, row in enumerate(selected, first):
            if number in chosen:
                atoms: Atoms = row.toatoms()
                atoms.info |= dict(row.data.get(INFO_KEY, {}))
                yield restored(atoms)


def _plain(value: Any) -> Any:
    """Return texts in arrays as lists, which both formats hold."""
    texts = isinstance(value, np.ndarray) and value.dtype.kind == "U"
    return value.tolist() if texts else value


def _is_held(value: Any) -> bool:
    """Return whether a trajectory and a database preserve an entry."""
    if isinstance(value, (str, int, float)):
        return True
    if isinstance(value, np.ndarray) and value.dtype.kind in "bif":
        return True
    try:
        decode(encode(value))
        bytes_to_object(object_to_bytes(value))
    except (TypeError, ValueError, LookupError, AssertionError, RecursionError):
        return False
    return True


def _is_column(key: str, value: Any) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a name that is also a formula
            check({key: value})
    except (ValueError, UserWarning):
        return False
    return True
