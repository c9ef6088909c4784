"""The course of a run in columns: what pictures, reports and live views draw."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from ase import units
from ase.formula import Formula
from numpy.typing import NDArray

from uqcalc.plotting.style import shown_formula
from uqcalc.records import Event, Level, key_of


# Limits of every probe on `probe_novelty` (`uqcalc.probe.scope`): SUSPECT, UNRELIABLE.
NOVELTY_LIMITS = (1.0, 4.0)
# Signals whose risk has a unit; all others are pure numbers here.
_UNITS = {
    "force_delta": "eV/Å",
    "committee": "eV/Å",
    "functional_spread": "eV/Å",
}
# Dynamics of ASE that keep the total energy.
_CONSERVING = ("VelocityVerlet",)
_KINDS = {"warning": "warning", "rewind": "rewind", "asked": "asked"}


class Mark(NamedTuple):
    """An event of a run at one step, such as a halt.

    Attributes
    ----------
    step : int
    kind : {"halt", "warning", "rewind", "asked"}
    reason : str
    to_step : int or None
        Step to which a rewind went back.
    """

    step: int
    kind: str
    reason: str
    to_step: int | None = None


class Signal(NamedTuple):
    """The risk of one signal along a run, with the limits of the policy.

    Attributes
    ----------
    name : str
    unit : str
        Unit of ``values`` and of the limits; empty for a pure number.
    values : array (steps,)
        NaN where the signal did not run.
    suspect, unreliable : float
        Above these the level is SUSPECT or UNRELIABLE.
    """

    name: str
    unit: str
    values: NDArray[np.float64]
    suspect: float
    unreliable: float


@dataclass(frozen=True, eq=False)
class Track:
    """Columns of the steps of one run.

    Attributes
    ----------
    step : integer array (steps,)
        Increasing.
    time_fs, temperature_K, energy_eV : arrays (steps,)
        NaN for what a step lacks; ``energy_eV`` is the potential energy.
    level : array (steps,)
        Number of the `Level`; NaN where the step was not judged.
    readings, values : mapping of str to array (steps,)
        Risk of each signal, and other numbers of ``calc.results``; NaN if missing.
    marks : tuple of Mark
    run : mapping
        The entry ``run`` of the log's header; empty if unknown.
    total : int
        Number of steps before `thinned`.
    """

    step: NDArray[np.int64]
    time_fs: NDArray[np.float64]
    temperature_K: NDArray[np.float64]
    energy_eV: NDArray[np.float64]
    level: NDArray[np.float64]
    readings: Mapping[str, NDArray[np.float64]]
    values: Mapping[str, NDArray[np.float64]]
    marks: tuple[Mark, ...]
    run: Mapping[str, Any]
    total: int

    @classmethod
    def of(cls, history: Track | Iterable[Event | Mapping[str, Any]]) -> Track:
        """Return the track of events, or of the records of `read_log`.

        A step that is logged again, as by a run that continues after a kill, replaces
        the earlier record of it and of all later steps.
        """
        if isinstance(history, Track):
            return history
        rows = Rows()
        for record in history:
            rows.add(record.to_dict() if isinstance(record, Event) else record)
        return rows.track()

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.step)

    @cached_property
    def timed(self) -> bool:
        """Whether the steps have a time; those of an optimiser have none."""
        return bool(len(self)) and bool(np.isfinite(self.time_fs).all())

    @cached_property
    def x(self) -> NDArray[np.float64]:
        """Time in ps, or the step number for an optimiser; (steps,)."""
        return self.time_fs / 1000 if self.timed else self.step.astype(float)

    @property
    def axis(self) -> tuple[str, str]:
        """Name and unit of `x`."""
        return ("time", "ps") if self.timed else ("step", "")

    def place(self, step: int) -> float:
        """Return the place of a step on the axis of `x`; NaN for an empty track."""
        if not len(self):
            return math.nan
        return float(np.interp(step, self.step, self.x))

    @cached_property
    def atoms(self) -> int | None:
        """Number of atoms, from the formula in the header; None if unknown."""
        try:
            return len(Formula(str(self.run["formula"])))
        except (KeyError, ValueError):
            return None

    @property
    def formula(self) -> str:
        """Formula, C and H or metals first; empty if unknown."""
        return shown_formula(str(self.run.get("formula", "")))

    @cached_property
    def drift_meV(self) -> NDArray[np.float64]:
        """Change of the total energy since the first step in meV/atom, (steps,).

        The kinetic energy is 3/2 N k T: that of a run without constraints. NaN for an
        optimiser, and if the number of atoms is unknown.
        """
        if self.atoms is None or not len(self):
            return np.full(len(self), np.nan)
        kinetic = 1.5 * self.atoms * units.kB * self.temperature_K
        total = self.energy_eV + kinetic
        return np.asarray(1000 * (total - total[0]) / self.atoms)

    @property
    def conserves(self) -> bool:
        """Whether the dynamics should keep the total energy."""
        return self.run.get("dynamics") in _CONSERVING

    @cached_property
    def probabilities(self) -> dict[str, Signal]:
        """P(reliable) of each probe by signal, with its two cutoffs as limits.

        P below ``suspect`` is SUSPECT, below ``unreliable`` UNRELIABLE; both are NaN if
        the policy has no threshold for the probe.
        """
        limits = self._limits
        found = {}
        for name, risk in self.readings.items():
            given = self.values.get(key_of(name, "reliability"))
            if not name.startswith("probe") or given is None:
                continue
            cutoffs = limits.get(name, (math.nan, math.nan))
            found[name] = Signal(name, "", 1 - risk, 1 - cutoffs[0], 1 - cutoffs[1])
        return found

    @cached_property
    def signals(self) -> list[Signal]:
        """All other signals and values with limits, in the order of the policy."""
        found = []
        for name, (suspect, unreliable) in self._limits.items():
            column = self.readings.get(name, self.values.get(name))
            if name in self.probabilities or column is None:
                continue
            unit = _UNITS.get(name, "")
            found.append(Signal(name, unit, column, suspect, unreliable))
        for name, column in self.values.items():
            if "_novelty" in name and name not in self._limits:
                found.append(Signal(name, "", column, *NOVELTY_LIMITS))
        return found

    @cached_property
    def _limits(self) -> dict[str, tuple[float, float]]:
        policy = self.run.get("policy") or {}
        rows = [*policy.get("thresholds", ()), *policy.get("moving_cell", ())]
        return {
            row["signal"]: (_number(row["suspect"], math.inf),
                            _number(row["unreliable"], math.inf))
            for row in rows
        }  # fmt: skip

    @property
    def lowest(self) -> NDArray[np.float64]:
        """Lowest P of all probes at each step, (steps,); NaN without a probe."""
        columns = [p.values for p in self.probabilities.values()]
        if not columns:
            return np.full(len(self), np.nan)
        return np.asarray(np.fmin.reduce(columns))

    def thinned(self, most: int) -> Track:
        """Return a track of at most about ``most`` steps.

        Kept are the first and the last step, every change of the level (at most a third
        of ``most``), the lowest P in each of ``most / 3`` intervals, and evenly spaced
        steps for the rest.
        """
        if len(self) <= most:
            return self
        part = max(most // 3, 1)
        level = np.nan_to_num(self.level, nan=-1.0)
        changes = np.flatnonzero(np.diff(level)) + 1
        if len(changes) > part:
            changes = changes[_even(len(changes), part)]
        low = np.nan_to_num(self.lowest, nan=np.inf)
        edges = np.linspace(0, len(self), part + 1).astype(int)
        worst = [a + int(np.argmin(low[a:b])) for a, b in pairwise(edges)]
        kept = np.unique(np.concatenate([_even(len(self), part), changes, worst]))
        return self._at(kept.astype(np.int64))

    def _at(self, rows: NDArray[np.int64]) -> Track:
        columns = ("step", "time_fs", "temperature_K", "energy_eV", "level")
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in columns},
            readings={k: v[rows] for k, v in self.readings.items()},
            values={k: v[rows] for k, v in self.values.items()},
        )


class Rows:
    """Collects the records of one log, in order.

    Parameters
    ----------
    most : int or None
        Thin whenever twice as many steps are held; None keeps all.

    Attributes
    ----------
    run : dict
        The entry ``run`` of the last header.
    end : mapping or None
        The end record; None while the run goes on.
    last : mapping or None
        The last step record.
    recent : deque of Level or None
        Levels of the last 64 steps.
    total : int
        Number of steps added.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self.run: dict[str, Any] = {}
        self.end: Mapping[str, Any] | None = None
        self.last: Mapping[str, Any] | None = None
        self._steps: list[Mapping[str, Any]] = []
        self._held: Track | None = None
        self._marks: list[Mark] = []
        self.recent: deque[Level | None] = deque(maxlen=64)
        self.total = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Take the next record; records of unknown kinds are passed over."""
        kind = record.get("event")
        if kind == "header":
            self.run = record.get("run") or {}
            self.end = None
        elif kind == "step":
            self._add_step(record)
        elif kind == "end":
            self.end = record
            if record.get("how") == "halted":
                self._mark(record, "halt")
        elif kind in _KINDS:
            self._mark(record, _KINDS[kind])

    def _add_step(self, record: Mapping[str, Any]) -> None:
        self.end = None
        step = record["step"]
        if self.last is not None and self.last["step"] >= step:
            self._go_back(step)
        self.last = record
        level = record.get("level")
        self.recent.append(None if level is None else Level[level])
        self._steps.append(record)
        self.total += 1
        if self._most is not None and len(self._steps) >= self._most:
            self._held = self.track().thinned(self._most)
            self._steps.clear()

    def _go_back(self, step: int) -> None:
        """Drop the records of ``step`` and later: the run continued from before."""
        while self._steps and self._steps[-1]["step"] >= step:
            self._steps.pop()
            self.total -= 1
        self._marks = [mark for mark in self._marks if mark.step < step]
        held = self._held
        if held is not None and len(held) and held.step[-1] >= step:
            self._held = held._at(np.flatnonzero(held.step < step))

    def _mark(self, record: Mapping[str, Any], kind: str) -> None:
        step = record.get("step")
        if isinstance(step, int):
            reason = str(record.get("reason") or record.get("words") or "")
            self._marks.append(Mark(step, kind, reason, record.get("to_step")))

    def track(self) -> Track:
        """Return the columns of all steps held."""
        steps = self._steps
        new = Track(
            np.array([r["step"] for r in steps], dtype=np.int64),
            _column(steps, "time_fs"),
            _column(steps, "temperature_K"),
            _column(steps, "energy_eV"),
            np.array([_level(r.get("level")) for r in steps], dtype=float),
            _columns(steps, "readings"),
            _columns(steps, "values"),
            tuple(self._marks),
            self.run,
            self.total,
        )
        return new if self._held is None else _joined(self._held, new)


def _joined(first: Track, second: Track) -> Track:
    columns = ("step", "time_fs", "temperature_K", "energy_eV", "level")
    both: dict[str, Any] = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in columns
    }
    for name in ("readings", "values"):
        one, other = getattr(first, name), getattr(second, name)
        both[name] = {
            key: np.concatenate(
                [
                    one.get(key, np.full(len(first), np.nan)),
                    other.get(key, np.full(len(second), np.nan)),
                ]
            )
            for key in {**one, **other}
        }
    return replace(second, **both)


def _column(records: list[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([_number(r.get(name), math.nan) for r in records], dtype=float)


def _columns(
    records: list[Mapping[str, Any]], name: str
) -> dict[str, NDArray[np.float64]]:
    keys = dict.fromkeys(key for r in records for key in r.get(name) or ())
    return {
        key: np.array(
            [_number((r.get(name) or {}).get(key), math.nan) for r in records],
            dtype=float,
        )
        for key in keys
    }


def _number(value: object, missing: float) -> float:
    """Return a number of a record; null (None) stands for NaN or infinity."""
    return float(value) if isinstance(value, (int, float)) else missing


def _level(value: str | None) -> float:
    return math.nan if value is None else float(Level[value])


def _even(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` evenly spaced indices, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))
