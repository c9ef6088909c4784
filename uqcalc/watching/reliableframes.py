"""Which steps of a logged run may enter an average."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqcalc.records import Level
from uqcalc.watching.eventlog import read_log
from uqcalc.watching.logrecords import check_record, checked_step


REWOUND, AFTER, UNJUDGED = "rewound", "after an alarm", "not judged"
REPEATED = "repeated after a restart"


@dataclass(frozen=True, slots=True, eq=False)
class ReliableFrames:
    """The steps of a log that may enter an average, and a count of the others.

    Attributes
    ----------
    steps : array of int
        Step numbers, ascending.
    logged : int
        Number of step records in the log.
    left_out : dict
        Reason -> number of step records left out: "SUSPECT", "UNRELIABLE", "not
        judged", "rewound", "after an alarm", "repeated after a restart".
    """

    steps: NDArray[np.int64]
    logged: int
    left_out: dict[str, int]

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.steps)

    def __str__(self) -> str:
        text = f"{len(self)} of {self.logged} logged steps may enter an average"
        if not self.left_out:
            return f"{text}."
        why = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return f"{text}. Left out: {why}."

    def frames(self, interval: int = 1, first: int = 0) -> NDArray[np.int64]:
        """Return the indices of these steps in a trajectory.

        Parameters
        ----------
        interval : int
            Steps from one frame of the trajectory to the next.
        first : int
            Step of its first frame.
        """
        if interval < 1:
            msg = f"interval must be a whole number of at least 1, got {interval}"
            raise ValueError(msg)
        after = self.steps[self.steps >= first] - first
        return np.asarray(after[after % interval == 0] // interval)


def reliable_frames(
    log: str | os.PathLike[str], level: Level | str = Level.RELIABLE
) -> ReliableFrames:
    """Return the steps of an event log that may enter an average.

    Left out are steps with a worse level than ``level``, steps that were not judged,
    steps after an alarm (a halt, or a warning after which the run went on), steps that
    a rewind discarded (`uqcalc.Rewind`), and steps that were repeated after a kill.
    After a rewind to a step before the alarm, the steps count again. Only steps in the
    log are counted (``Monitor(log_every=)``). If a function is the action of the
    monitor, the log does not contain its alarms.

    An average over RELIABLE steps only is an average over those geometries that the
    potential describes well. If many steps before an alarm are left out by their level,
    it is not the average of the ensemble.

    Parameters
    ----------
    log : path
        Event log of a `Monitor` or of ``uqcalc run``.
    level : Level or str
        RELIABLE, or SUSPECT to also take SUSPECT steps.

    Raises
    ------
    ValueError
        If the level is another one.
    RecordError
        If the file is not an event log, or is damaged.
    """
    name = level.name if isinstance(level, Level) else level
    if name not in {"RELIABLE", "SUSPECT"}:
        msg = f"level must be RELIABLE or SUSPECT, got {level!r}"
        raise ValueError(msg)
    worst = Level[name]
    logged, records = _standing(log)
    left_out: Counter[str] = Counter()
    path: list[int] = []  # steps of the present path that may enter
    alarm: int | None = None
    standing = 0
    for record in records:
        step = record["step"]
        if record["event"] == "rewind":
            kept = [one for one in path if one <= record["to_step"]]
            left_out[REWOUND] += len(path) - len(kept)
            path = kept
            alarm = None if alarm is None or record["to_step"] < alarm else alarm
        elif record["event"] != "step":
            alarm = step if alarm is None else alarm
        else:
            standing += 1
            why = _why_not(record, worst, alarm)
            if why is None:
                path.append(step)
            else:
                left_out[why] += 1
    left_out[REPEATED] = logged - standing
    return ReliableFrames(
        np.array(path, dtype=np.int64),
        logged,
        {reason: count for reason, count in left_out.most_common() if count},
    )


def _why_not(record: Mapping[str, Any], worst: Level, alarm: int | None) -> str | None:
    """Return why a step may not enter an average; None if it may."""
    if alarm is not None and record["step"] > alarm:
        return AFTER
    name: str | None = record["level"]
    if name is None:
        return UNJUDGED
    return None if Level[name] <= worst else name


def _standing(
    log: str | os.PathLike[str],
) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of step records, and the records that are still valid.

    These are steps and alarms in their order. A step that is logged again makes the
    records of this step and of later steps invalid. An alarm at this very step stays.
    """
    logged, standing = 0, list[dict[str, Any]]()
    for number, record in enumerate(_relevant(log), start=1):
        checked_step(record, f"record {number} of {log}")
        if record["event"] == "step":
            logged += 1
            later = []
            while standing and standing[-1]["step"] >= record["step"]:
                later.append(standing.pop())
            standing += [
                one
                for one in reversed(later)
                if one["step"] == record["step"] and one["event"] in {"warning", "end"}
            ]
        standing.append(record)
    return logged, standing


def _relevant(log: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield small records of steps, rewinds and alarms."""
    for record in read_log(log):
        kind = record.get("event")
        check_record(record, log)
        halted = kind == "end" and record["how"] == "halted"
        if halted or kind in ("step", "rewind", "warning"):
            names = ("event", "step", "level", "to_step")
            yield {name: record[name] for name in names if name in record}
