"""The two files of `uqcalc.label`: labelled frames, and frames that have failed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from ase import Atoms
from ase.io import iread

from uqcalc.annotating.copies import percent_encoded
from uqcalc.annotating.file import same_geometry
from uqcalc.annotating.frames import append_frame, cut_torn_frame, whole_frames
from uqcalc.errors import RecordError
from uqcalc.files.structures import UNREADABLE
from uqcalc.files.writing import whole, writable
from uqcalc.references.evaluating import (
    ENERGY,
    FORCES,
    REFERENCE_KEY,
    STRESS,
    Computed,
)


ROW_KEY = "uqcalc_label_row"
ERROR_KEY = "uqcalc_label_error"
_ENDINGS = (".xyz", ".extxyz")


class LabelFiles:
    """Labelled and failed frames of one call, with the row of each in the source.

    Parameters
    ----------
    target : path
        Ends in .xyz or .extxyz. The failed frames go to ``NAME_failed`` beside it.
    reference : str
        Name of the reference; a file of another one is refused.

    Attributes
    ----------
    left_out : list of str
        Entries that written frames lack.

    Raises
    ------
    RecordError
        If ``target`` has another ending or is not in an existing folder.
    """

    def __init__(self, target: str | os.PathLike[str], reference: str) -> None:
        self.target = writable(target, "target")
        if self.target.suffix not in _ENDINGS:
            msg = f"target must end in {' or '.join(_ENDINGS)}, got {self.target.name}"
            raise RecordError(msg)
        self.failed = self._beside("_failed", self.target.suffix)
        self.reference = reference
        self.left_out: list[str] = []

    def folder(self, row: int) -> Path:
        """Return the folder for files of the reference at this row."""
        return self._beside("_work", "") / str(row)

    def standing(self, frames: Sequence[Atoms], *, retry: bool) -> dict[int, str]:
        """Return row -> reason ("" if labelled) of all frames on disk.

        An incomplete last frame is cut. With ``retry`` the failed frames are removed.

        Raises
        ------
        RecordError
            If a file has other frames, or labels of another reference.
        """
        known: dict[int, str] = {}
        if retry:
            self.failed.unlink(missing_ok=True)
        for path, key in ((self.failed, ERROR_KEY), (self.target, ENERGY)):
            if not path.exists() or path.stat().st_size == 0:
                continue
            count, _ = whole_frames(path, path.name, key)
            for frame in _parsed(path, count):
                row = self._row(path, frame, frames)
                reason = frame.info.get(ERROR_KEY)
                known[row] = "" if reason is None else unquote(str(reason))
            cut_torn_frame(path, path.name, key)
        return known

    def write(self, frame: Atoms, row: int, values: Computed) -> None:
        """Append a frame with its labels, or with the reason of its failure."""
        copy = _without_labels(frame)
        copy.info[ROW_KEY] = row
        copy.info[REFERENCE_KEY] = percent_encoded(self.reference)
        path = self.target
        if values.forces is None:
            copy.info[ERROR_KEY] = percent_encoded(values.error)
            path = self.failed
        else:
            values.label(copy)
        self.left_out += append_frame(path, copy, f"frame {row}")

    def put_in_order(self) -> None:
        """Sort the frames of both files by row; processes finish in any order."""
        for path in (self.target, self.failed):
            if path.exists() and path.stat().st_size:
                _sort(path)

    def _beside(self, more: str, suffix: str) -> Path:
        return self.target.with_name(f"{self.target.stem}{more}{suffix}")

    def _row(self, path: Path, frame: Atoms, frames: Sequence[Atoms]) -> int:
        """Return the row of a written frame.

        Raises
        ------
        RecordError
            If the source has another geometry, charge or spin there, or the reference
            is another.
        """
        name = unquote(str(frame.info.get(REFERENCE_KEY)))
        if name != self.reference:
            msg = (
                f"{path.name} must hold labels of one reference, got {name} there and "
                f"{self.reference} now; choose another name"
            )
            raise RecordError(msg)
        row: Any = frame.info.get(ROW_KEY)
        known = isinstance(row, (int, np.integer)) and 0 <= row < len(frames)
        if not known or not same_geometry(frame, frames[row]):
            msg = (
                f"{path.name} must hold frames of this source, got a frame of row "
                f"{row}, whose geometry, charge or spin is not that of the source; "
                "choose another name"
            )
            raise RecordError(msg)
        return int(row)


def _without_labels(frame: Atoms) -> Atoms:
    copy: Atoms = frame.copy()
    copy.calc = None
    for place in (copy.info, copy.arrays):
        for key in (ENERGY, FORCES, STRESS, ERROR_KEY):
            place.pop(key, None)
    return copy


def _parsed(path: Path, count: int) -> Iterator[Atoms]:
    """Yield the first ``count`` frames, without an incomplete last one."""
    if not count:
        return
    try:
        yield from iread(
            str(path), slice(0, count), "extxyz", do_not_split_by_at_sign=True
        )
    except UNREADABLE as error:
        msg = (
            f"{path.name} must hold frames that can be read, got {path} "
            f"({type(error).__name__}: {error}); move it away to label anew"
        )
        raise RecordError(msg) from error


def _sort(path: Path) -> None:
    """Sort the frames of a file by their rows, unless they are in order."""
    rows = [int(f.info[ROW_KEY]) for f in iread(str(path), ":", "extxyz")]
    if rows == sorted(rows):
        return
    lines = path.read_bytes().splitlines(keepends=True)
    blocks, at = [], 0
    while at < len(lines):
        end = at + 2 + int(lines[at])
        blocks.append(b"".join(lines[at:end]))
        at = end
    with whole(path) as partial:
        order = sorted(range(len(rows)), key=rows.__getitem__)
        partial.write_bytes(b"".join(blocks[index] for index in order))
