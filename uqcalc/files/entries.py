"""Check the entries of a card that was read from a file: names and types."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, get_type_hints

import numpy as np
from ase.data import chemical_symbols
from pydantic import ConfigDict, TypeAdapter, ValidationError

from uqcalc.errors import UqcalcError


ELEMENTS = range(1, 119)
_SHOWN = 60  # characters of a value in a message


def checked(
    record: type,
    data: object,
    what: str,
    error: type[UqcalcError],
    remedy: str = "the file is damaged, make it again",
) -> dict[str, Any]:
    """Return the entries of a dataclass from JSON; lists become its tuples.

    Parameters
    ----------
    record : dataclass
        Its annotations give the type of each entry. Whole numbers are accepted as
        floats; nothing else is converted. Numbers must be finite, except in entries
        whose default is NaN and in dictionaries with values of any type.
    data : object
        Output of ``json.loads``.
    what : str
        Name of the record in messages.
    error : subclass of UqcalcError

    Raises
    ------
    UqcalcError
        Of the class ``error``: entries are missing or unknown, or one has another type;
        the message names it.
    """
    if not isinstance(data, Mapping):
        msg = (
            f"{what} must be a mapping of names to values, got {_shown(data)}; {remedy}"
        )
        raise error(msg)
    required = {
        entry.name
        for entry in fields(record)
        if entry.default is MISSING and entry.default_factory is MISSING
    }
    if not required <= set(data) <= {entry.name for entry in fields(record)}:
        msg = (
            f"{what} must have the entries {sorted(required)}, got {sorted(data)}; "
            f"{remedy}"
        )
        raise error(msg)
    types = _types(record)
    return {
        name: _entry(types[name], value, f"entry {name!r} of {what}", error, remedy)
        for name, value in data.items()
    }


def check_some(
    hints: Mapping[str, Any],
    data: Mapping[str, Any],
    what: str,
    error: type[UqcalcError],
    remedy: str = "the file is damaged, make it again",
) -> None:
    """Refuse entries that are missing, of another type, or not finite.

    ``hints`` gives the type of each entry that is checked; others are not checked.

    Raises
    ------
    UqcalcError
        Of the class ``error``; the message names the entry.
    """
    for name, hint in hints.items():
        if name not in data:
            msg = f"{what} must have the entry {name!r}, got {sorted(data)}; {remedy}"
            raise error(msg)
        kind = _adapter(hint, None)
        _entry(kind, data[name], f"entry {name!r} of {what}", error, remedy)


def check_elements(
    numbers: object, what: str, error: type[UqcalcError], remedy: str
) -> None:
    """Refuse anything but a list of atomic numbers.

    Raises
    ------
    UqcalcError
        Of the class ``error``.
    """
    if not isinstance(numbers, (list, tuple)) or not set(numbers) <= set(ELEMENTS):
        msg = f"{what} must be atomic numbers, got {_shown(numbers)}; {remedy}"
        raise error(msg)


def _entry(
    kind: TypeAdapter[Any],
    value: object,
    what: str,
    error: type[UqcalcError],
    remedy: str,
) -> Any:
    try:
        return kind.validate_json(json.dumps(value), strict=True)
    except ValidationError as cause:
        first = cause.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        reason = first["msg"].lower() + (f", at {where}" if where else "")
        msg = (
            f"{what} must have the type that uqcalc writes, got {_shown(value)} "
            f"({reason})"
        )
        raise error(f"{msg}; {remedy}") from cause


@lru_cache(maxsize=64)
def _types(record: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(record)
    return {e.name: _adapter(hints[e.name], e.default) for e in fields(record)}


def _adapter(hint: Any, default: object) -> TypeAdapter[Any]:
    """Return the validator of an entry; nested records keep their own settings."""
    unknown = isinstance(default, float) and not math.isfinite(default)
    if unknown or is_dataclass(hint):
        return TypeAdapter(hint)
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class ElementsSeen:
    """Finds the elements of a structure that are not known.

    Parameters
    ----------
    elements : collection of int
        Atomic numbers of the known elements; if empty (unknown), all count as known.
    """

    def __init__(self, elements: Collection[int]) -> None:
        self._elements = set(elements)
        self._seen = np.full(119, fill_value=not elements)
        self._seen[list(elements)] = True

    def unseen(self, numbers: np.ndarray) -> list[str]:
        """Return the symbols in ``numbers``, (atoms,), that are not known."""
        if self._seen[numbers].all():  # np.unique is slow at every step
            return []
        new = set(np.unique(numbers).tolist()) - self._elements
        return [chemical_symbols[z] for z in sorted(new)]
