"""The output files of a monitored run, and the handling of failed writes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ase import Atoms

from uqcalc.errors import FileWarning, RecordError
from uqcalc.records import Event, Level
from uqcalc.watching.eventlog import EventLog
from uqcalc.watching.flagged import FrameFile


class Outputs:
    """The output files of a run. A failed write is counted; it does not end the run.

    Each kind of output warns once. `entry` goes to the end record, `words` to the
    summary.

    Parameters
    ----------
    log : EventLog or None
    flagged : FrameFile or None
    labelled : FrameFile or None
        Frames that a reference has evaluated.
    log_every : int
        Smallest distance of logged steps. UNRELIABLE steps, changes of the level and
        the last step are always logged.
    """

    def __init__(
        self,
        log: EventLog | None,
        flagged: FrameFile | None,
        log_every: int = 1,
        labelled: FrameFile | None = None,
    ) -> None:
        self.log, self.flagged, self.log_every = log, flagged, log_every
        files = {"log": log, "flagged frames": flagged, "labelled frames": labelled}
        self._files = {name: f for name, f in files.items() if f is not None}
        self._waiting: Event | None = None
        self._logged_step = -math.inf
        self._levels: tuple[Level | None, Level | None] = (None, None)
        self._failed: dict[str, int] = {}
        self._reasons: dict[str, str] = {}

    def hold(self) -> None:
        """Reserve the files for this writer, until `rest`.

        Raises
        ------
        RecordError
            If another monitor of this process has reserved them.
        """
        for file in self._files.values():
            file.writer.hold()

    def rest(self) -> None:
        """Write the files to disk, and release them for other monitors."""
        for name, file in self._files.items():
            self.attempt(name, file.sync)
            file.writer.rest()

    def record(self, record: Mapping[str, Any]) -> None:
        """Append a record to the log."""
        if self.log is not None:
            log = self.log
            self.attempt("log", lambda: log.write(record))

    def step(self, event: Event, *, whole: bool) -> None:
        """Log a step, or keep it in memory in case it is the last one.

        Parameters
        ----------
        whole : bool
            Whether every signal with a threshold was read.
        """
        latest, latest_whole = self._levels
        level = event.level
        changed = level is not None and (
            level is not latest or (whole and level is not latest_whole)
        )
        due = event.step < self._logged_step  # the run has gone back
        due = due or event.step - self._logged_step >= self.log_every
        self._waiting = event
        if due or changed or level is Level.UNRELIABLE:
            self.log_last_step()
        if level is not None:
            self._levels = (level, level if whole else latest_whole)

    def log_last_step(self) -> None:
        """Log the last step if ``log_every`` has skipped it."""
        if self._waiting is not None:
            self._logged_step = self._waiting.step
            self.record(self._waiting.to_dict())
            self._waiting = None

    def flag(self, frame: Callable[[], Atoms], *, final: bool) -> None:
        """Append a frame to the file of flagged frames."""
        if self.flagged is not None:
            file = self.flagged
            known = set(file.incomplete)
            self.attempt("flagged frames", lambda: file.append(frame(), final=final))
            if new := sorted(set(file.incomplete) - known):
                _warn(
                    f"flagged frames in {file.path} are written without entries that "
                    f"extended XYZ cannot hold: {', '.join(new)}"
                )

    def attempt(self, name: str, write: Callable[[], object]) -> None:
        """Call ``write``; count a failure under ``name`` and warn the first time."""
        try:
            write()
        except (OSError, RecordError) as error:
            self._failed[name] = self._failed.get(name, 0) + 1
            if name not in self._reasons:
                self._reasons[name] = f"{type(error).__name__}: {error}"
                _warn(
                    f"{name} cannot be written ({self._reasons[name]}); the run "
                    "continues, and its summary counts what is missing"
                )

    def entry(self) -> dict[str, Any]:
        """Return the entries of the end record: frames written, and failed writes."""
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
        """Return one line for each kind of incomplete output."""
        lines = [
            f"Not written: {name}, {times} times ({self._reasons[name]})."
            for name, times in self._failed.items()
        ]
        if self.flagged is not None and self.flagged.incomplete:
            names = ", ".join(
                f"{name} ({n})" for name, n in self.flagged.incomplete.items()
            )
            lines.append(
                "Entries left out of flagged frames, because extended XYZ cannot "
                f"hold them: {names}."
            )
        return lines


def _warn(text: str) -> None:
    warnings.warn(text, FileWarning, stacklevel=3)
