"""Policies: from readings to a verdict, without state; NaN is never RELIABLE."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from uqcalc.former import Former, former_argument
from uqcalc.records import Assessment, Level, Reading, Verdict, key_of, told_apart
from uqcalc.showing import in_words, shown_in


# Thresholds for a risk without known limits: every finite risk, even zero, is SUSPECT;
# NaN and infinity are UNRELIABLE.
TRUST_NOTHING = (-1.0, sys.float_info.max)
# Name of the reading about a whole run or trajectory, not about one geometry.
RUN = "run"
# Name of the signal of a probe of the stress beside that of the forces.
STRESS_PROBE = "probe_stress"
# Start of a doubt (`uqcalc.Sanity`) that is about forces only.
NO_FORCES = "all forces vanish by symmetry"


@former_argument("promise", "guarantee")
@dataclass(frozen=True, slots=True)
class Threshold:
    """Two limits on the risk of one signal, in the unit of that risk.

    ``risk <= suspect`` is RELIABLE, ``risk <= unreliable`` is SUSPECT, all else,
    including NaN, is UNRELIABLE. ``signal`` is the name of a signal, or of a
    published value that a signal lists in ``judged`` (larger is worse), such as
    ``probe_novelty`` and ``probe_worst_atom``. The signal's own limits on such a value
    still apply.

    ``guarantee`` is the text of a probe's guarantee (`Policy.from_guarantee`), or
    empty. With a guarantee, RELIABLE are exactly the predictions that the probe marks
    as covered. The risk is then one minus the probability in the guarantee, and
    ``suspect`` is one minus the cutoff of the guarantee.

    Raises
    ------
    ValueError
        If the limits are not finite, or ``suspect`` is larger than ``unreliable``.

    Examples
    --------
    >>> Threshold("probe", suspect=0.2, unreliable=0.5).level(0.3).name
    'SUSPECT'
    """

    signal: str
    suspect: float
    unreliable: float
    guarantee: str = ""

    promise = Former("guarantee")

    def __post_init__(self) -> None:
        for name in ("suspect", "unreliable"):  # JSON has no numpy scalars
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

    def judge(self, reading: Reading) -> tuple[Level, list[str]]:
        """Return the level of a reading, and the reasons if it is not RELIABLE."""
        if not self.guarantee:
            level = self.level(reading.risk)
            return level, [] if level is Level.RELIABLE else [self.reason(reading)]
        name = self.signal
        # values read from files are numpy numbers; NaN does not count as True
        if reading.results.get(key_of(name, "promised")) in (True,):
            return Level.RELIABLE, []
        reading = replace(reading, risk=self.risk(reading), meaning=self.guarantee)
        level = self.level(reading.risk)
        why = f"{name}: {self.guarantee}" if level is Level.RELIABLE else ""
        why = why or self.reason(reading)
        return max(Level.SUSPECT, level), [f"{why}, outside the guarantee"]

    def risk(self, reading: Reading) -> float:
        """Return the risk that is compared with the limits.

        With a guarantee it is 1 - P(error <= tolerance).
        """
        if self.guarantee:
            asked = reading.results.get(key_of(self.signal, "tolerance_reliability"))
            return reading.risk if asked is None else 1 - float(asked)
        return reading.risk

    def level(self, risk: float) -> Level:
        """Return the level of ``risk``; NaN is UNRELIABLE."""
        if risk <= self.suspect:
            return Level.RELIABLE
        if risk <= self.unreliable:
            return Level.SUSPECT
        return Level.UNRELIABLE

    def reason(self, reading: Reading) -> str:
        """Return why ``reading`` is not RELIABLE, in words and numbers."""
        if math.isnan(reading.risk):
            return f"{self.signal}: {reading.note or 'the risk is NaN'}"
        if (self.suspect, self.unreliable) == TRUST_NOTHING:
            risk = in_words(reading.risk, reading.unit, digits=3)
            return (
                f"{self.signal}: no limit is known (risk {risk}), so no structure is "
                "RELIABLE"
            )
        severe = self.level(reading.risk) is Level.UNRELIABLE
        limit = self.unreliable if severe else self.suspect
        if reading.meaning:
            found, least = told_apart(1 - reading.risk, 1 - limit, digits=2)
            return f"{self.signal}: {reading.meaning} = {found} < {least}"
        unit, factor = shown_in(reading.unit)
        unit = f" {unit}" if unit else ""
        found, most = told_apart(reading.risk * factor, limit * factor, digits=3)
        return f"{self.signal}: risk {found}{unit} > {most}{unit}"


class _Card(Protocol):
    @property
    def target(self) -> str: ...
    def guarantee_policy(self, signal: str = ...) -> Policy: ...


class _Guaranteed(Protocol):
    """The part of a `uqcalc.Probe` that a policy needs."""

    @property
    def card(self) -> _Card: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """Map readings to a verdict, the worst level over all thresholds; no state.

    What counts depends on the use of the results: forces at a constant cell, forces and
    stress when the cell moves, the energy where the energy is the result.

    Parameters
    ----------
    thresholds : iterable of Threshold
        Thresholds for every geometry.
    moving_cell : iterable of Threshold
        Further thresholds, for runs whose cell moves (NPT, cell relaxation), such as
        one for a probe of the stress. A calculator alone does not know whether its cell
        moves: `Monitor`, `relax` and `annotate` apply them.
    energy : iterable of Threshold
        Thresholds that replace ``thresholds`` where the energy is the result, as in
        ``assess(atoms, use="energy")``; by default ``thresholds`` count there, too.

    Raises
    ------
    ValueError
        If there is no threshold, or two for one signal and one use.
    """

    thresholds: tuple[Threshold, ...]
    moving_cell: tuple[Threshold, ...] = ()
    energy: tuple[Threshold, ...] = ()

    def __init__(
        self,
        thresholds: Iterable[Threshold],
        moving_cell: Iterable[Threshold] = (),
        energy: Iterable[Threshold] = (),
    ) -> None:
        object.__setattr__(self, "thresholds", tuple(thresholds))
        object.__setattr__(self, "moving_cell", tuple(moving_cell))
        object.__setattr__(self, "energy", tuple(energy))
        for use in ("moving_cell", "energy"):
            names = self.signals_for(use)
            if not self.thresholds or len(set(names)) != len(names):
                msg = (
                    "policy must have one threshold for each of its signals, "
                    f"got thresholds for {list(names)}"
                )
                raise ValueError(msg)

    def __call__(self, readings: Sequence[Reading]) -> Verdict:
        """Judge ``readings``; a threshold whose signal did not run is skipped.

        A reading outside the calibration of its signal is at least SUSPECT. A reading
        far outside, or with a fault, is UNRELIABLE. The same holds without a threshold
        for readings with ``always``, such as those of `Sanity` and `Flags`. A reading
        without a threshold whose risk exceeds the limit in its ``concern``, or is NaN,
        makes the verdict at least SUSPECT.
        """
        verdict = _judged(self.thresholds, readings)
        worst, reasons = verdict.level, [*verdict.reasons]
        for reading in readings:
            if reading.always and reading.signal not in self.signals:
                reasons += _floor_reasons(reading)
                worst = max(worst, reading.floor)
            if reading.signal not in self.signals and (why := reading.concerns):
                reasons += [f"{reading.signal}: {text}" for text in why]
                worst = max(worst, Level.SUSPECT)
        return replace(verdict, level=worst, reasons=tuple(reasons))

    def for_use(self, assessment: Assessment, use: str) -> Assessment:
        """Return an assessment of this policy for one use of the results.

        - "fixed_cell": unchanged.
        - "moving_cell": the thresholds in ``moving_cell`` count, too.
        - "energy": those in ``energy`` replace ``thresholds``.

        For the last two the doubt of `Sanity` that all forces vanish by symmetry does
        not count: the forces are then right, and another quantity is judged.
        """
        further = self._further(use)
        if not further or not assessment.readings:
            return assessment
        readings = tuple(map(_without_doubts_of_forces, assessment.readings))
        verdict = Policy(further)(readings)
        if len(verdict.skipped) == len(further):  # no signal of these ran
            return assessment
        return Assessment(assessment.readings, verdict)

    def _further(self, use: str) -> tuple[Threshold, ...]:
        """Return the thresholds of a use, if they are others than ``thresholds``."""
        if use == "moving_cell" and self.moving_cell:
            return (*self.thresholds, *self.moving_cell)
        return self.energy if use == "energy" else ()

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that have a threshold for every geometry."""
        return tuple(threshold.signal for threshold in self.thresholds)

    def signals_for(self, use: str) -> tuple[str, ...]:
        """Return the names of the signals with a threshold for a use (`for_use`)."""
        chosen = self._further(use) or self.thresholds
        return tuple(threshold.signal for threshold in chosen)

    @property
    def all_thresholds(self) -> tuple[Threshold, ...]:
        """The thresholds of every use."""
        return (*self.thresholds, *self.moving_cell, *self.energy)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible thresholds; `from_dict` reads them back."""
        found = {"thresholds": _rows(self.thresholds)}
        for use in ("moving_cell", "energy"):
            if further := getattr(self, use):
                found[use] = _rows(further)
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """Rebuild a policy from `to_dict`."""
        return cls(
            _thresholds(data["thresholds"]),
            _thresholds(data.get("moving_cell", ())),
            _thresholds(data.get("energy", ())),
        )

    @classmethod
    def from_guarantee(
        cls, probe: _Guaranteed, *, stress: _Guaranteed | None = None
    ) -> Policy:
        """Return a policy with RELIABLE only for predictions that a guarantee covers.

        All others are at least SUSPECT; they are UNRELIABLE if their probability is
        below the probe's own cutoff for UNRELIABLE. RELIABLE predictions are those that
        `uqcalc.certify` counts as accepted, apart from findings of other signals
        (`Sanity`, `Flags`). The guarantee (`uqcalc.types.Guarantee`): take one
        structure from each new group; of those that are accepted, at most a share
        ``risk`` has an error above the tolerance.

        A guarantee is about the target of its probe alone, such as forces. With
        ``stress`` the policy also covers runs whose cell moves (``moving_cell``): there
        RELIABLE needs both guarantees, each of which holds by itself. Without it such a
        run is at least SUSPECT.

        Parameters
        ----------
        probe : Probe
            The first probe of the calculator.
        stress : Probe, optional
            Its probe of the stress, if this is not the first one:
            ``ReliableCalculator(model, probe=[probe, stress])``.

        Raises
        ------
        ProbeError
            If a probe has no guarantee.
        ValueError
            If the target of ``stress`` is not the stress.
        """
        policy = probe.card.guarantee_policy()
        if stress is None:
            return policy
        if stress.card.target != "stress":
            msg = (
                "stress must be a probe of the target 'stress', got one of "
                f"{stress.card.target!r}; pass the probe of the forces first"
            )
            raise ValueError(msg)
        return cls(
            policy.thresholds, stress.card.guarantee_policy(STRESS_PROBE).thresholds
        )

    from_promise = Former("from_guarantee")


def _rows(thresholds: Sequence[Threshold]) -> list[dict[str, Any]]:
    rows = [asdict(threshold) for threshold in thresholds]
    for row in rows:
        if guarantee := row.pop("guarantee"):
            row["promise"] = guarantee  # the key in files
    return rows


def _thresholds(data: Iterable[Mapping[str, Any]]) -> list[Threshold]:
    rows = [dict(row) for row in data]
    return [Threshold(guarantee=row.pop("promise", ""), **row) for row in rows]


def _judged(thresholds: Sequence[Threshold], readings: Sequence[Reading]) -> Verdict:
    """Return the worst level over ``thresholds``, its reasons and skipped signals."""
    by_signal = {reading.signal: reading for reading in readings}
    worst = Level.RELIABLE
    reasons: list[str] = []
    skipped: list[str] = []
    by_risk: dict[str, Level] = {}
    for threshold in thresholds:
        reading = by_signal.get(threshold.signal)
        if reading is None:
            reading = _published(threshold.signal, readings)
        if reading is None:
            skipped.append(threshold.signal)
            continue
        level, why = threshold.judge(reading)
        by_risk[threshold.signal] = threshold.level(threshold.risk(reading))
        reasons += [*why, *_floor_reasons(reading)]
        worst = max(worst, level, reading.floor)
    return Verdict(worst, tuple(reasons), tuple(skipped), by_risk)


def _published(key: str, readings: Sequence[Reading]) -> Reading | None:
    """Return the value ``key`` of the results as a separate reading, or None."""
    for reading in readings:
        if key in reading.results:
            return Reading(key, float(reading.results[key]))
    return None


def _without_doubts_of_forces(reading: Reading) -> Reading:
    """Return the reading without the doubt that no force is left to judge."""
    if not any(doubt.startswith(NO_FORCES) for doubt in reading.doubts):
        return reading
    kept = tuple(d for d in reading.doubts if not d.startswith(NO_FORCES))
    return replace(reading, doubts=kept)


def extended(assessment: Assessment, reading: Reading) -> Assessment:
    """Return the assessment with one more reading.

    Doubts, faults and limits of that reading count as if it had ``always``.
    """
    verdict = assessment.verdict
    return Assessment(
        (*assessment.readings, reading),
        replace(
            verdict,
            level=max(verdict.level, reading.floor),
            reasons=(*verdict.reasons, *_floor_reasons(reading)),
        ),
    )


def _floor_reasons(reading: Reading) -> list[str]:
    """Return the reasons, apart from the risk, why a reading is not RELIABLE."""
    broken = [*reading.absurd, *reading.faults]
    reasons = [f"{reading.signal}: {'; '.join(broken)}"] if broken else []
    if outside := reading.out_of_scope:
        what = "; ".join(outside)
        if reading.always:
            return [*reasons, f"{reading.signal}: {what}"]
        far = "far " if reading.floor is Level.UNRELIABLE and not broken else ""
        reasons.append(f"{reading.signal}: {far}outside its calibration: {what}")
    return reasons
