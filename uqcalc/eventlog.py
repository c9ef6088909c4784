"""The event log: JSON lines that survive a kill up to the last step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uqcalc.errors import RecordError


class EventLog:
    """An append-only file of JSON records, flushed after every one.

    Parameters
    ----------
    path : path
    header : mapping
        First record of a new file. An existing file must have the same ``run``
        entry, or it belongs to another run and is refused.

    Attributes
    ----------
    last_step : int or None
        Step of the last complete record of an existing file.

    Raises
    ------
    RecordError
        If the existing file is not a log, or belongs to another run.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: Mapping[str, Any], mode: str
    ) -> None:
        self.path = Path(path)
        self.last_step: int | None = None
        if self.path.exists() and self.path.stat().st_size > 0:
            self._resume(header, mode)
        self._file = self.path.open("a", encoding="utf-8")
        self.write({"event": "header", **header})

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and hand it to the operating system."""
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; records written so far stay."""
        self._file.close()

    def _resume(self, header: Mapping[str, Any], mode: str) -> None:
        if mode != "append":
            msg = (
                f"log must not exist in mode {mode!r}, got {self.path}; choose another "
                'name, or mode="append" to continue it'
            )
            raise RecordError(msg)
        cut_torn_record(self.path)
        records = list(read_log(self.path))
        if not records or records[0].get("event") != "header":
            msg = (
                f"log must begin with a header record, got {self.path} without one; "
                "choose another name"
            )
            raise RecordError(msg)
        ours, theirs = header["run"], records[0]["run"]
        differing = sorted(
            k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)
        )
        if differing:
            shown = "; ".join(
                f"{k}: {_short(theirs.get(k))} there, {_short(ours.get(k))} here"
                for k in differing
            )
            msg = (
                f"log must belong to the same run, got {self.path} with other {shown}; "
                "choose another name for the new run"
            )
            raise RecordError(msg)
        steps = [r["step"] for r in records if r.get("event") == "step"]
        self.last_step = int(steps[-1]) if steps else None


def _short(value: Any, length: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else text[:length] + "…"


def cut_torn_record(path: Path) -> None:
    """Remove an incomplete last line, left by a process that was killed."""
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)


def read_log(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of an event log; a torn last line is left out.

    Raises
    ------
    RecordError
        If any other line is not a JSON record.
    """
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                msg = (
                    f"line {number} of {path} must be a JSON record, got {line[:60]!r} "
                    f"({error}); the file is not an event log or is damaged"
                )
                raise RecordError(msg) from error
            yield record
