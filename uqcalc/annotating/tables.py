"""Tables of an annotated trajectory: one row for each frame, or for each atom."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict

from uqcalc.annotating.copies import (
    ASK_KEY,
    FRAME_KEY,
    INFO_KEY,
    read_assessment,
    read_error,
)
from uqcalc.annotating.names import XYZ, check_tables, pyarrow
from uqcalc.errors import RecordError
from uqcalc.files.structures import UNREADABLE, frames_of
from uqcalc.files.writing import whole
from uqcalc.records import Assessment


_ROWS = 20_000  # in memory at once
_FRAME = ("frame", "formula", "atoms", "level", "reasons", "ask", "error")
_ATOM = ("frame", "atom", "element")
_GEOMETRY = ("pos", "positions", "Z", "numbers")
_AXES = ("x", "y", "z")

Row = dict[str, Any]


def write_tables(
    source: str | os.PathLike[str],
    *,
    frames: str | os.PathLike[str] | None = None,
    atoms: str | os.PathLike[str] | None = None,
) -> None:
    """Write the results of an annotated file as tables, in constant memory.

    The columns are the results of the signals, with their names and units in
    `File formats`, and the results of the potential: ``predicted_energy`` in eV, and
    for each atom ``predicted_forces_x`` and so on in eV/Å. A result that a frame does
    not have is an empty cell.

    Parameters
    ----------
    source : path
        What `annotate_file` wrote.
    frames, atoms : path, optional
        Files to write, with one row for each frame and with one for each atom. They end
        in .csv or .parquet; an existing file is replaced.

    Raises
    ------
    RecordError
        If the source has no annotated frames, or a file to write cannot be used, as
        one file for both tables.
    MissingExtraError
        If pyarrow is absent for .parquet.
    """
    check_tables(frames, atoms)
    named, of_atoms = _columns(Path(source))
    if frames is not None:
        rows = (_frame_row(i, frame) for i, frame in _annotated(source))
        _write(Path(frames), [*_FRAME, *named], rows)
    if atoms is not None:
        several = (_atom_rows(i, frame) for i, frame in _annotated(source))
        rows = (row for part in several for row in part)
        _write(Path(atoms), [*_ATOM, *of_atoms], rows)


def _columns(source: Path) -> tuple[list[str], list[str]]:
    """Return the names of all numbers of frames and of atoms in a file."""
    found = _xyz_entries if source.suffix in XYZ else _entries
    named: dict[str, None] = {}
    of_atoms: dict[str, None] = {}
    for entries, widths in found(source):
        named |= {k: None for k, v in entries.items() if _is_number(k, v)}
        for name, width in widths.items():
            of_atoms |= dict.fromkeys(_parts(name, width))
    if not named:
        msg = f"source must hold annotated frames, got none in {source}"
        raise RecordError(msg)
    return list(named), [name for name in of_atoms if name not in _ATOM]


_Entries = tuple[dict[str, Any], dict[str, int]]


def _entries(source: Path) -> Iterator[_Entries]:
    """Yield ``info`` and, for each array of numbers, the numbers of an atom."""
    for _, frame in _annotated(source):
        arrays = {
            name: int(np.prod(array.shape[1:]))
            for name, array in frame.arrays.items()
            if array.dtype.kind in "if" and name not in _GEOMETRY
        }
        yield frame.info, arrays


def _xyz_entries(source: Path) -> Iterator[_Entries]:
    """Yield the same from XYZ; only the second line of each frame is read."""
    with source.open("rb") as file:
        while header := file.readline().strip():
            comment = file.readline().decode()
            if f"{INFO_KEY}=" not in comment or not header.isdigit():
                msg = (
                    f"source must hold annotated frames, got {source}; write it with "
                    "uqcalc annotate"
                )
                raise RecordError(msg)
            entries = key_val_str_to_dict(comment)
            arrays = str(entries.pop("Properties", "")).split(":")
            shapes = zip(arrays[::3], arrays[1::3], arrays[2::3], strict=False)
            yield (
                entries,
                {
                    name: int(width)
                    for name, kind, width in shapes
                    if kind in "RI" and name not in _GEOMETRY
                },
            )
            for _ in range(int(header)):
                file.readline()


def _is_number(key: str, value: Any) -> bool:
    own = (*_FRAME, FRAME_KEY, "reliability_level")  # columns of the table itself
    return _is_real(value) and key not in own


def _is_real(value: Any) -> bool:
    """Return whether a value is a number, not a flag."""
    number = isinstance(value, (float, int, np.floating, np.integer))
    return number and not isinstance(value, bool)


def _parts(name: str, width: int) -> list[str]:
    """Return the names of the columns of an array with ``width`` numbers an atom."""
    if width == 1:
        return [name]
    ends = _AXES if width == 3 else [str(part) for part in range(width)]
    return [f"{name}_{end}" for end in ends]


def _annotated(source: str | os.PathLike[str]) -> Iterator[tuple[int, Atoms]]:
    """Yield the number in the trajectory and the annotated frame."""
    try:
        for row, frame in enumerate(frames_of(source)):
            yield int(frame.info.get(FRAME_KEY, row)), frame
    except UNREADABLE as error:
        msg = (
            f"source must hold annotated frames, got {source} "
            f"({type(error).__name__}: {error})"
        )
        raise RecordError(msg) from error


def _frame_row(number: int, frame: Atoms) -> Row:
    assessment: Assessment = read_assessment(frame)
    return {
        **frame.info,
        "frame": number,
        "formula": frame.get_chemical_formula(),
        "atoms": len(frame),
        "level": assessment.level.name,
        "reasons": "; ".join(assessment.verdict.reasons),
        "ask": str(frame.info.get(ASK_KEY, "")),
        "error": read_error(frame) or "",
    }


def _atom_rows(number: int, frame: Atoms) -> Iterator[Row]:
    columns: dict[str, np.ndarray] = {}
    stored = dict(frame.arrays)
    if frame.calc is not None:  # ASE's reader moves known names there
        stored |= {k: v for k, v in frame.calc.results.items() if np.ndim(v)}
    for name, values in stored.items():
        flat = np.asarray(values).reshape(len(frame), -1)
        parts = _parts(name, flat.shape[1])
        columns |= dict(zip(parts, flat.T, strict=True))
    for atom, element in enumerate(frame.symbols):
        own = {name: column[atom] for name, column in columns.items()}
        yield own | {"frame": number, "atom": atom, "element": element}


_Writer = Callable[[Sequence[Row]], object]


def _write(path: Path, columns: Sequence[str], rows: Iterator[Row]) -> None:
    opened = _parquet if path.suffix == ".parquet" else _csv
    with whole(path) as partial, opened(partial, columns) as write:
        part: list[Row] = []
        for row in rows:
            part.append(row)
            if len(part) == _ROWS:
                write(part)
                part = []
        write(part)


@contextmanager
def _csv(path: Path, columns: Sequence[str]) -> Iterator[_Writer]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        yield writer.writerows


@contextmanager
def _parquet(path: Path, columns: Sequence[str]) -> Iterator[_Writer]:
    arrow, parquet = pyarrow()
    texts = {*_FRAME, *_ATOM} - {"frame", "atom", "atoms"}
    kinds = {
        name: arrow.string() if name in texts else arrow.float64() for name in columns
    }
    kinds |= {n: arrow.int64() for n in ("frame", "atom", "atoms") if n in kinds}
    schema = arrow.schema(list(kinds.items()))
    with parquet.ParquetWriter(path, schema) as file:

        def write(rows: Sequence[Row]) -> None:
            cells = {
                name: [_cell(row.get(name), text=name in texts) for row in rows]
                for name in columns
            }
            file.write_table(arrow.table(cells, schema=schema))

        yield write


def _cell(value: Any, *, text: bool) -> str | int | float | None:
    """Return a text or a number of Python for `pyarrow`.

    None for a text, a flag or an array where other frames have a number.
    """
    if text:
        return None if value is None else str(value)
    number = value.item() if isinstance(value, np.generic) else value
    return number if _is_real(number) else None
