"""Frames worth keeping: a file of annotated frames with a cap."""

from __future__ import annotations

import os

from ase import Atoms

from uqcalc.annotating.frames import append_frame, cut_torn_frame
from uqcalc.errors import RecordError
from uqcalc.files import one_writer, writable


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
        self._lock = one_writer(self.path)
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
            self.written = cut_torn_frame(self.path, "flagged frames")

    def append(self, frame: Atoms, *, final: bool = False) -> bool:
        """Write ``frame`` if there is room; say whether it was written."""
        room = self.cap if final else self.cap - 1
        if self.written >= room:
            self.left_out += 1
            return False
        append_frame(self.path, frame, "flagged frame")
        self.written += 1
        return True
