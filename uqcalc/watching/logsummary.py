"""Summary of an event log, of a finished or a running run."""

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
    """Statistics of a run; a step that was repeated after a kill counts once.

    Attributes
    ----------
    run, versions : dict
        Description of the run and package versions, from the last session's header.
    sessions : int
        Number of times the run was started or continued.
    first_step, last_step : int or None
        None if no step was logged.
    time_fs : float or None
        Time from the first to the last step in fs; None for an optimiser.
    levels : dict
        Number of logged steps for each `Level`.
    unjudged : int
        Number of logged steps without a level.
    log_every : int
        Smallest distance of logged steps in the last session. UNRELIABLE steps, changes
        of the level and the last step are logged at any distance.
    halts : list of dict
        ``step`` and ``reason`` of every halt, in order.
    warnings : int
        Number of warnings; a warning is logged instead of a halt if the monitor only
        warns.
    rewinds : list of dict
        ``step``, ``to_step`` and ``reason`` of every rewind, in order.
    asks : dict
        Rule by which to ask a reference -> number of logged steps.
    asked : list of dict
        Records of the calls of a reference, in order.
    end : dict or None
        The end record; None while the run goes on or after a kill.
    worst : list of dict
        Records of the worst steps, by level and then by risk.
    guarantee : str
        The statement of `uqcalc.certify_halting` for this run; empty without one.
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
    rewinds: list[dict[str, Any]]
    asks: dict[str, int]
    asked: list[dict[str, Any]]
    end: dict[str, Any] | None
    worst: list[dict[str, Any]]
    guarantee: str = ""

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of the signals with thresholds in the policy."""
        thresholds = self.run.get("policy", {}).get("thresholds", ())
        return tuple(threshold["signal"] for threshold in thresholds)


def summarise_log(path: str | os.PathLike[str], worst: int = 5) -> LogSummary:
    """Read an event log; ``worst`` is the number of worst steps to return.

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
    rewinds: list[dict[str, Any]] = []
    asks: Counter[str] = Counter()
    asked: list[dict[str, Any]] = []
    for record in read_standing(path):
        check_record(record, path)
        if record["event"] == "rewind":
            rewinds.append({k: record.get(k) for k in ("step", "to_step", "reason")})
            continue
        if record["event"] == "warning":
            warnings += 1
            continue
        if record["event"] == "asked":
            asked.append(record)
            continue
        first, last = first or record, record
        if record.get("ask"):
            asks[record["ask"]] += 1
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
        rewinds=rewinds,
        asks=dict(asks),
        asked=asked,
        end=end,
        worst=[record for _, record in sorted(worst_first, reverse=True)],
        guarantee=header.get("guarantee") or "",
    )


def _frame(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], int, dict[str, Any] | None, list[dict[str, Any]]]:
    """Return the last header, the number of headers, the end record and the halts.

    The end record is None if steps follow it. Halts with the same reason count once,
    because a step that is repeated after a kill is halted again.
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
    """Return a sort key: level, then risk (NaN is highest), then early step."""
    risks = [math.inf if risk is None else risk for risk in record["readings"].values()]
    return Level[record["level"]], max(risks, default=-math.inf), -record["step"]


def _duration(
    first: Mapping[str, Any] | None, last: Mapping[str, Any] | None
) -> float | None:
    if first is None or last is None or last["time_fs"] is None:
        return None
    return float(last["time_fs"]) - float(first["time_fs"])
