"""What a monitored run writes, and what becomes of what cannot be written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ase import Atoms

from uqcalc.errors import FileWarning, RecordError
from uqcalc.watching.eventlog import EventLog
from uqcalc.watching.flagged import FrameFile


class Outputs:
    """The files of a run: a writer's trouble is counted and told, and ends nothing.

    Each kind of output warns once; `entry` goes to the end record, `words` to the
    summary.

    Parameters
    ----------
    log : EventLog or None
    flagged : FrameFile or None
    """

    def __init__(self, log: EventLog | None, flagged: FrameFile | None) -> None:
        self.log, self.flagged = log, flagged
        self._failed: dict[str, int] = {}
        self._reasons: dict[str, str] = {}

    def hold(self) -> None:
        """Be the one that writes these files, until `rest`.

        Raises
        ------
        RecordError
            If another monitor of this process does.
        """
        for file in (self.log, self.flagged):
            if file is not None:
                file.writer.hold()

    def rest(self) -> None:
        """Have all of it on the disk, and let another monitor go on with the files."""
        for name, file in (("log", self.log), ("flagged frames", self.flagged)):
            if file is not None:
                self.attempt(name, file.sync)
                file.writer.rest()

    def record(self, record: Mapping[str, Any]) -> None:
        """Append a record to the log."""
        if self.log is not None:
            log = self.log
            self.attempt("log", lambda: log.write(record))

    def flag(self, frame: Callable[[], Atoms], *, final: bool) -> None:
        """Append a frame to the flagged ones."""
        if self.flagged is not None:
            file = self.flagged
            known = set(file.incomplete)
            self.attempt("flagged frames", lambda: file.append(frame(), final=final))
            if new := sorted(set(file.incomplete) - known):
                _warn(
                    f"flagged frames in {file.path} are written without what extended "
                    f"XYZ does not give back: {', '.join(new)}"
                )

    def attempt(self, name: str, write: Callable[[], object]) -> None:
        """Write something; what cannot be written is counted under ``name``."""
        try:
            write()
        except (OSError, RecordError) as error:
            self._failed[name] = self._failed.get(name, 0) + 1
            if name not in self._reasons:
                self._reasons[name] = f"{type(error).__name__}: {error}"
                _warn(
                    f"{name} cannot be written ({self._reasons[name]}); the run goes "
                    "on, and its summary says how much is missing"
                )

    def entry(self) -> dict[str, Any]:
        """Return what an end record says: frames written, and what is missing."""
        entry: dict[str, Any] = {}
        if self.flagged is not None:
            entry["flagged_written"] = self.flagged.written
            entry["flagged_left_out"] = self.flagged.left_out
            if self.flagged.incomplete:
                entry["flagged_incomplete"] = dict(self.flagged.incomplete)
        if self._failed:
            entry["not_written"] = {
                name: {"times": times, "reason": self._reasons[name]}
                for name, times in self._failed.items()
            }
        return entry

    def words(self) -> list[str]:
        """Return a line for each kind of output of which something is missing."""
        lines = [
            f"Not written: {name}, {times} times ({self._reasons[name]})."
            for name, times in self._failed.items()
        ]
        if self.flagged is not None and self.flagged.incomplete:
            names = ", ".join(
                f"{name} ({n})" for name, n in self.flagged.incomplete.items()
            )
            lines.append(f"Left out of flagged frames, as XYZ cannot hold it: {names}.")
        return lines


def _warn(text: str) -> None:
    warnings.warn(text, FileWarning, stacklevel=3)
