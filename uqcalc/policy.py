"""From readings to a verdict: pure, stateless, NaN never passes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from uqcalc.records import Assessment, Level, Reading, Verdict


# Limits on a risk of which nobody has said what is reliable: nothing is, not even a
# risk of zero, and what is not a number is UNRELIABLE all the same.
TRUST_NOTHING = (-1.0, sys.float_info.max)


@dataclass(frozen=True, slots=True)
class Threshold:
    """Two limits on the risk of one signal, in the unit of that risk.

    ``risk <= suspect`` is RELIABLE, ``risk <= unreliable`` is SUSPECT, anything
    else, NaN included, is UNRELIABLE. ``signal`` may also name a number that a signal
    publishes where larger is worse (its ``judged``), such as ``probe_novelty`` and
    ``probe_worst_atom``; the limits that the signal itself sets on it stay.

    Raises
    ------
    ValueError
        If the limits are not finite or not in order.

    Examples
    --------
    >>> Threshold("probe", suspect=0.2, unreliable=0.5).level(0.3).name
    'SUSPECT'
    """

    signal: str
    suspect: float
    unreliable: float

    def __post_init__(self) -> None:
        for name in ("suspect", "unreliable"):  # numpy scalars are no JSON
            if isinstance(getattr(self, name), str):
                msg = f"{name} must be a number, got {getattr(self, name)!r}"
                raise ValueError(msg)
            object.__setattr__(self, name, float(getattr(self, name)))
        limits = (self.suspect, self.unreliable)
        if not all(map(math.isfinite, limits)) or self.suspect > self.unreliable:
            msg = (
                f"threshold for {self.signal!r} must have finite suspect <= unreliable,"
                f" got suspect={self.suspect} and unreliable={self.unreliable};"
                " give both limits as a risk (larger is worse)"
            )
            raise ValueError(msg)

    def level(self, risk: float) -> Level:
        """Return the level of ``risk``."""
        if risk <= self.suspect:
            return Level.RELIABLE
        if risk <= self.unreliable:
            return Level.SUSPECT
        return Level.UNRELIABLE

    def reason(self, reading: Reading) -> str:
        """Say in words and numbers why ``reading`` is not RELIABLE."""
        unit = f" {reading.unit}" if reading.unit else ""
        if math.isnan(reading.risk):
            return f"{self.signal}: {reading.note or 'risk is not a number'}"
        if (self.suspect, self.unreliable) == TRUST_NOTHING:
            return (
                f"{self.signal}: no limit is known (risk {reading.risk:.3g}{unit}), so "
                "nothing counts as reliable"
            )
        severe = self.level(reading.risk) is Level.UNRELIABLE
        limit = self.unreliable if severe else self.suspect
        if reading.meaning:
            found = f"{reading.meaning} = {1 - reading.risk:.2g}"
            return f"{self.signal}: {found} < {1 - limit:.2g}"
        return f"{self.signal}: risk {reading.risk:.3g}{unit} > {limit:.3g}{unit}"


@dataclass(frozen=True, slots=True)
class Policy:
    """Pure map from readings to a verdict: the worst level over all thresholds.

    Raises
    ------
    ValueError
        If there is no threshold, or two for one signal.
    """

    thresholds: tuple[Threshold, ...]

    def __init__(self, thresholds: Iterable[Threshold]) -> None:
        object.__setattr__(self, "thresholds", tuple(thresholds))
        names = [threshold.signal for threshold in self.thresholds]
        if not names or len(set(names)) != len(names):
            msg = (
                "policy must have one threshold for each of its signals, "
                f"got thresholds for {names}"
            )
            raise ValueError(msg)

    def __call__(self, readings: Sequence[Reading]) -> Verdict:
        """Judge ``readings``; a threshold whose signal did not run is skipped.

        A reading outside what its signal was calibrated on is at least SUSPECT, one far
        outside or with a fault UNRELIABLE; so is one of a signal without a threshold
        that enters every verdict (``always``), such as `Sanity`.
        """
        by_signal = {reading.signal: reading for reading in readings}
        worst = Level.RELIABLE
        reasons: list[str] = []
        skipped: list[str] = []
        for threshold in self.thresholds:
            reading = by_signal.get(threshold.signal)
            if reading is None:
                reading = _published(threshold.signal, readings)
            if reading is None:
                skipped.append(threshold.signal)
                continue
            level = threshold.level(reading.risk)
            if level is not Level.RELIABLE:
                reasons.append(threshold.reason(reading))
            reasons += _floor_reasons(reading)
            worst = max(worst, level, reading.floor)
        for reading in readings:
            if reading.always and reading.signal not in self.signals:
                reasons += _floor_reasons(reading)
                worst = max(worst, reading.floor)
        return Verdict(worst, tuple(reasons), tuple(skipped))

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that have a threshold."""
        return tuple(threshold.signal for threshold in self.thresholds)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able limits; `from_dict` reads them back."""
        return {"thresholds": [asdict(threshold) for threshold in self.thresholds]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """Rebuild a policy from `to_dict`."""
        return cls(Threshold(**row) for row in data["thresholds"])


def _published(key: str, readings: Sequence[Reading]) -> Reading | None:
    """Return a number that a signal publishes as a reading of its own."""
    for reading in readings:
        if key in reading.results:
            return Reading(key, float(reading.results[key]))
    return None


def extended(assessment: Assessment, reading: Reading) -> Assessment:
    """Return an assessment with one more reading, which enters every verdict.

    Its doubts, faults and limits count as those of a reading with ``always`` do.
    """
    verdict = assessment.verdict
    return Assessment(
        (*assessment.readings, reading),
        Verdict(
            max(verdict.level, reading.floor),
            (*verdict.reasons, *_floor_reasons(reading)),
            verdict.skipped,
        ),
    )


def _floor_reasons(reading: Reading) -> list[str]:
    """Say in words and numbers why a reading may not be RELIABLE, whatever its risk."""
    broken = [*reading.absurd, *reading.faults]
    reasons = [f"{reading.signal}: {'; '.join(broken)}"] if broken else []
    if outside := reading.out_of_scope:
        what = "; ".join(outside)
        if reading.always:
            return [*reasons, f"{reading.signal}: {what}"]
        far = "far " if reading.floor is Level.UNRELIABLE and not broken else ""
        reasons.append(f"{reading.signal}: {far}outside its calibration: {what}")
    return reasons
