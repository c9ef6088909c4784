"""Frames worth keeping: a file of annotated frames with a cap."""

from __future__ import annotations

import os
from collections import Counter

from ase import Atoms

from uqcalc.annotating.frames import cut_torn_frame
from uqcalc.annotating.frametext import frame_text
from uqcalc.errors import RecordError
from uqcalc.files.writing import GrowingFile, OneWriter, writable


class FrameFile:
    """Append annotated frames up to a cap, whose last place is kept for `final`.

    Parameters
    ----------
    path : path
    cap : int
        Most frames the file may hold; at least 1.
    mode : {"continue", "append", "new"}
        "new" refuses a file with frames in it; the others add to it.

    Attributes
    ----------
    written, left_out : int
        Frames.
    incomplete : Counter
        Entries that were left out of written frames, and of how many.
    """

    def __init__(self, path: str | os.PathLike[str], cap: int, mode: str) -> None:
        if cap < 1:
            msg = f"cap on flagged frames must be at least 1, got {cap}"
            raise ValueError(msg)
        self.path = writable(path, "file of flagged frames")
        self.writer = OneWriter(self.path)
        self._file = GrowingFile(self.path)
        self.cap = cap
        self.written = 0
        self.incomplete: Counter[str] = Counter()
        self.left_out = 0
        if self.path.exists() and self.path.stat().st_size > 0:
            if mode == "new":
                msg = (
                    f"file of flagged frames must not exist in mode {mode!r}, got "
                    f"{self.path}; choose another name"
                )
                raise RecordError(msg)
            self.written = cut_torn_frame(self.path, "flagged frames")

    def append(self, frame: Atoms, *, final: bool = False) -> bool:
        """Write ``frame`` if there is room; say whether it was written.

        Entries that the file cannot hold are left out; it says which in the frame.

        Raises
        ------
        OSError
            If it cannot be written; nothing of it is in the file then.
        RecordError
            If not even its geometry can be.
        """
        room = self.cap if final else self.cap - 1
        if self.written >= room:
            self.left_out += 1
            return False
        found = frame_text(frame, "flagged frame")
        self._file.append(found.text)
        self.incomplete.update(found.left_out)
        self.written += 1
        return True

    def sync(self) -> None:
        """Have the operating system put all of it on the disk."""
        self._file.sync()
