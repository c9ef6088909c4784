"""`Monitor`: watches every step of a run, records it, and stops it when it must."""

from __future__ import annotations

import math
import os
import platform
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

import ase
import numpy as np
from ase import Atoms, units

from uqcalc.annotations import annotated_copy
from uqcalc.errors import UnreliableError
from uqcalc.eventlog import EventLog
from uqcalc.flagged import FrameFile
from uqcalc.records import Assessment, Level
from uqcalc.report import summarise


Action = Literal["halt", "raise", "warn"]

# These ignore the soft stop (their loop is not ASE's), so they are left by raising.
_NO_SOFT_STOP = {"SciPyOptimizer", "SciPyFminOptimizer", "ODE12r"}


@dataclass(frozen=True, slots=True)
class Event:
    """One monitored step, light enough to keep all of a long run in memory.

    ``time_fs`` and ``temperature_K`` are None for optimisers; ``energy_eV`` is the
    potential energy; ``readings`` maps each signal to its risk, ``values`` to the
    scalars of ``calc.results``; ``worst_atoms`` are indices, worst first.
    """

    step: int
    time_fs: float | None
    temperature_K: float | None  # noqa: N815  (the unit's own letter)
    energy_eV: float  # noqa: N815
    level: Level
    readings: dict[str, float]
    values: dict[str, float]
    reasons: tuple[str, ...]
    worst_atoms: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON record; what is not a number becomes null."""
        data = asdict(self) | {"event": "step", "level": self.level.name}
        for key in ("readings", "values"):
            data[key] = {k: finite_or_none(v) for k, v in data[key].items()}
        data["energy_eV"] = finite_or_none(self.energy_eV)
        return data


class Monitor:
    """ASE observer for molecular dynamics and optimisers; it attaches itself.

    Parameters
    ----------
    dynamics : ase MD or optimiser
        Its atoms must carry a `ReliableCalculator`.
    log : path, optional
        Event log: JSON lines, one record a step, flushed.
    flagged : path, optional
        Extended XYZ file for the UNRELIABLE frames, annotated, and the halting one.
    patience : int
        Consecutive UNRELIABLE frames before acting.
    window, fraction : int, float, optional
        Act instead when ``fraction`` of the last ``window`` frames are UNRELIABLE.
    on_unreliable : {"halt", "raise", "warn"} or callable
        Stop in that very step; raise `UnreliableError`; only log; or call with the
        monitor, after which the run goes on.
    mode : {"append", "new"}
        Continue existing files of the same run, or refuse any that exist.
    max_flagged : int
        Most frames in ``flagged``, the halting frame included.

    Attributes
    ----------
    halted : bool
    reason : str
        Why it last acted; empty if it never did.
    history : list of Event
    last : Assessment or None

    Raises
    ------
    ValueError
        For atoms without a `ReliableCalculator` or impossible settings.
    RecordError
        If existing files belong to another run.
    """

    def __init__(  # noqa: PLR0913  (what a user writes in one line of a script)
        self,
        dynamics: Any,
        *,
        log: str | os.PathLike[str] | None = None,
        flagged: str | os.PathLike[str] | None = None,
        patience: int = 1,
        window: int | None = None,
        fraction: float | None = None,
        on_unreliable: Action | Callable[[Monitor], object] = "halt",
        mode: Literal["append", "new"] = "append",
        max_flagged: int = 100,
    ) -> None:
        _check_settings(on_unreliable, mode)
        self.dynamics = dynamics
        self.trigger = Trigger(patience, window, fraction)
        self.on_unreliable = on_unreliable
        self.halted = False
        self.reason = ""
        self.history: list[Event] = []
        self.last: Assessment | None = None
        calculator = _calculator(self._atoms())
        header = {"run": self._run(calculator), "versions": _versions()}
        self.log = None if log is None else EventLog(log, header, mode)
        self.flagged = None if flagged is None else FrameFile(flagged, max_flagged, mode)
        last_step = self.log.last_step if self.log is not None else None
        self.first_step = (last_step or 0) - int(dynamics.nsteps)
        self._ended = False
        # First in line: trajectory and logger then also see the halting step.
        dynamics.insert_observer(self, position=0)

    def __call__(self) -> None:
        """Record first, then decide, so that the halting step is on disk."""
        atoms = self._atoms()
        assessment = self.last = _calculator(atoms).assess(atoms)
        event = self._event(atoms, assessment)
        self.history.append(event)
        self.halted = self._ended = False
        act = self.trigger(assessment)
        if self.log is not None:
            self.log.write(event.to_dict())
        if self.flagged is not None and (act or event.level is Level.UNRELIABLE):
            self.flagged.append(self.snapshot(), final=act)
        if act:
            self._act(event, assessment)
        elif getattr(self.dynamics, "dt", None) and self._complete():
            self.close()

    @property
    def step(self) -> int:
        """Step number of this run, counted on across restarts."""
        return self.first_step + int(self.dynamics.nsteps)

    def summary(self) -> str:
        """Say in a few lines what was watched, when and why it stopped, what next."""
        self.close()
        return summarise(self)

    def close(self) -> None:
        """Write the end record of a run that ended by itself; more steps may follow."""
        if self.log is not None and self.history and not self._ended:
            self._end("finished")

    def snapshot(self) -> Atoms:
        """Return an annotated copy of the geometry that was assessed last.

        Raises
        ------
        ValueError
            If nothing was assessed yet.
        """
        if self.last is None:
            msg = "monitor must have seen a step, got none; run the dynamics first"
            raise ValueError(msg)
        atoms = self._atoms()
        copy = annotated_copy(atoms, self.last, atoms.calc.results)
        copy.info["step"] = self.history[-1].step
        return copy

    def _complete(self) -> bool:
        return bool(self.dynamics.nsteps >= self.dynamics.max_steps)

    def _act(self, event: Event, assessment: Assessment) -> None:
        reasons = "; ".join(event.reasons)
        self.reason = f"{self.trigger.words()} at step {event.step}: {reasons}"
        self.trigger.clear()
        if callable(self.on_unreliable):
            self.on_unreliable(self)
            return
        if self.on_unreliable == "warn":
            if self.log is not None:
                self.log.write({"event": "warning", "step": event.step, **self._why()})
            return
        self.halted = True
        self._end("halted")
        names = {cls.__name__ for cls in type(self.dynamics).__mro__}
        if self.on_unreliable == "raise" or names & _NO_SOFT_STOP:
            raise UnreliableError(event.step, assessment)
        self.dynamics.max_steps = -1  # ends every loop of ASE in this very step

    def _why(self) -> dict[str, str]:
        return {"reason": self.reason}

    def _end(self, how: str) -> None:
        self._ended = True
        if self.log is None:
            return
        last = self.history[-1]
        counts = {level.name: 0 for level in Level}
        for event in self.history:
            counts[event.level.name] += 1
        record = {"event": "end", "how": how, "step": last.step, "levels": counts}
        if self.flagged is not None:
            record["flagged_written"] = self.flagged.written
            record["flagged_left_out"] = self.flagged.left_out
        self.log.write(record | (self._why() if self.reason else {}))

    def _event(self, atoms: Atoms, assessment: Assessment) -> Event:
        timestep = getattr(self.dynamics, "dt", None)
        is_md = timestep is not None
        results = assessment.results()
        return Event(
            step=self.step,
            time_fs=self.step * float(timestep) / units.fs if is_md else None,
            temperature_K=float(atoms.get_temperature()) if is_md else None,
            energy_eV=float(atoms.calc.results["energy"]),
            level=assessment.level,
            readings={r.signal: r.risk for r in assessment.readings},
            values={k: float(v) for k, v in results.items() if np.ndim(v) == 0},
            reasons=assessment.verdict.reasons,
            worst_atoms=tuple(assessment.worst_atoms()),
        )

    def _atoms(self) -> Atoms:
        watched = self.dynamics.atoms
        while not isinstance(watched, Atoms) and hasattr(watched, "atoms"):
            watched = watched.atoms  # a Filter: the structure is inside
        if not isinstance(watched, Atoms):
            msg = (
                "dynamics must move one structure, got "
                f"{type(watched).__name__}; for a band, monitor its images' calculators"
            )
            raise TypeError(msg)
        return watched

    def _run(self, calculator: Any) -> dict[str, Any]:
        atoms = self._atoms()
        about = calculator.describe()
        return about | {
            "dynamics": type(self.dynamics).__name__,
            "formula": str(atoms.symbols),
        }


class Trigger:
    """When enough frames are UNRELIABLE to act: a streak, or a share of a window.

    A frame on which a judged signal did not run neither ends nor lengthens a
    streak, unless the signals that did run say UNRELIABLE.
    """

    def __init__(
        self, patience: int = 1, window: int | None = None, fraction: float | None = None
    ) -> None:
        if patience < 1:
            msg = f"patience must be at least 1 frame, got {patience}"
            raise ValueError(msg)
        if (window is None) != (fraction is None):
            msg = (
                "window and fraction must be given together, got "
                f"window={window} and fraction={fraction}"
            )
            raise ValueError(msg)
        if window is not None and fraction is not None:
            if window < 1 or not 0 < fraction <= 1:
                msg = (
                    "window must be at least 1 and fraction in (0, 1], got "
                    f"window={window} and fraction={fraction}"
                )
                raise ValueError(msg)
            self.needed = max(1, math.ceil(fraction * window - 1e-9))
        self.patience, self.window = patience, window
        self._recent: deque[bool] = deque(maxlen=window or patience)

    def __call__(self, assessment: Assessment) -> bool:
        """Take note of one frame; say whether to act now."""
        bad = assessment.level is Level.UNRELIABLE
        if assessment.verdict.skipped and not bad:
            return False
        self._recent.append(bad)
        if self.window is None:
            return len(self._recent) == self.patience and all(self._recent)
        return len(self._recent) == self.window and sum(self._recent) >= self.needed

    def clear(self) -> None:
        """Forget the frames so far."""
        self._recent.clear()

    def words(self) -> str:
        """Say what was waited for."""
        if self.window is not None:
            return f"{self.needed} of {self.window} frames UNRELIABLE"
        if self.patience == 1:
            return "UNRELIABLE"
        return f"UNRELIABLE for {self.patience} frames in a row"


def finite_or_none(value: float) -> float | None:
    """Return ``value``, or None for NaN and infinities, which JSON lacks."""
    return value if math.isfinite(value) else None


def _calculator(atoms: Atoms) -> Any:
    calculator = atoms.calc
    if not hasattr(calculator, "assess"):
        msg = (
            "atoms must carry a ReliableCalculator, got "
            f"{type(calculator).__name__}; set atoms.calc = ReliableCalculator(...)"
        )
        raise ValueError(msg)
    return calculator


def _check_settings(on_unreliable: object, mode: str) -> None:
    if not callable(on_unreliable) and on_unreliable not in {"halt", "raise", "warn"}:
        msg = (
            "on_unreliable must be 'halt', 'raise', 'warn' or a callable, got "
            f"{on_unreliable!r}"
        )
        raise ValueError(msg)
    if mode not in {"append", "new"}:
        msg = f"mode must be 'append' or 'new', got {mode!r}"
        raise ValueError(msg)


def _versions() -> dict[str, str]:
    packages = {"uqcalc": version("uqcalc"), "ase": ase.__version__}
    return packages | {"numpy": np.__version__, "python": platform.python_version()}
