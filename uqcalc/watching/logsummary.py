"""What an event log says of its run, read once it is over or while it goes on."""

from __future__ import annotations

import heapq
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uqcalc.errors import RecordError
from uqcalc.records import Level
from uqcalc.watching.eventlog import read_log, read_standing
from uqcalc.watching.logrecords import check_record


@dataclass(frozen=True, slots=True, eq=False)
class LogSummary:
    """A run in numbers; a step that was run again after a kill counts once.

    Attributes
    ----------
    run, versions : dict
        From the header: what ran, and with which packages (of the last session).
    sessions : int
        How many times the run was started or continued.
    first_step, last_step : int or None
        None where no step was logged.
    time_fs : float or None
        From the first to the last step; None for an optimiser.
    levels : dict
        Logged steps by `Level`.
    unjudged : int
        Logged steps without a level.
    log_every : int
        Of the last session: steps that follow the one before by less are in the log
        only where they are UNRELIABLE, change the level, or are the last one.
    halts : list of dict
        ``step`` and ``reason`` of every halt, in order.
    warnings : int
        How many times the policy would have halted a run that was only to be warned.
    end : dict or None
        The end record; None while the run goes on, and if it was killed.
    worst : list of dict
        Records of the steps with the highest level and, within it, the highest risk.
    """

    run: dict[str, Any]
    versions: dict[str, str]
    sessions: int
    first_step: int | None
    last_step: int | None
    time_fs: float | None
    levels: dict[Level, int]
    unjudged: int
    log_every: int
    halts: list[dict[str, Any]]
    warnings: int
    end: dict[str, Any] | None
    worst: list[dict[str, Any]]

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of the signals that the policy has thresholds for."""
        thresholds = self.run.get("policy", {}).get("thresholds", ())
        return tuple(threshold["signal"] for threshold in thresholds)


def summarise_log(path: str | os.PathLike[str], worst: int = 5) -> LogSummary:
    """Read an event log; ``worst`` says how many of its worst steps to keep.

    Raises
    ------
    RecordError
        If the file is not an event log.
    """
    header, sessions, end, halts = _frame(path)
    levels: Counter[str | None] = Counter()
    first: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    worst_first: list[tuple[tuple[int, float, int], dict[str, Any]]] = []
    warnings = 0
    for record in read_standing(path):
        check_record(record, path)
        if record["event"] == "warning":
            warnings += 1
            continue
        first, last = first or record, record
        levels[record["level"]] += 1
        if record["level"] is None:
            continue
        ranked = (_badness(record), record)
        if len(worst_first) < worst:
            heapq.heappush(worst_first, ranked)
        else:
            heapq.heappushpop(worst_first, ranked)
    return LogSummary(
        run=header["run"],
        versions=header.get("versions", {}),
        sessions=sessions,
        first_step=None if first is None else first["step"],
        last_step=None if last is None else last["step"],
        time_fs=_duration(first, last),
        levels={level: levels[level.name] for level in Level},
        unjudged=levels[None],
        log_every=header.get("log_every", 1),
        halts=halts,
        warnings=warnings,
        end=end,
        worst=[record for _, record in sorted(worst_first, reverse=True)],
    )


def _frame(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], int, dict[str, Any] | None, list[dict[str, Any]]]:
    """Return the last header, how many there are, the end record, and the halts.

    The end record is None where steps follow it. Halts by one reason count once: a
    step that is run again after a kill is halted again.
    """
    header: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    halts: dict[str | None, dict[str, Any]] = {}
    sessions = 0
    for record in read_log(path):
        kind = record.get("event")
        if header is None and (kind != "header" or "run" not in record):
            break
        if kind in ("header", "end"):
            check_record(record, path)
        if kind == "header":
            header, sessions = record, sessions + 1
        if kind == "end" and record["how"] == "halted":
            found = {name: record.get(name) for name in ("step", "reason")}
            halts.setdefault(found["reason"], found)
        if kind in ("header", "step", "end"):
            end = record if kind == "end" else None
    if header is None:
        msg = (
            f"event log must begin with a header record, got {path} without one; pass "
            "a file that Monitor or `uqcalc run` wrote"
        )
        raise RecordError(msg)
    return header, sessions, end, [*halts.values()]


def _badness(record: Mapping[str, Any]) -> tuple[int, float, int]:
    """Order by level, then risk (not a number is worst), then the earlier step."""
    risks = [math.inf if risk is None else risk for risk in record["readings"].values()]
    return Level[record["level"]], max(risks, default=-math.inf), -record["step"]


def _duration(
    first: Mapping[str, Any] | None, last: Mapping[str, Any] | None
) -> float | None:
    if first is None or last is None or last["time_fs"] is None:
        return None
    return float(last["time_fs"]) - float(first["time_fs"])
