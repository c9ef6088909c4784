"""Read structures from files; errors of ASE's readers become `RecordError`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import ase.db
from ase import Atoms
from ase.io import Trajectory, iread
from ase.io.extxyz import XYZError
from ase.io.formats import filetype, open_with_compression

from uqcalc.errors import RecordError, UqcalcError
from uqcalc.files.lammps import Elements, checked_species
from uqcalc.files.stored import database_frames, restored


# ASE has a hundred readers. On a damaged file they raise any error: KeyError,
# IndexError, MemoryError (damaged header), errors of sqlite3 and zlib. Catch these only
# where nothing but such a reader runs.
UNREADABLE = (Exception,)


def frames_of(
    path: str | os.PathLike[str],
    index: slice | int = slice(None),
    *,
    species: str | Sequence[str] | None = None,
) -> Iterator[Atoms]:
    """Yield the frames of a file that ASE reads, one by one, with their elements.

    Frames of ``.traj`` and ``.db`` files have the ``info`` and ``arrays`` that uqcalc
    stored there (`uqcalc.files.stored`).

    Parameters
    ----------
    path : path
    index : slice or int
        Which frames.
    species : str or list of str, optional
        The element of each type in order, ``"Na,Cl"`` or ``["Na", "Cl"]``, for LAMMPS
        files, which number their types.

    Raises
    ------
    RecordError
        If the file does not say which elements its atoms are, or species do not fit.
        Errors of ASE's reader on a damaged file pass through (`UNREADABLE`).
    XYZError
        If ``index`` reaches frames of an XYZ file that follow an empty line, or a last
        line that is not complete. The frames before are yielded first, unless ``index``
        counts from the end.
    """
    symbols = checked_species(species)
    name = os.fspath(path)
    form = filetype(name)
    elements = Elements.of(name, form, symbols)
    until, problem = _readable(name) if form == "extxyz" else (0, "")
    if problem:
        index, problem = _limited(index, until, problem)
    found = (
        database_frames(name, index)
        if form == "db"
        else iread(name, index, form, do_not_split_by_at_sign=True, **elements.options)
    )
    for atoms in found:
        yield elements.given(restored(atoms))
    if problem:
        raise XYZError(problem)


_MOST_DIGITS = 15  # digits of a number of atoms


def _limited(index: slice | int, until: int, problem: str) -> tuple[slice | int, str]:
    """Return an index of the first ``until`` frames, and the problem if it goes beyond.

    Raises
    ------
    XYZError
        If the index counts from the end, or is a frame after the problem.
    """
    if isinstance(index, int):
        if 0 <= index < until:
            return index, ""
        raise XYZError(problem)
    bounds = [bound for bound in (index.start, index.stop) if bound is not None]
    if any(bound < 0 for bound in bounds):
        raise XYZError(problem)
    if index.stop is not None and index.stop <= until:
        return index, ""
    return slice(index.start, until, index.step), problem


def _readable(name: str) -> tuple[int, str]:
    """Return how many frames of an XYZ file to read, and why not more.

    ASE's reader ends at an empty line, and reads a truncated number as a complete one.
    The reason is empty if the file has no such place.
    """
    with open_with_compression(name, "rb") as file:
        frames = 0
        while header := file.readline().strip():
            if not header.isdigit() or len(header) > _MOST_DIGITS:
                return frames, ""  # ASE's reader reads it or raises an error
            count = int(header) + 1  # with the comment
            lines = list(islice(file, count))  # a damaged count ends with the file
            if len(lines) == count and _is_torn(lines[1:]):
                return frames, (
                    f"last line of an XYZ file must be complete, got {lines[-1]!r} "
                    f"without a line end in {name}, shorter than the lines before it; "
                    "wait until it is written, or add the line end"
                )
            frames += 1
        if not any(line.strip() for line in file):
            return frames, ""
    counted = f"{frames} {'frame' if frames == 1 else 'frames'}"
    return frames, (
        f"XYZ file must have no empty line between frames, got one after {counted} of "
        f"{name}; remove this line"
    )


def _is_torn(atoms: list[bytes]) -> bool:
    """Return whether the last line is incomplete, from the widths of the others."""
    *others, last = atoms or [b"\n"]
    if len(others) < 2 or not last or last.endswith(b"\n"):
        return False
    widths = {len(line.rstrip()) for line in others}
    return len(widths) == 1 and len(last.rstrip()) < widths.pop()


def count_frames(path: str | os.PathLike[str]) -> int | None:
    """Return how many frames a file holds, if the count is fast.

    It is for XYZ files, of which only the atom counts are read, and for trajectories
    and databases of ASE, which store it. None for any other format, and for a damaged
    file.
    """
    name = os.fspath(path)
    try:
        if name.endswith(".traj"):
            with Trajectory(name) as trajectory:
                return len(trajectory)
        if name.endswith(".db"):
            with ase.db.connect(name, use_lock_file=False) as database:
                return int(database.count())
        return _xyz_frames(name) if name.endswith((".xyz", ".extxyz")) else None
    except UNREADABLE:
        return None


def _xyz_frames(name: str) -> int:
    frames = 0
    with Path(name).open("rb") as file:
        while header := file.readline().strip():
            for _ in range(int(header) + 1):  # a comment, and a line for each atom
                if not file.readline():
                    return frames
            frames += 1
    return frames


def read_frames(
    path: str | os.PathLike[str], *, species: str | Sequence[str] | None = None
) -> list[Atoms]:
    """Return all frames of a file that ASE reads.

    Parameters
    ----------
    path : path
    species : str or list of str, optional
        As for `frames_of`.

    Raises
    ------
    RecordError
        If the file has no frames, is damaged, or does not name its elements.
    """
    try:
        frames = list(frames_of(path, species=species))
    except UqcalcError:
        raise
    except UNREADABLE as error:
        msg = (
            f"file must hold structures in a format that ASE reads, got {path} "
            f"({type(error).__name__}: {error}); check the end of its name, and "
            "whether the file is complete"
        )
        raise RecordError(msg) from error
    if not frames:
        msg = f"file must hold at least one structure, got none in {path}; add some"
        raise RecordError(msg)
    return frames
