"""Files of annotated frames: extended XYZ, trajectories and databases of ASE.

All three grow by whole frames: after a kill the file has the frames before it, and a
repeated command continues after them.
"""

from __future__ import annotations

import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import ase.db
from ase import Atoms
from ase.io import Trajectory, iread

from uqcalc.annotating.copies import INFO_KEY, LEFT_OUT_KEY, left_out_text
from uqcalc.annotating.frames import append_frame, cut_torn_frame, whole_frames
from uqcalc.errors import RecordError
from uqcalc.files.stored import INFO_KEY as INFO_DATA, columns_of, stowed
from uqcalc.files.structures import UNREADABLE, frames_of


_COMMIT_S = 1.0  # time between writes of a database to the disk


class Target(ABC):
    """A file of annotated frames that grows frame by frame.

    Parameters
    ----------
    path : path
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def append(self, frame: Atoms, what: str) -> tuple[str, ...]:
        """Append a frame; return the names of the entries that are left out.

        Raises
        ------
        RecordError
            If the format cannot hold the geometry; ``what`` names the frame.
        """

    def standing(self) -> Iterator[Atoms]:
        """Yield the whole frames that are in the file.

        Raises
        ------
        RecordError
            If the file has other content, or cannot be read.
        """
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        try:
            yield from self._frames()
        except UNREADABLE as error:
            if isinstance(error, RecordError):
                raise
            msg = (
                f"frames of the target must be readable, got {self.path} "
                f"({type(error).__name__}: {error}); to annotate from the start, move "
                "this file away or choose another name"
            )
            raise RecordError(msg) from error

    @abstractmethod
    def _frames(self) -> Iterator[Atoms]: ...

    def mend(self) -> None:  # noqa: B027  (only text files need it)
        """Cut an incomplete last frame, after a kill."""

    def close(self) -> None:  # noqa: B027  (as above)
        """Write what is not on the disk yet."""

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def target_of(path: Path) -> Target:
    """Return the file of a path; the end of its name decides about the format."""
    if path.suffix == ".traj":
        return _Trajectory(path)
    return _Database(path) if path.suffix == ".db" else _Xyz(path)


class _Xyz(Target):
    def append(self, frame: Atoms, what: str) -> tuple[str, ...]:
        return append_frame(self.path, frame, what)

    def _frames(self) -> Iterator[Atoms]:
        whole, _ = whole_frames(self.path, "target")
        yield from iread(
            str(self.path), slice(0, whole), "extxyz", do_not_split_by_at_sign=True
        )

    def mend(self) -> None:
        if self.path.exists() and self.path.stat().st_size:
            cut_torn_frame(self.path, "target")


class _Trajectory(Target):
    """ASE writes the number of frames last, so an incomplete frame is not counted."""

    _writer: Any = None

    def append(self, frame: Atoms, what: str) -> tuple[str, ...]:  # noqa: ARG002
        if self._writer is None:
            self._writer = Trajectory(str(self.path), "a")
        copy, left_out = _told(frame)
        self._writer.write(copy)
        return left_out

    def _frames(self) -> Iterator[Atoms]:
        yield from frames_of(self.path)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _Database(Target):
    """A row is complete or absent; rows are committed once a second."""

    _database: Any = None
    _committed = 0.0

    def append(self, frame: Atoms, what: str) -> tuple[str, ...]:  # noqa: ARG002
        with _writable_rows(self.path):
            return self._append(frame)

    def _append(self, frame: Atoms) -> tuple[str, ...]:
        if self._database is None:
            self._database = ase.db.connect(str(self.path), use_lock_file=False)
            self._database.__enter__()  # one connection until `close`
        copy, left_out = _told(frame)
        info, copy.info = dict(copy.info), {}
        columns = columns_of({k: v for k, v in info.items() if k != INFO_KEY})
        self._database.write(copy, columns, {INFO_DATA: info})
        if time.monotonic() > self._committed + _COMMIT_S:
            self._database.connection.commit()
            self._committed = time.monotonic()
        return left_out

    def _frames(self) -> Iterator[Atoms]:
        yield from frames_of(self.path)

    def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with _writable_rows(self.path):
                database.__exit__(None, None, None)


@contextmanager
def _writable_rows(path: Path) -> Iterator[None]:
    """Raise a `RecordError` where SQLite cannot write, as on a full disk."""
    try:
        yield
    except sqlite3.Error as error:
        msg = (
            f"target must be a database that can be written, got {path} ({error}); "
            "make room or choose another disk, then run again to continue"
        )
        raise RecordError(msg) from error


def _told(frame: Atoms) -> tuple[Atoms, tuple[str, ...]]:
    """Return the frame as `stowed`; it names the entries that are left out."""
    copy, left_out = stowed(frame)
    if left_out:
        copy.info[LEFT_OUT_KEY] = left_out_text(left_out)
    return copy, left_out
