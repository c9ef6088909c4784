"""Frozen records of readings, verdicts and monitored steps; numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from uqcalc.htmltable import html_table
from uqcalc.showing import in_words


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Number = TypeVar("Number", default=float)
else:
    from typing import TypeVar

    Number = TypeVar("Number")

SANITY = "sanity"  # name of the signal `uqcalc.Sanity`


class Level(IntEnum):
    """How far a prediction may be trusted, in increasing severity."""

    RELIABLE = 0
    SUSPECT = 1
    UNRELIABLE = 2


def key_of(signal: str, what: str) -> str:
    """Return the key of ``calc.results`` for one number of a signal.

    Further probes have their target at the end of every key.

    Examples
    --------
    >>> key_of("probe", "reliability"), key_of("probe_stress", "reliability")
    ('probe_reliability', 'probe_reliability_stress')
    """
    target = signal.removeprefix("probe") if signal.startswith("probe_") else ""
    return f"{signal.removesuffix(target) if target else signal}_{what}{target}"


def told_apart(one: float, other: float, *, digits: int = 3) -> tuple[str, str]:
    """Format two numbers with as few digits as make them differ, from ``digits``.

    Numbers that are equal in 17 digits give the same text.
    """
    for count in range(digits, 18):
        first, second = f"{one:.{count}g}", f"{other:.{count}g}"
        if first != second:
            return first, second
    return f"{one:.{digits}g}", f"{other:.{digits}g}"


@dataclass(frozen=True, slots=True, eq=False)
class Reading(Generic[Number]):
    """The result of one signal for one geometry.

    A signal may return a reading with ``risk`` and ``results`` as tensors on its device
    (`uqcalc.types.TensorReading`); `uqcalc.signals.base.to_host` copies the tensors of
    all readings of a step to the host at once. The properties are for readings on the
    host.

    Attributes
    ----------
    signal : str
        Name of the signal.
    risk : float or tensor ()
        Larger means less reliable, for every signal; NaN means UNRELIABLE.
    unit : str
        Unit of ``risk``; empty for a probability.
    results : mapping
        Entries for ``calc.results``: floats and arrays, or tensors, of shape (atoms,)
        or (atoms, k).
    per_atom_key : str or None
        Key of ``results`` that holds the weight of each atom, shape (atoms,).
    note : str
        The reason, if ``risk`` is NaN.
    limits : mapping
        Key of ``results`` -> value above which the geometry is outside the calibration
        of the signal and at least SUSPECT. NaN counts as above.
    far_limits : mapping
        Key of ``results`` -> value above which the geometry is far outside and
        UNRELIABLE. NaN counts as above.
    doubts : tuple of str
        Other reasons for at least SUSPECT.
    unlabelled : tuple of str
        Further reasons for at least SUSPECT: no labelled structure was like this one.
    faults : tuple of str
        Other reasons for UNRELIABLE.
    absurd : tuple of str
        Reasons for UNRELIABLE that stop a run at this step.
    always : bool
        Whether doubts, faults and limits count in every policy, even without a
        threshold for this signal.
    meaning : str
        The event with probability 1 - risk, with its boundary and unit:
        "P(RMS force error <= 38 meV/Å)". Empty if the risk is not a probability.
    atoms : tuple of int or None
        Indices of the atoms that the risk is about; None for the whole structure.
    regime : str
        Regime of the structure, and whether the probes are validated there; empty if
        unknown.
    concern : tuple (float, str) or None
        Limit and reason. A risk above the limit, or NaN, makes the verdict at least
        SUSPECT in every policy, also where another quantity is judged.
    """

    signal: str
    risk: Number
    unit: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
    per_atom_key: str | None = None
    note: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)
    far_limits: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    absurd: tuple[str, ...] = ()
    always: bool = False
    meaning: str = ""
    atoms: tuple[int, ...] | None = None
    regime: str = ""
    concern: tuple[float, str] | None = None

    def on_host(self, risk: float, results: Mapping[str, Any]) -> Reading:
        """Return the same reading with these numbers in place of its tensors."""
        # faster than `dataclasses.replace`: this is part of every step
        return Reading(self.signal, risk, self.unit, results, *_others(self))

    @property
    def floor(self) -> Level:
        """Lowest possible level of the verdict, for any risk."""
        if self.absurd or self.faults or self._beyond(self.far_limits):
            return Level.UNRELIABLE
        return Level.SUSPECT if self.out_of_scope else Level.RELIABLE

    @property
    def out_of_scope(self) -> tuple[str, ...]:
        """Exceeded limits and doubts, in words with numbers; otherwise empty.

        NaN exceeds every limit.
        """
        return self._beyond(self.limits) + self.doubts + self.unlabelled

    @property
    def concerns(self: Reading[float]) -> tuple[str, ...]:
        """The reason in ``concern`` with the risk, if NaN or above the limit."""
        if self.concern is None or self.risk <= self.concern[0]:
            return ()
        name = self.meaning or "reliability"
        found = f"= {1 - self.risk:.2g}"
        if math.isnan(self.risk):
            found = f"is not known ({self.note or 'NaN'})"
        return (f"{self.concern[1]}, and {name} {found}",)

    def _beyond(self, limits: Mapping[str, float]) -> tuple[str, ...]:
        return tuple(
            "{} {} > {}".format(key, *told_apart(float(self.results[key]), limit))
            for key, limit in limits.items()
            if not self.results[key] <= limit
        )

    @property
    def per_atom(self) -> np.ndarray | None:
        """Weight of each atom in this reading, shape (atoms,), or None."""
        if self.per_atom_key is None:
            return None
        return np.asarray(self.results[self.per_atom_key])

    @property
    def risk_per_atom(self) -> np.ndarray | None:
        """Risk of each atom, (atoms,), larger is worse; None if it is not known.

        It is 1 - P(reliable) where the signal has a probability for each atom, and
        `per_atom` otherwise. For a probe without probabilities of atoms that is the
        attention (``probe_importance``).
        """
        reliabilities = self.results.get(key_of(self.signal, "reliabilities"))
        if reliabilities is not None:
            return 1.0 - np.asarray(reliabilities)
        return self.per_atom


# The entries of a reading after signal, risk, unit and results.
_others = attrgetter(*[entry.name for entry in fields(Reading)[4:]])


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst level over all thresholds, and the reasons for it.

    Attributes
    ----------
    level : Level
    reasons : tuple of str
        One text for each reason, in words with numbers.
    skipped : tuple of str
        Signals with a threshold that did not run on this geometry.
    by_risk : mapping
        Signal with a threshold -> level that its risk alone gives, without the limits,
        doubts and faults of any signal.
    """

    level: Level
    reasons: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    by_risk: Mapping[str, Level] = field(
        default_factory=dict, compare=False, repr=False
    )


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """All readings of one geometry, and the verdict."""

    readings: tuple[Reading, ...]
    verdict: Verdict

    @property
    def level(self) -> Level:
        """The verdict's level."""
        return self.verdict.level

    @property
    def regime(self) -> str:
        """Regime of the structure, and whether the probes are validated there.

        Such as "near-equilibrium: validated to 0.2 eV/Å (90 % right)" or "reactive: no
        labels". Empty without `Flags`, and for probes of earlier versions, which do not
        list the regimes of their labels.
        """
        return next((r.regime for r in self.readings if r.regime), "")

    @property
    def absurd(self) -> tuple[str, ...]:
        """Reasons to stop a run at this step, for any patience."""
        return tuple(why for reading in self.readings for why in reading.absurd)

    @property
    def impossible(self) -> bool:
        """Whether geometry, energy or forces are physically impossible.

        A reference calculation of such a frame is of no use.
        """
        broken = any(r.faults for r in self.readings if r.signal == SANITY)
        return broken or bool(self.absurd)

    def __str__(self) -> str:
        regime = [f"regime {self.regime}"] if self.regime else []
        parts = "; ".join([*self.verdict.reasons, *regime])
        return f"{self.level.name}: {parts}" if parts else self.level.name

    def __repr__(self) -> str:
        risks = ", ".join(f"{name} {risk}" for name, risk in self._risks())
        return f"<Assessment {self}{f' (risks: {risks})' if risks else ''}>"

    def _repr_html_(self) -> str:
        reasons = [("reason", reason) for reason in self.verdict.reasons]
        rows = [("level", self.level.name), *reasons]
        rows += [("regime", self.regime)] if self.regime else []
        rows += [(f"risk of {name}", risk) for name, risk in self._risks()]
        return html_table("Assessment", rows)

    def _risks(self) -> list[tuple[str, str]]:
        return [(r.signal, in_words(r.risk, r.unit, digits=3)) for r in self.readings]

    def reading(self, signal: str) -> Reading:
        """Return the reading of ``signal``.

        Raises
        ------
        KeyError
            If that signal did not run on this geometry.
        """
        for reading in self.readings:
            if reading.signal == signal:
                return reading
        names = [reading.signal for reading in self.readings]
        msg = f"signal must be one of {names}, got {signal!r}"
        raise KeyError(msg)

    def results(self) -> dict[str, Any]:
        """Return the entries that are added to ``calc.results``."""
        merged: dict[str, Any] = {}
        for reading in self.readings:
            merged.update(reading.results)
        merged["reliability_level"] = int(self.level)
        return merged

    def worst_atoms(self, count: int = 5) -> list[int]:
        """Return the indices of the ``count`` atoms of largest risk, worst first.

        The risks are `Reading.risk_per_atom` of the first reading that has them; for a
        probe the worst atoms are those of lowest reliability. NaN is worst. If that
        reading is about chosen atoms, only these are listed. The list is empty if no
        reading has any.
        """
        for reading in self.readings:
            risks = reading.risk_per_atom
            if risks is not None:
                given = reading.atoms
                chosen = np.arange(len(risks)) if given is None else np.array(given)
                own = np.nan_to_num(risks[chosen], nan=np.inf)
                order = chosen[np.argsort(-own, kind="stable")]
                return [int(i) for i in order[:count]]
        return []


@dataclass(frozen=True, slots=True)
class Event:
    """One monitored step, small enough to keep a long run in memory.

    ``time_fs`` and ``temperature_K`` are None for optimisers, the temperature also
    where the velocities are not known; ``energy_eV`` is the potential energy; ``level``
    is None if the geometry was not judged; ``readings`` maps each signal to its risk;
    ``values`` holds the scalars of ``calc.results`` by key; ``worst_atoms`` are
    indices, worst first. ``ask`` is the rule by which to ask a reference for this
    geometry (`uqcalc.asking.RULES`), and ``ask_why`` says it in a sentence; both are
    empty if no rule is met.
    """

    step: int
    time_fs: float | None
    temperature_K: float | None
    energy_eV: float
    level: Level | None
    readings: dict[str, float]
    values: dict[str, float]
    reasons: tuple[str, ...]
    worst_atoms: tuple[int, ...]
    ask: str = field(default="", kw_only=True)
    ask_why: str = field(default="", kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the record for the event log, without an empty ``ask``."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        if not self.ask:
            del entries["ask"], entries["ask_why"]
        level = None if self.level is None else self.level.name
        return entries | {"event": "step", "level": level}


@dataclass(frozen=True, slots=True)
class BandEvent(Event):
    """One step of a band of images (NEB); the worst image decides its level.

    ``energy_eV`` is the energy of the highest image, ``energies_eV`` the energy of each
    image. ``image`` is the index of the worst image (None if none was judged), with
    its ``readings``, ``values``, ``reasons`` and ``worst_atoms``. ``levels`` holds the
    level of each image, None if it was not judged. ``barrier_eV`` and ``barrier`` are
    as in `uqcalc.watching.band.BandAssessment`.
    """

    image: int | None
    levels: tuple[Level | None, ...]
    energies_eV: tuple[float, ...]
    barrier_eV: float
    barrier: Level

    def to_dict(self) -> dict[str, Any]:
        """Return the record for the event log."""
        levels = [None if level is None else level.name for level in self.levels]
        more = {"levels": levels, "barrier": self.barrier.name}
        return Event.to_dict(self) | more


def checked_interval(value: int, name: str) -> int:
    """Return ``value`` if it is an integer of at least 1.

    Raises
    ------
    ValueError
        If it is not; the message calls the value ``name``.
    """
    given: object = value
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        msg = (
            f"{name} must be a whole number of at least 1, got {value!r}; 1 means "
            "every geometry"
        )
        raise ValueError(msg)
    return value
