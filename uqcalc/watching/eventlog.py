"""The event log: JSON lines, complete up to the last step after a kill."""

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


_MOST_NAMED = 6  # differing entries in a message; another probe differs in dozens
# The last entry of each record is its checksum.
_CHECKSUM, _CLOSING = ', "crc32": "', '"}'


class EventLog:
    """An append-only file of JSON records; it is opened and closed for each record.

    Parameters
    ----------
    path : path
    header : mapping
        First record of a new file. An existing file must have the same ``run`` entry.
    mode : {"continue", "append", "new"}
        "new" refuses an existing file; the others continue it.
    joint : Joint, optional
        Checks that the file ended at the structure with which the run continues.

    Attributes
    ----------
    last_step : int or None
        Last step in an existing file that is continued; None without one.

    Raises
    ------
    RecordError
        If the existing file is not a log, or belongs to another run, or if another
        process or an unfinished monitor of this process writes it.
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
        # None for a log of an earlier version, which has no checksums
        self._checksum: int | None = 0
        if self.path.exists() and self.path.stat().st_size > 0:
            self._resume(header, mode, joint)
        self.write({"event": "header", **header})

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; NaN and infinite values become null.

        Raises
        ------
        OSError
            If the record cannot be written. The file then stays as it was.
        """
        line = json.dumps(strict_json(record), ensure_ascii=False, allow_nan=False)
        checksum = self._checksum
        if checksum is not None:
            checksum = _chained(line, checksum)
            line = f"{line[:-1]}{_CHECKSUM}{checksum:08x}{_CLOSING}"
        self._file.append(line + "\n")
        self._checksum = checksum

    def sync(self) -> None:
        """Make the operating system write the file to disk."""
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
    """Refuse a log whose header describes another run.

    Raises
    ------
    RecordError
        If the two descriptions differ as JSON; the message names the differences.
    """
    differing = _differences(theirs, strict_json(ours))
    if differing:
        more = len(differing) - _MOST_NAMED
        told = "; ".join(differing[:_MOST_NAMED])
        told += f"; and {more} other entries" if more > 0 else ""
        msg = (
            f"log must belong to the same run, got {path} with different {told}; "
            "choose another name for the new run"
        )
        raise RecordError(msg)


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """Return the differences of two JSON values as texts, one per entry."""
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
    """Return the versions of uqcalc, ASE, NumPy and Python for the log's header."""
    packages = {"uqcalc": version("uqcalc"), "ase": ase.__version__}
    return packages | {"numpy": np.__version__, "python": platform.python_version()}


def cut_torn_record(path: Path) -> None:
    """Remove an incomplete last line, which a killed process has left."""
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)


def read_log(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of an event log, without an incomplete last line.

    Each record has a checksum of itself and all records before it. It detects changed
    bytes and missing records. Logs of versions before 0.2 have no checksums.

    Raises
    ------
    RecordError
        If any other line is not a JSON record or fails the checksum.
    """
    for record, _ in _checked_records(path):
        yield record


def _checked_records(
    path: str | os.PathLike[str],
) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Yield each record and its checksum; None for a log without checksums."""
    # Only \n ends a record: damaged bytes may look like another kind of line end.
    with Path(path).open(encoding="utf-8", errors="replace", newline="\n") as file:
        start = [file.readline(), file.readline()]
        # two lines: the header may have lost its checksum, the next record has one
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
        f"{where} must follow the record before it, got a checksum that differs: "
        f"bytes were changed or a record is missing; the first {number - 1} records "
        "are intact, use an earlier copy for the rest"
    )


def _chained(line: str, checksum: int) -> int:
    """Return the checksum (CRC-32) of a record and all records before it."""
    return zlib.crc32(line.encode(), checksum)


def read_standing(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the valid step, warning, rewind and asked records, in order of the steps.

    A killed run continues from its last saved geometry, and the log then goes back to
    that step. Earlier records of this step and later ones are invalid and left out.

    Raises
    ------
    RecordError
        As for `read_log`.
    """
    standing: list[tuple[int, int]] = []
    for number, record in enumerate(read_log(path)):
        kind = record.get("event")
        if kind not in ("step", "warning", "rewind", "asked"):
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
    except (ValueError, RecursionError):  # also for too many digits
        record = None
    if not isinstance(record, dict):
        msg = (
            f"{where} must be a JSON record, got {line[:60]!r}; the file is not an "
            "event log or is damaged"
        )
        raise RecordError(msg)
    return record
