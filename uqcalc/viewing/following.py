"""Follow the log of a running simulation: read only, in constant memory."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ase import Atoms

from uqcalc.files.structures import UNREADABLE
from uqcalc.plotting.track import Rows, Track
from uqcalc.records import Level
from uqcalc.viewing.sources import beside


MOST = 3000  # steps in memory
QUIET_S = 60.0  # s without a new record, after which a note is shown
# A log of more bytes is not read as a whole at the start: so many of its lines are read
# at evenly spaced places, and the end.
WHOLE, SAMPLES, END = 64 * 2**20, 1500, 2**20
_CHUNK = 4 * 2**20
# Records of steps begin with the step, all others with their kind.
_OTHER = b'\n{"event": '
_FRAME = re.compile(rb"(?m)^[ \t]*(\d+)[ \t]*\n([^\n]*Properties=[^\n]*)\n")


class Follower:
    """The growing log of one run.

    Parameters
    ----------
    path : Path
    clock : callable, optional
        Returns the time in s, for tests.

    Attributes
    ----------
    path : Path
    gone : bool
        Whether the file was removed; what was read before it stays.
    sampled : bool
        Whether the beginning of a large log was read at some places only.
    damaged : int
        Number of complete lines that are no JSON records; they are passed over.
    version : int
        Grows with every new record.
    """

    def __init__(self, path: Path, clock: Any = time.time) -> None:
        self.path = path
        self.gone = self.sampled = False
        self.damaged = self.version = 0
        self._clock = clock
        self._rows = Rows(MOST)
        self._offset = 0
        self._inode: int | None = None
        self._grown = clock()
        self._began: tuple[float, int] | None = None

    def poll(self) -> bool:
        """Read what is new; return whether there was anything.

        A last line without its end is left for the next time. A file that has shrunk or
        was replaced is read from its start.
        """
        try:
            found = self.path.stat()
            self.gone = False
            if found.st_ino != self._inode or found.st_size < self._offset:
                self._start_anew(found.st_ino)
            if self._offset == 0 and found.st_size > WHOLE:
                self._sample(found.st_size)
            before = self.version
            with self.path.open("rb") as file:
                file.seek(self._offset)
                while True:
                    chunk = file.read(_CHUNK)
                    end = chunk.rfind(b"\n") + 1
                    if not end:
                        break
                    self._take(chunk[:end])
                    self._offset += end
                    file.seek(self._offset)
        except FileNotFoundError:
            self.gone = True
            return False
        if self.version > before:
            self._grown = max(self._grown, min(found.st_mtime, self._clock()))
            self._note_rate()
        elif self._began is None:
            self._grown = found.st_mtime
        return self.version > before

    def _start_anew(self, inode: int) -> None:
        self._rows, self._offset, self._inode = Rows(MOST), 0, inode
        self._began, self.sampled = None, False

    def _take(self, lines: bytes) -> None:
        for line in lines.splitlines():
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(line[:40])  # noqa: TRY301
                self._rows.add(record)
            except (ValueError, KeyError, TypeError, RecursionError):
                self.damaged += 1
            self.version += 1

    def _sample(self, size: int) -> None:
        """Read lines at evenly spaced places of a large log, and all halts."""
        self.sampled = True
        start = size - END
        with self.path.open("rb") as file:
            lines = [file.readline()]
            places = [start * k // SAMPLES for k in range(1, SAMPLES)]
            others = {*_other_lines(self.path, start)}
            for place in sorted({*places} | others):
                file.seek(place)
                if place not in others:
                    file.readline()  # the rest of a line
                lines.append(file.readline())
            file.seek(start)
            file.readline()
            self._offset = file.tell()
        self._take(b"".join(line for line in lines if line.endswith(b"\n")))

    def _note_rate(self) -> None:
        last = self._rows.last
        if last is not None and self._began is None:
            self._began = (self._clock(), int(last["step"]))

    @property
    def track(self) -> Track:
        """The steps in memory, thinned."""
        return self._rows.track()

    @property
    def levels(self) -> tuple[Level | None, ...]:
        """Levels of the last steps, at most 64; None for a step not judged."""
        return tuple(self._rows.recent)

    @property
    def last(self) -> Mapping[str, Any] | None:
        """The last step record."""
        return self._rows.last

    @property
    def end(self) -> Mapping[str, Any] | None:
        """The end record; None while the run goes on."""
        return self._rows.end

    @property
    def status(self) -> str:
        """One of "halted", "finished", "gone", "waiting", "quiet" and "running"."""
        if self.gone:
            return "gone"
        if self.end is not None:
            return "halted" if self.end.get("how") == "halted" else "finished"
        if self.last is None:
            return "waiting"
        return "quiet" if self.silence > QUIET_S else "running"

    @property
    def silence(self) -> float:
        """Time in s since the log has grown."""
        return max(0.0, float(self._clock() - self._grown))

    @property
    def rate(self) -> float | None:
        """Steps per s since this view was opened; None if it is too early to say."""
        if self._began is None or self.last is None:
            return None
        spent = self._grown - self._began[0]
        done = int(self.last["step"]) - self._began[1]
        return done / spent if spent > 1 and done > 0 else None

    @property
    def planned(self) -> int | None:
        """Number of steps of the run, if its run file says it."""
        about = self._rows.run.get("about") or {}
        section = (about.get("input") or {}).get("md") or {}
        steps = section.get("steps") if isinstance(section, Mapping) else None
        return steps if isinstance(steps, int) else None

    @property
    def left_s(self) -> float | None:
        """Time left in s; None if the number of steps or the rate is unknown."""
        if self.rate is None or self.planned is None or self.last is None:
            return None
        return max(0.0, (self.planned - int(self.last["step"])) / self.rate)

    @property
    def level(self) -> Level | None:
        """Level of the last step; None if it was not judged."""
        return self.levels[-1] if self.levels else None

    @property
    def why(self) -> str:
        """Why the run ended, or the reasons of the last step."""
        if self.end is not None and self.end.get("reason"):
            return str(self.end["reason"])
        reasons = (self.last or {}).get("reasons") or ()
        return "; ".join(map(str, reasons))

    @property
    def notes(self) -> list[str]:
        """What a reader must know about the log."""
        notes = []
        if self.gone:
            notes.append("The log was removed: the last state is shown.")
        if self.status == "quiet":
            notes.append(
                f"The log has not grown for {self.silence:.0f} s: the run is slow, or "
                "was stopped."
            )
        if self.sampled:
            notes.append(
                f"The log is large: {SAMPLES} evenly spaced places of its beginning "
                "were read."
            )
        if self.damaged:
            notes.append(f"{self.damaged} lines of the log are no records.")
        return notes

    def structure(self) -> tuple[Atoms, Path] | None:
        """Return the newest structure beside the log, and its file; None without one.

        It is the last frame of the file that was written last.
        """
        files = []
        for path in beside(self.path):
            try:
                files.append((path.stat().st_mtime, path))
            except OSError:  # removed just now
                continue
        for _, path in sorted(files, reverse=True):
            frame = last_frame(path)
            if frame is not None:
                return frame, path
        return None


def _other_lines(path: Path, stop: int) -> Iterator[int]:
    """Yield the start of each record that is not a step: halts, warnings, headers."""
    done, rest = 0, b""
    with path.open("rb") as file:
        while done < stop and (chunk := file.read(_CHUNK)):
            text = rest + chunk
            place = text.find(_OTHER)
            while place >= 0:
                yield done - len(rest) + place + 1
                place = text.find(_OTHER, place + 1)
            done += len(chunk)
            rest = text[-len(_OTHER) + 1 :]


def last_frame(path: Path) -> Atoms | None:
    """Return the last complete frame of an extended XYZ file, reading its end only.

    None for other formats, and if there is none in the last 4 MiB.
    """
    from ase.io import read

    if path.suffix not in {".xyz", ".extxyz"}:
        return None
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _CHUNK))
            text = file.read()
    except OSError:
        return None
    for match in reversed(list(_FRAME.finditer(text))):
        lines = text[match.start() :].split(b"\n")
        wanted = int(match[1]) + 2
        if len(lines) <= wanted:  # the last line may be incomplete
            continue
        block = b"\n".join(lines[:wanted]).decode("utf-8", "replace") + "\n"
        try:
            frame = read(StringIO(block), format="extxyz")
        except UNREADABLE:
            continue
        return frame if isinstance(frame, Atoms) else None
    return None


class Watched:
    """All runs of a folder, or one log.

    Parameters
    ----------
    place : Path
        A folder, whose logs are looked up again at each poll, or a log.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.runs: dict[Path, Follower] = {}

    def poll(self) -> list[Follower]:
        """Read what is new in all logs; return the runs, by name."""
        from uqcalc.viewing.sources import logs_in

        found = logs_in(self.place) if self.place.is_dir() else [self.place]
        for path in found:
            self.runs.setdefault(path, Follower(path))
        for run in self.runs.values():
            run.poll()
        return [self.runs[path] for path in sorted(self.runs)]
