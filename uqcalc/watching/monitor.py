"""`Monitor`: watches every step of a run, records it, and stops it when it must."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.md.md import MolecularDynamics
from ase.optimize.basin import BasinHopping
from ase.optimize.sciopt import SciPyGradientlessOptimizer, SciPyOptimizer

from uqcalc.annotating.copies import annotated_copy, drop_labels
from uqcalc.annotating.frames import cut_frames
from uqcalc.errors import UnreliableError
from uqcalc.records import Assessment, Event, Level
from uqcalc.watching.circumstances import Circumstances
from uqcalc.watching.eventlog import EventLog, read_standing, versions
from uqcalc.watching.flagged import FrameFile
from uqcalc.watching.history import KEPT, History
from uqcalc.watching.outputs import Outputs
from uqcalc.watching.report import summarise
from uqcalc.watching.trigger import Trigger
from uqcalc.watching.watched import (
    counts_steps,
    has_converged,
    is_complete,
    is_finite,
    judging_calculator,
    timestep_fs,
    watched_atoms,
)


Action = Literal["halt", "raise", "warn"]
LOST = "Energy, forces or a moving cell's stress are not numbers"
ABSURD = "Beyond all physics"

# Their loop is not ASE's and ignores the soft stop, so they are left by raising.
_NO_SOFT_STOP = (SciPyOptimizer, SciPyGradientlessOptimizer, BasinHopping)


class Monitor:
    """ASE observer for molecular dynamics and optimisers; it attaches itself.

    Of a `BasinHopping` each new lowest minimum is watched and counts as a step; it is
    halted by `UnreliableError`, as SciPy's optimisers are.

    Parameters
    ----------
    dynamics : ase MD or optimiser
        Its atoms must carry a `ReliableCalculator`.
    log : path, optional
        Event log: JSON lines, one record a step, on disk before the next one. A
        continued log counts on from its last step, which is taken to be the geometry
        that the continued run starts from.
    flagged : path, optional
        Extended XYZ file for the UNRELIABLE frames, annotated, and the halting one.
    patience : int, optional
        Consecutive UNRELIABLE frames before acting. By default `Trigger.usual`: half
        of the last 50 fs, or three frames in a row of an optimiser.
    window, fraction : int, float, optional
        Act instead as soon as UNRELIABLE frames cover ``fraction`` of the last
        ``window`` steps; a frame stands for the steps until the next one is judged.
    on_unreliable : {"halt", "raise", "warn"} or callable
        What to do then, and at once where there is nothing to wait for: numbers that
        are none, or what is beyond all physics (`uqcalc.Sanity` and
        `uqcalc.watching.circumstances`). Stop in that very step; raise
        `UnreliableError`; only log; or call with the monitor, after which the run goes
        on.
    mode : {"append", "new"}
        Continue existing files of the same run, or refuse any that exist.
    max_flagged : int
        Most frames in ``flagged``, the halting frame included.
    about : mapping, optional
        JSON-able, for the header of the log; only a run about the same continues it.
    first_step : int, optional
        For a run that was killed and goes on from a saved geometry: its step number.
        What existing files hold of that step and later ones no longer stands.
    history : int or None
        How many of the last events to keep in memory, at most 18 MB by default; None
        for all of them, without end. The log has all, whatever is kept.

    Attributes
    ----------
    halted : bool
    reason : str
        Why it last acted; empty if it never did.
    acted_on : Event or None
        The step on which it last acted.
    history : History
        A sequence of the last `Event` records; it has counted those before, too.
    last : Assessment or None
    end : dict or None
        The end record, once there is one; None as soon as the run goes on.

    Raises
    ------
    ValueError
        For atoms without a `ReliableCalculator` or impossible settings.
    RecordError
        If existing files belong to another run, or another process, or a monitor of
        this one that was not closed, writes them. A file that cannot be written later
        on ends no run: the summary and the end record say what is missing.
    """

    def __init__(  # noqa: PLR0913  (what a user writes in one line of a script)
        self,
        dynamics: Any,
        *,
        log: str | os.PathLike[str] | None = None,
        flagged: str | os.PathLike[str] | None = None,
        patience: int | None = None,
        window: int | None = None,
        fraction: float | None = None,
        on_unreliable: Action | Callable[[Monitor], object] = "halt",
        mode: Literal["append", "new"] = "append",
        max_flagged: int = 100,
        about: Mapping[str, Any] | None = None,
        first_step: int | None = None,
        history: int | None = KEPT,
    ) -> None:
        _check_settings(on_unreliable, mode)
        self.dynamics = dynamics
        if patience is None and window is None and fraction is None:
            self.trigger = Trigger.usual(timestep_fs(dynamics))
        else:
            self.trigger = Trigger(
                1 if patience is None else patience, window, fraction
            )
        self.on_unreliable = on_unreliable
        self.halted = False
        self.reason = ""
        self.acted_on: Event | None = None
        self.history = History(history)
        self.last: Assessment | None = None
        self._judged: Assessment | None = None  # the calculator's own part of it
        self._calls = 0
        self._is_md = isinstance(dynamics, MolecularDynamics)
        calculator = judging_calculator(watched_atoms(dynamics))
        self._circumstances = Circumstances(
            dynamics, calculator.signals, calculator.policy.signals
        )
        _check_paths(log, flagged)
        self.flagged = (
            None if flagged is None else FrameFile(flagged, max_flagged, mode)
        )
        run = self._run(calculator) | ({} if about is None else {"about": dict(about)})
        header = {"run": run, "versions": versions()}
        self.log = None if log is None else EventLog(log, header, mode)
        last_step = None if self.log is None else self.log.last_step
        self._offset = 0 if last_step is None else last_step - int(dynamics.nsteps)
        self.first_step = first_step
        if first_step is not None:
            self._go_back(first_step, calculator.policy.signals)
        self.end: dict[str, Any] | None = None
        self.outputs = Outputs(self.log, self.flagged)
        self.outputs.hold()
        # First in line: trajectory and logger then also see the halting step.
        dynamics.insert_observer(self, position=0)

    def __call__(self) -> None:
        """Record first, then decide, so that the halting step is on disk."""
        self._calls += 1
        self.outputs.hold()
        atoms = watched_atoms(self.dynamics)
        judged = self._judged = judging_calculator(atoms).assess(atoms)
        assessment = self.last = self._circumstances(atoms, judged)
        event = self._event(atoms, assessment)
        self.history.append(event)
        self.halted, self.end = False, None
        # the next geometry would have no number in it, whatever the patience
        moves_cell = self._circumstances.moves_cell(atoms)
        lost = not is_finite(atoms.calc.results, stress=moves_cell)
        stop = lost or bool(assessment.absurd)
        act = self.trigger(assessment, self.step) or stop
        self.outputs.record(event.to_dict())
        if event.level is Level.UNRELIABLE:
            self.outputs.flag(self.snapshot, final=act)
        if act:
            absurd = ABSURD if assessment.absurd else self.trigger.words()
            self._act(event, assessment, LOST if lost else absurd)
        if is_complete(self.dynamics):
            self.close()

    @property
    def step(self) -> int:
        """Step number of this run, counted on across restarts."""
        if not counts_steps(self.dynamics):  # then by what was watched
            return self._offset + max(0, self._calls - 1)
        return self._offset + int(self.dynamics.nsteps)

    def summary(self) -> str:
        """Say in a few lines what was watched, when and why it stopped, what next."""
        return summarise(
            self.history,
            self.acted_on,
            halted=self.halted,
            reason=self.reason,
            outputs=self.outputs,
            first_step=self.first_step,
        )

    def close(self) -> None:
        """Write the end record if it is not there yet; more steps may follow.

        Runs that are halted, converge or use up their steps need no call; it is for
        loops that are left early, over ``dynamics.irun()`` for instance.
        """
        if self.history and self.end is None:
            self._end("finished")
        self.outputs.rest()

    def counts(self) -> dict[Level, int]:
        """Return how many of the watched frames had each level."""
        return self.history.counts()

    def snapshot(self) -> Atoms:
        """Return an annotated copy of the geometry that was assessed last.

        Raises
        ------
        ValueError
            If nothing was assessed yet, or the atoms have moved on since.
        """
        if self.last is None:
            msg = "monitor must have seen a step, got none; run the dynamics first"
            raise ValueError(msg)
        atoms = watched_atoms(self.dynamics)
        if atoms.calc.assessment is not self._judged or atoms.calc.check_state(atoms):
            msg = (
                f"atoms must be as they were at step {self.history[-1].step}, got "
                "others; take snapshots from an observer or right after run()"
            )
            raise ValueError(msg)
        copy = annotated_copy(atoms, self.last, atoms.calc.results)
        drop_labels(copy)  # of the geometry that the run began with
        copy.info["step"] = self.history[-1].step
        return copy

    def _go_back(self, step: int, judged: tuple[str, ...]) -> None:
        """Stand at ``step``, as if what was logged after it had not been seen."""
        self._offset = step - int(self.dynamics.nsteps)
        if self.log is not None:
            records = read_standing(self.log.path)
            self.trigger.replay((r for r in records if r["step"] < step), judged)
            self.log.write({"event": "resumed", "step": step})
        if self.flagged is not None:
            self.flagged.written = cut_frames(self.flagged.path, "flagged frames", step)

    def _act(self, event: Event, assessment: Assessment, why: str) -> None:
        reasons = "; ".join(event.reasons)
        self.acted_on = event
        self.reason = f"{why} at step {event.step}: {reasons}"
        self.trigger.clear()
        if callable(self.on_unreliable):
            self.on_unreliable(self)
            return
        if self.on_unreliable == "warn":
            warning = {"event": "warning", "step": event.step}
            self.outputs.record(warning | {"reason": self.reason})
            return
        self.halted = True
        self._end("halted")
        if self.on_unreliable == "raise" or isinstance(self.dynamics, _NO_SOFT_STOP):
            raise UnreliableError(event.step, assessment)
        self.dynamics.max_steps = -1  # ends every loop of ASE in this very step

    def _end(self, how: str) -> None:
        self.end = {
            "event": "end",
            "how": how,
            "step": self.history[-1].step,
            "levels": {level.name: n for level, n in self.counts().items()},
            "reason": self.reason,
        }
        converged = has_converged(self.dynamics)
        if how == "finished" and converged is not None:
            self.end["converged"] = converged
        self.end |= self.outputs.entry()
        self.outputs.record(self.end)
        self.outputs.rest()

    def _event(self, atoms: Atoms, assessment: Assessment) -> Event:
        results = assessment.results()
        timestep = timestep_fs(self.dynamics)
        return Event(
            step=self.step,
            time_fs=None if timestep is None else self.step * timestep,
            temperature_K=float(atoms.get_temperature()) if self._is_md else None,
            energy_eV=float(atoms.calc.results["energy"]),
            level=assessment.level,
            readings={r.signal: r.risk for r in assessment.readings},
            values={k: float(v) for k, v in results.items() if np.ndim(v) == 0},
            reasons=assessment.verdict.reasons,
            worst_atoms=tuple(assessment.worst_atoms()),
        )

    def _run(self, calculator: Any) -> dict[str, Any]:
        about: dict[str, Any] = calculator.describe()
        return about | {
            "dynamics": type(self.dynamics).__name__,
            "timestep_fs": timestep_fs(self.dynamics),
            "formula": str(watched_atoms(self.dynamics).symbols),
        }


def _check_paths(
    log: str | os.PathLike[str] | None, flagged: str | os.PathLike[str] | None
) -> None:
    given = [Path(path).absolute() for path in (log, flagged) if path is not None]
    if len(set(given)) < len(given):
        msg = f"log and flagged must be two files, got {log} for both"
        raise ValueError(msg)


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
