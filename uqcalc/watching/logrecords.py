"""Checks of the entries of event log records before they are used.

A log may come from another program, be damaged or be edited by hand. Logs of versions
before 0.2 have no checksums.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uqcalc.errors import RecordError


_SHOWN = 60  # characters of a value in a message


class _Entries(BaseModel):
    """Entries of a record that are checked; other entries are allowed."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Threshold(_Entries):
    signal: str
    suspect: float | None  # null: infinite
    unreliable: float | None


class _Policy(_Entries):
    thresholds: list[_Threshold] = Field(default_factory=list)


class _Probe(_Entries):
    target: str
    boundary: float
    unit: str = ""


class _About(_Entries):
    input: dict[str, Any] = Field(default_factory=dict)


class _Run(_Entries):
    policy: _Policy = _Policy()
    probe: _Probe | None = None
    about: _About | None = None
    timestep_fs: float | None = None


class _Header(_Entries):
    run: _Run
    versions: dict[str, str] = Field(default_factory=dict)
    log_every: int = 1
    guarantee: str | None = None


class _Step(_Entries):
    step: int
    level: Literal["RELIABLE", "SUSPECT", "UNRELIABLE"] | None  # None: not judged
    readings: dict[str, float | None]
    time_fs: float | None
    temperature_K: float | None = None
    reasons: list[str] = Field(default_factory=list)
    worst_atoms: list[int] = Field(default_factory=list)
    ask: str = ""


class _Warning(_Entries):
    step: int


class _Rewind(_Entries):
    step: int
    to_step: int
    reason: str = ""


class _Asked(_Entries):
    step: int
    rule: str
    right: bool
    failed: str = ""


class _Ended(_Entries):
    how: Literal["finished", "halted"]
    step: int | None = None
    reason: str = ""
    converged: bool | None = None
    flagged_written: int = 0


_KINDS: Mapping[str, type[_Entries]] = {
    "header": _Header,
    "step": _Step,
    "warning": _Warning,
    "rewind": _Rewind,
    "asked": _Asked,
    "end": _Ended,
}


def check_record(record: Mapping[str, Any], path: object) -> None:
    """Refuse a record with missing entries or entries of a wrong type.

    Raises
    ------
    RecordError
        If an entry is wrong; the message gives its name and value.
    """
    kind = record.get("event")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        return
    try:
        model.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        shown = json.dumps(first["input"], ensure_ascii=False, default=repr)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        msg = (
            f"{kind} records of an event log must hold what uqcalc writes, got {path} "
            f"with {where} = {shown} ({first['msg'].lower()}); the log is damaged, or "
            "uqcalc did not write it"
        )
        raise RecordError(msg) from error


def checked_step(record: Mapping[str, Any], where: str) -> int:
    """Return the step of a record.

    Raises
    ------
    RecordError
        If the record has no integer step.
    """
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        msg = (
            f"step of {where} must be an integer, got {json.dumps(step)[:_SHOWN]}; "
            "the log is damaged, or uqcalc did not write it"
        )
        raise RecordError(msg)
    return step
