"""The file of flagged frames: annotated frames, up to a cap."""

from __future__ import annotations

import os
from collections import Counter

from ase import Atoms

from uqcalc.annotating.frames import cut_frames, cut_torn_frame
from uqcalc.annotating.frametext import frame_text
from uqcalc.errors import RecordError
from uqcalc.files.writing import GrowingFile, OneWriter, writable


class FrameFile:
    """Appends annotated frames up to a cap; the last place is for a `final` frame.

    Parameters
    ----------
    path : path
    cap : int
        Largest number of frames in the file; at least 1.
    mode : {"continue", "append", "new"}
        "new" refuses a file with frames; the others append to it.
    what : str
        Name of the frames in messages.

    Attributes
    ----------
    written, left_out : int
        Number of frames in the file, and of frames beyond the cap.
    incomplete : Counter
        Entries that written frames lack, and the number of these frames.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        cap: int,
        mode: str,
        what: str = "flagged frames",
    ) -> None:
        if cap < 1:
            msg = f"cap on {what} must be at least 1, got {cap}"
            raise ValueError(msg)
        self._what = what
        self.path = writable(path, f"file of {what}")
        self.writer = OneWriter(self.path)
        self._file = GrowingFile(self.path)
        self.cap = cap
        self.written = 0
        self.incomplete: Counter[str] = Counter()
        self.left_out = 0
        if self.path.exists() and self.path.stat().st_size > 0:
            if mode == "new":
                msg = (
                    f"file of {what} must not exist in mode {mode!r}, got "
                    f"{self.path}; choose another name"
                )
                raise RecordError(msg)
            self.written = cut_torn_frame(self.path, what)

    def cut(self, step: int) -> int:
        """Cut the frames from ``step`` on; return the number of frames left."""
        self.written = cut_frames(self.path, self._what, step)
        return self.written

    def append(self, frame: Atoms, *, final: bool = False) -> bool:
        """Write ``frame`` if there is room; return whether it was written.

        Entries that the file format cannot hold are left out; the written frame lists
        their names.

        Raises
        ------
        OSError
            If the frame cannot be written. The file then stays as it was.
        RecordError
            If the format cannot hold the geometry.
        """
        room = self.cap if final else self.cap - 1
        if self.written >= room:
            self.left_out += 1
            return False
        found = frame_text(frame, self._what.removesuffix("s"))
        self._file.append(found.text)
        self.incomplete.update(found.left_out)
        self.written += 1
        return True

    def sync(self) -> None:
        """Make the operating system write the file to disk."""
        self._file.sync()
