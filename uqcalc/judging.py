"""The verdict on the readings of one geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from uqcalc.policy import Policy
from uqcalc.records import Level, Reading, Verdict


def judged(
    readings: Sequence[Reading], broken: Sequence[str], policy: Policy
) -> tuple[tuple[Reading, ...], Verdict]:
    """Return the readings and the verdict of a policy.

    Parameters
    ----------
    readings : sequence of Reading
        On the host.
    broken : sequence of str
        Names of the quantities of the prediction that hold NaN or infinity. If there
        are any, all numbers of the readings become NaN and the level is UNRELIABLE,
        also if there is no reading.
    policy : Policy
    """
    given = tuple(readings)
    if not broken:
        return given, policy(given)
    note = f"{_listed(broken)} NaN or infinite"
    given = tuple(_voided(reading, note) for reading in given)
    verdict = policy(given)
    reasons = verdict.reasons or (note,)
    return given, replace(verdict, level=Level.UNRELIABLE, reasons=reasons)


def _listed(names: Sequence[str]) -> str:
    verb = "has" if len(names) == 1 else "have"
    return f"{' and '.join(names)} {verb} values that are"


def _voided(reading: Reading, note: str) -> Reading:
    """Replace all numbers of a reading by NaN: its prediction is not finite."""
    return replace(
        reading,
        risk=math.nan,
        results={key: _void(value) for key, value in reading.results.items()},
        per_atom_key=None,
        note=note,
        doubts=(),
        unlabelled=(),
        faults=(),
        absurd=(),
        regime="",
        concern=None,
    )


def _void(value: Any) -> Any:
    """Return NaN for numbers and False for booleans, in the same shape."""
    if np.asarray(value).dtype == bool:
        return np.zeros(np.shape(value), bool) if np.ndim(value) else False
    return value * math.nan
