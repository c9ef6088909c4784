"""The event log: JSON lines that survive a kill up to the last step."""

from __future__ import annotations

import json
import os
import platform
import zlib
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import ase
import numpy as np

from uqcalc.errors import RecordError
from uqcalc.files.writing import GrowingFile, OneWriter, strict_json, writable
from uqcalc.watching.joint import Joint
from uqcalc.watching.logrecords import checked_step


_MOST_NAMED = 6  # entries: another probe differs in dozens
# How a line ends: the last entry of a record is its checksum.
_CHECKSUM, _CLOSING = ', "crc32": "', '"}'


class EventLog:
    """An append-only file of JSON records, opened and closed for every one.

    Parameters
    ----------
    path : path
    header : mapping
        First record of a new file. An existing file must have the same ``run``
        entry, or it belongs to another run and is refused.
    mode : {"continue", "append", "new"}
        "new" refuses an existing file; the others continue it.
    joint : Joint, optional
        Checks that the structure that goes on is the one at which the file ended.

    Attributes
    ----------
    last_step : int or None
        Step of the last complete record of an existing file, which is continued.

    Raises
    ------
    RecordError
        If the existing file is not a log, or belongs to another run, or if another
        process, or a monitor of this one whose run has not ended, is writing it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Mapping[str, Any],
        mode: str,
        joint: Joint | None = None,
    ) -> None:
        self.path = writable(path, "log")
        self.writer = OneWriter(self.path)
        self._file = GrowingFile(self.path)
        self.last_step: int | None = None
        # None: of a log that an earlier version began without checksums
        self._checksum: int | None = 0
        if self.path.exists() and self.path.stat().st_size > 0:
            self._resume(header, mode, joint)
        self.write({"event": "header", **header})

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; what JSON lacks (NaN, infinities) becomes null.

        Raises
        ------
        OSError
            If it cannot be written; nothing of it is in the file then.
        """
        line = json.dumps(strict_json(record), ensure_ascii=False, allow_nan=False)
        checksum = self._checksum
        if checksum is not None:
            checksum = _chained(line, checksum)
            line = f"{line[:-1]}{_CHECKSUM}{checksum:08x}{_CLOSING}"
        self._file.append(line + "\n")
        self._checksum = checksum

    def sync(self) -> None:
        """Have the operating system put all of it on the disk."""
        self._file.sync()

    def _resume(
        self, header: Mapping[str, Any], mode: str, joint: Joint | None
    ) -> None:
        if mode == "new":
            msg = (
                f"log must not exist in mode {mode!r}, got {self.path}; choose another "
                'name, or mode="continue" to continue it'
            )
            raise RecordError(msg)
        found = list(_checked_records(self.path))
        records = [record for record, _ in found]
        if not records or records[0].get("event") != "header":
            msg = (
                f"log must begin with a header record, got {self.path} without one; "
                "choose another name"
            )
            raise RecordError(msg)
        check_same_run(self.path, records[0].get("run"), header["run"])
        steps = [r for r in records if r.get("event") == "step"]
        where = f"the last step in {self.path}"
        self.last_step = checked_step(steps[-1], where) if steps else None
        if joint is not None:
            joint.check(self.path, steps)
        self._checksum = found[-1][1]
        cut_torn_record(self.path)


def check_same_run(path: Path, theirs: Any, ours: Any) -> None:
    """Refuse a log whose header describes another run; say in what they differ.

    Raises
    ------
    RecordError
        If the two descriptions are not equal as JSON.
    """
    differing = _differences(theirs, strict_json(ours))
    if differing:
        more = len(differing) - _MOST_NAMED
        told = "; ".join(differing[:_MOST_NAMED])
        told += f"; and {more} other entries" if more > 0 else ""
        msg = (
            f"log must belong to the same run, got {path} with other {told}; choose "
            "another name for the new run"
        )
        raise RecordError(msg)


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """Say where two JSON values differ, entry by entry."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        pairs = [(k, theirs.get(k), ours.get(k)) for k in {**theirs, **ours}]
    elif _same_length(theirs, ours):
        pairs = [
            (str(i), *both) for i, both in enumerate(zip(theirs, ours, strict=True))
        ]
    elif theirs == ours:
        return []
    else:
        return [f"{name}: {_short(theirs)} there, {_short(ours)} here"]
    return [
        text
        for key, there, here in pairs
        for text in _differences(there, here, f"{name}.{key}".lstrip("."))
    ]


def _same_length(*values: Any) -> bool:
    lists = all(isinstance(value, list) for value in values)
    return lists and len({len(value) for value in values}) == 1


def _short(value: Any, length: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else text[:length] + "…"


def versions() -> dict[str, str]:
    """Return what a run was made with, for the header of its log."""
    packages = {"uqcalc": version("uqcalc"), "ase": ase.__version__}
    return packages | {"numpy": np.__version__, "python": platform.python_version()}


def cut_torn_record(path: Path) -> None:
    """Remove an incomplete last line, left by a process that was killed."""
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)


def read_log(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of an event log; a torn last line is left out.

    Each record carries a checksum of itself and of all records before it, so that a
    changed byte and a missing record are noticed. Logs of versions before 0.2 have
    none.

    Raises
    ------
    RecordError
        If any other line is not a JSON record, or not as it was written.
    """
    for record, _ in _checked_records(path):
        yield record


def _checked_records(
    path: str | os.PathLike[str],
) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Yield each record and the checksum up to it, None where the log has none."""
    # Only \n ends a record: torn bytes may look like another kind of line end.
    with Path(path).open(encoding="utf-8", errors="replace", newline="\n") as file:
        start = [file.readline(), file.readline()]
        # a header that lost its own checksum is followed by a record that has one
        checksum = 0 if any(_CHECKSUM in line for line in start) else None
        for number, line in enumerate(chain(filter(None, start), file), start=1):
            if not line.endswith("\n"):
                return
            where, text = f"line {number} of {path}", line
            if checksum is not None:
                text, _, stored = line.rpartition(_CHECKSUM)
                text += "}"
                checksum = _chained(text, checksum)
                if stored != f"{checksum:08x}{_CLOSING}\n":
                    raise RecordError(_changed(where, number))
            yield _parsed(text, where), checksum


def _changed(where: str, number: int) -> str:
    return (
        f"{where} must be the record that was written after the one before it, got "
        "another: a byte was changed or a record is missing; the "
        f"{number - 1} records before it are sound, take an earlier copy for the rest"
    )


def _chained(line: str, checksum: int) -> int:
    """Return the checksum of a record and of all before it (CRC-32)."""
    return zlib.crc32(line.encode(), checksum)


def read_standing(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the step and warning records that stand, in the order of the steps.

    A run that was killed goes on from the geometry it saved last: the log then counts
    back to that step, and what it held of that step and later ones was run again and
    is left out here.

    Raises
    ------
    RecordError
        As for `read_log`.
    """
    standing: list[tuple[int, int]] = []
    for number, record in enumerate(read_log(path)):
        kind = record.get("event")
        if kind not in ("step", "warning"):
            continue
        step = checked_step(record, f"record {number + 1} of {path}")
        while kind == "step" and standing and standing[-1][0] >= step:
            standing.pop()
        standing.append((step, number))
    numbers = {number for _, number in standing}
    yield from (r for n, r in enumerate(read_log(path)) if n in numbers)


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also of a number with too many digits
        record = None
    if not isinstance(record, dict):
        msg = (
            f"{where} must be a JSON record, got {line[:60]!r}; the file is not an "
            "event log or is damaged"
        )
        raise RecordError(msg)
    return record
