"""The text of a frame as extended XYZ, with entries that ASE reads back unchanged.

ASE's writer accepts entries that its reader changes or loses: names with a colon or a
space, texts with quotes or line breaks, empty texts in columns. Therefore each text is
read back before it goes to a file. Entries that change are left out, and their names
are listed. Texts that the reader would convert ("0012", "T", a line break) are written
as JSON, which it reads back unchanged.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.data import chemical_symbols
from ase.io.extxyz import read_extxyz, write_extxyz
from ase.spacegroup.spacegroup import Spacegroup
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from uqcalc.annotating.copies import LEFT_OUT_KEY, left_out_text
from uqcalc.errors import RecordError


# Errors of ASE's writer and reader for entries that they cannot hold.
_NOT_HELD = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    OSError,
    RecursionError,
    StopIteration,
)
_GEOMETRY = {"numbers", "positions"}
_DECIMALS = 1e-7  # columns are written with eight decimals
_LONGEST = 60  # characters of a name in a message


@dataclass(frozen=True, slots=True, eq=False)
class FrameText:
    """A frame ready for a file.

    Attributes
    ----------
    text : str
        Complete lines.
    left_out : tuple of str
        Names of the entries of the frame that the text lacks.
    """

    text: str
    left_out: tuple[str, ...] = ()


def frame_text(frame: Atoms, what: str = "frame") -> FrameText:
    """Return the text of a frame, without the entries that a file cannot hold.

    ``info["uqcalc_left_out"]`` in the text lists the entries that are left out, as
    percent-encoded JSON.

    Raises
    ------
    RecordError
        If the format cannot hold the geometry; ``what`` names the frame.
    """
    lost = _other_constraints(frame)
    if not lost and all(map(_is_plain, frame.info.values())):
        text = _text(frame)
        if text is not None and not _differences(frame, _read(text), frame.info):
            return FrameText(text)
    return _mended(frame, what, lost)


def held_numbers(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return atomic numbers as in a file: 0 (X) for numbers without a symbol."""
    return np.where((numbers >= 0) & (numbers < len(chemical_symbols)), numbers, 0)


def _mended(frame: Atoms, what: str, lost: list[str]) -> FrameText:
    """Return the text with only those entries that are read back unchanged."""
    kept = _bare(frame)
    if not np.array_equal(kept.numbers, frame.numbers):
        lost.append("atomic numbers that have no symbol")
    if not _survives(kept, {}):
        msg = (
            f"{what} must have a geometry that extended XYZ can hold, got "
            f"{len(frame)} atoms whose geometry changes when it is read back; use "
            "another format"
        )
        raise RecordError(msg)
    kept = _with_results(kept, frame, lost)
    told = _add_info(kept, frame.info, lost)
    kept = _with_arrays(kept, frame, told, lost)
    if lost:
        kept.info[LEFT_OUT_KEY] = left_out_text(lost)
    return FrameText(_text(kept) or "", tuple(lost))


def _with_results(kept: Atoms, frame: Atoms, lost: list[str]) -> Atoms:
    for key, value in _results(frame).items():
        trial = _bare(frame, {**_results(kept), key: value})
        if _survives(trial, {}):
            kept = trial
        else:
            lost.append(f"result {_named(key)}")
    return kept


def _add_info(kept: Atoms, info: Mapping[Any, Any], lost: list[str]) -> dict[str, Any]:
    """Put entries into ``kept`` in their file form; return the original values."""
    told: dict[str, Any] = {}
    for key, value in info.items():
        form = None if key in _results(kept) else _held(key, value)
        if form is None:
            lost.append(f"info {_named(key)}")
        else:
            kept.info[key], told[key] = form, value
    return told


def _with_arrays(
    kept: Atoms, frame: Atoms, told: Mapping[str, Any], lost: list[str]
) -> Atoms:
    for key, array in frame.arrays.items():
        if key in _GEOMETRY:
            continue
        trial = kept.copy()
        trial.calc = kept.calc
        trial.arrays[key] = array.astype(int) if array.dtype.kind == "u" else array
        if isinstance(key, str) and _survives(trial, told):
            kept = trial
        else:
            lost.append(f"array {_named(key)}")
    return kept


def _held(key: object, value: Any) -> Any:
    """Return an info value in a form that is read back unchanged; None without one."""
    if not isinstance(key, str):
        return None
    forms = [value] if _is_plain(value) else []
    encoded = _as_json(value)
    forms += [] if encoded is None else [encoded]
    alone = Atoms("X")
    for form in forms:
        alone.info = {key: form}
        text = _text(alone)
        back = None if text is None else _read(text)
        if not _differences(alone, back, {key: value}):
            return form
    return None


def _as_json(value: Any) -> str | None:
    """Return a text that ASE reads as JSON; None if JSON cannot hold the value.

    The backslashes are doubled, as the reader removes one of each pair.
    """
    try:
        given = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        return "_JSON " + json.dumps(given).replace("\\", "\\\\")
    except (TypeError, ValueError, RecursionError):
        return None


def _is_plain(value: Any) -> bool:
    """Return whether ASE's writer accepts a value without a warning."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "ifbU" or _as_json(value) is not None
    if value is None or isinstance(value, (str, int, float, Spacegroup)):
        return True
    return _as_json(value) is not None


def _survives(frame: Atoms, info: Mapping[str, Any]) -> bool:
    text = _text(frame)
    return text is not None and not _differences(frame, _read(text), info)


def _text(frame: Atoms) -> str | None:
    """Return the text that ASE writes; None on errors or a wrong number of lines."""
    stream = io.StringIO()
    try:
        write_extxyz(stream, frame)
        text = stream.getvalue()
        text.encode("utf-8")
    except _NOT_HELD:
        return None
    return text if text.count("\n") == len(frame) + 2 else None


def _read(text: str) -> Atoms | None:
    """Return the frame that ASE reads, with universal newlines; None on errors."""
    try:
        lines = io.StringIO(text, newline=None)
        found: list[Atoms] = list(read_extxyz(lines, slice(None)))
    except _NOT_HELD:
        return None
    return found[0] if len(found) == 1 else None


def _differences(frame: Atoms, back: Atoms | None, info: Mapping[Any, Any]) -> bool:
    """Return whether the frame that was read differs from ``frame`` with ``info``."""
    if back is None or not (
        np.array_equal(frame.numbers, back.numbers)
        and _close(frame.positions, back.positions)
        and _close(frame.cell.array, back.cell.array)
        and np.array_equal(frame.pbc, back.pbc)
    ):
        return True
    there = {**back.info, **back.arrays, **_results(back)}
    wanted = {**info, **frame.arrays, **_results(frame)}
    return set(there) != set(wanted) or not all(
        _same(value, there[key]) for key, value in wanted.items()
    )


def _same(value: Any, back: Any) -> bool:
    """Return whether two values agree, apart from types that the format lacks."""
    if isinstance(value, Spacegroup):
        return bool(value.symbol == back)
    if isinstance(value, str) or isinstance(back, str):
        return isinstance(value, str) and isinstance(back, str) and value == back
    if value is None or isinstance(value, Mapping):
        return _canonical(value) == _canonical(back)
    try:
        numbers = np.asarray(value, dtype=float), np.asarray(back, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return _canonical(value) == _canonical(back)
    return _truths(value) == _truths(back) and _close(*(n.ravel() for n in numbers))


def _truths(value: Any) -> bool:
    """Return whether a value is boolean; Python would compare it equal to numbers."""
    return np.asarray(value).dtype.kind == "b"


def _close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and bool(
        np.allclose(ours, theirs, rtol=_DECIMALS, atol=_DECIMALS, equal_nan=True)
    )


def _canonical(value: Any) -> str | None:
    try:
        return json.dumps(
            value.tolist() if isinstance(value, np.ndarray) else value, sort_keys=True
        )
    except (TypeError, ValueError, RecursionError):
        return None


def _bare(frame: Atoms, results: Mapping[str, Any] | None = None) -> Atoms:
    """Return the geometry with results and the constraints that the format holds."""
    copy = Atoms(
        held_numbers(frame.numbers),
        positions=frame.positions,
        cell=frame.cell,
        pbc=frame.pbc,
    )
    fixed = [c for c in frame.constraints if isinstance(c, (FixAtoms, FixCartesian))]
    copy.set_constraint(fixed)
    if results:
        copy.calc = SinglePointCalculator(copy, **results)
    return copy


def _results(frame: Atoms) -> dict[str, Any]:
    """Return the results of the calculator that a writer stores."""
    stored = {} if frame.calc is None else frame.calc.results
    found = {k: v for k, v in stored.items() if k in all_properties and v is not None}
    # the reader returns Voigt form
    if "stress" in found and np.shape(found["stress"]) == (3, 3):
        found["stress"] = full_3x3_to_voigt_6_stress(found["stress"])
    return found


def _other_constraints(frame: Atoms) -> list[str]:
    """Return the names of constraints that the format cannot hold."""
    return sorted(
        {
            f"constraint {type(constraint).__name__}"
            for constraint in frame.constraints
            if not isinstance(constraint, (FixAtoms, FixCartesian))
        }
    )


def _named(key: object) -> str:
    text = repr(key)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
