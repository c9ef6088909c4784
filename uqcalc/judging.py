"""The verdict on the readings of one geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from uqcalc.policy import Policy
from uqcalc.records import Level, Reading, Verdict


# Quantities that a user knows; others, such as ``node_energy``, are of one model.
_KNOWN = ("energy", "forces", "stress", "charges", "features")


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
    reasons = verdict.reasons
    if not any(note in reason for reason in reasons):  # no signal with a threshold ran
        reasons = (note, *reasons)
    return given, replace(verdict, level=Level.UNRELIABLE, reasons=reasons)


def _listed(names: Sequence[str]) -> str:
    """Return the quantities, the best known first, and the number of others."""
    known = [name for name in _KNOWN if name in names]
    shown = known or [*names[:1]]
    others = len(names) - len(shown)
    if others:
        shown.append(f"{others} other quantit{'y' if others == 1 else 'ies'}")
    if len(names) == 1:
        return f"{shown[0]} has values that are"
    return f"{', '.join(shown[:-1])} and {shown[-1]} have values that are"


def _voided(reading: Reading, note: str) -> Reading:
    """Replace all numbers of a reading by NaN: its prediction is not finite."""
    return replace(
        reading,
        risk=math.nan,
        results={key: _void(value) for key, value in reading.results.items()},
        per_atom_key=None,
        note=note,
        # findings of `Sanity` and `Flags` stay: a comparison with NaN has no finding
        doubts=reading.doubts if reading.always else (),
        unlabelled=(),
        faults=reading.faults if reading.always else (),
        absurd=reading.absurd if reading.always else (),
        regime="",
        concern=None,
    )


def _void(value: Any) -> Any:
    """Return NaN for numbers and False for booleans, in the same shape."""
    if np.asarray(value).dtype == bool:
        return np.zeros(np.shape(value), bool) if np.ndim(value) else False
    return value * math.nan
