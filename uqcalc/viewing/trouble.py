"""Events of a run: stretches of neighbouring steps that were not RELIABLE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from uqcalc.learning.selection import EVENT_STEPS
from uqcalc.records import Level


@dataclass(frozen=True, slots=True)
class Trouble:
    """One stretch of steps that were not RELIABLE.

    Steps at most `uqcalc.learning.selection.EVENT_STEPS` apart are one stretch.

    Attributes
    ----------
    first, last : int
        First and last step.
    steps : int
        Number of logged steps in it that were not RELIABLE.
    worst : int
        Step of the highest level, and of these that of the largest risk.
    level : Level
        Level of this step.
    risk : float
        1 - P of this step; without a probe the largest risk of all signals. NaN counts
        as infinite.
    reliability : float
        P(reliable) of this step; NaN without a probe.
    reasons : tuple of str
        Reasons of this step.
    atoms : tuple of int
        Worst atoms of this step, worst first.
    """

    first: int
    last: int
    steps: int
    worst: int
    level: Level
    risk: float
    reliability: float
    reasons: tuple[str, ...]
    atoms: tuple[int, ...]


def troubles_of(records: Iterable[Mapping[str, Any]]) -> list[Trouble]:
    """Return the events of a run from its step records, in order.

    Steps that were not judged neither end nor begin an event.
    """
    found: list[Trouble] = []
    for record in records:
        if record.get("event") != "step":
            continue
        if record.get("level") in (None, Level.RELIABLE.name):
            continue
        this = _of_step(record)
        if found and this.first - found[-1].last <= EVENT_STEPS:
            found[-1] = _merged(found[-1], this)
        else:
            found.append(this)
    return found


def _of_step(record: Mapping[str, Any]) -> Trouble:
    step, readings = int(record["step"]), record.get("readings") or {}
    reliability = (record.get("values") or {}).get("probe_reliability")
    given = readings.values() if reliability is None else [1 - float(reliability)]
    risks = [math.inf if risk is None else float(risk) for risk in given]
    return Trouble(
        step,
        step,
        1,
        step,
        Level[record["level"]],
        max(risks, default=-math.inf),
        math.nan if reliability is None else float(reliability),
        tuple(record.get("reasons") or ()),
        tuple(record.get("worst_atoms") or ()),
    )


def _merged(one: Trouble, other: Trouble) -> Trouble:
    worse = other if (other.level, other.risk) > (one.level, one.risk) else one
    return replace(
        worse, first=one.first, last=other.last, steps=one.steps + other.steps
    )


def ranked(troubles: Iterable[Trouble]) -> list[Trouble]:
    """Return the events by level, then risk, the worst first."""
    return sorted(troubles, key=lambda t: (t.level, t.risk), reverse=True)
