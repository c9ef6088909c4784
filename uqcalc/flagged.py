"""Frames worth keeping: an extended XYZ file that grows whole frame by whole frame."""

from __future__ import annotations

import io
import os
from pathlib import Path

from ase import Atoms
from ase.io import write

from uqcalc.annotations import INFO_KEY
from uqcalc.errors import RecordError
from uqcalc.eventlog import writable


class FrameFile:
    """Append annotated frames up to a cap, whose last place is kept for `final`.

    Parameters
    ----------
    path : path
    cap : int
        Most frames the file may hold; at least 1.
    mode : {"append", "new"}
        Whether frames of an earlier, killed run are continued or refused.
    """

    def __init__(self, path: str | os.PathLike[str], cap: int, mode: str) -> None:
        if cap < 1:
            msg = f"cap on flagged frames must be at least 1, got {cap}"
            raise ValueError(msg)
        self.path = writable(path, "file of flagged frames")
        self.cap = cap
        self.written = 0
        self.left_out = 0
        if self.path.exists() and self.path.stat().st_size > 0:
            if mode != "append":
                msg = (
                    f"file of flagged frames must not exist in mode {mode!r}, got "
                    f"{self.path}; choose another name"
                )
                raise RecordError(msg)
            self.written = cut_torn_frame(self.path)

    def append(self, frame: Atoms, *, final: bool = False) -> bool:
        """Write ``frame`` if there is room; say whether it was written."""
        room = self.cap if final else self.cap - 1
        if self.written >= room:
            self.left_out += 1
            return False
        text = io.StringIO()
        write(text, frame, format="extxyz")
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text.getvalue())
        self.written += 1
        return True


def cut_torn_frame(path: Path) -> int:
    """Cut an incomplete last frame; return how many whole ones there are.

    Raises
    ------
    RecordError
        If the file is not made of annotated XYZ frames; it is left as it is.
    """
    frames, good = 0, 0
    with path.open("rb+") as file:
        while header := file.readline():
            if not header.strip().isdigit():
                msg = (
                    f"flagged frames must be XYZ, got {header[:40]!r} where "
                    f"{path} must give an atom count; choose another name"
                )
                raise RecordError(msg)
            lines = [file.readline() for _ in range(int(header) + 1)]
            if not lines[-1].endswith(b"\n"):
                break
            if f"{INFO_KEY}=".encode() not in lines[0]:
                msg = (
                    f"flagged frames must carry an assessment, got {path} whose frame "
                    f"{frames} has none; choose another name, so as not to mix files"
                )
                raise RecordError(msg)
            frames, good = frames + 1, file.tell()
        file.truncate(good)
    return frames
