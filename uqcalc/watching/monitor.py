"""`Monitor`: watches every step of a run, records it, and stops it when it must."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from ase import Atoms
from ase.md.md import MolecularDynamics

from uqcalc.annotating.frames import cut_frames
from uqcalc.errors import UnreliableError
from uqcalc.htmltable import html_table
from uqcalc.records import Assessment, BandEvent, Event, Level, checked_interval
from uqcalc.watching.band import Band, BandAssessment
from uqcalc.watching.eventlog import EventLog, read_standing, versions
from uqcalc.watching.flagged import FrameFile
from uqcalc.watching.halting import Halt
from uqcalc.watching.history import KEPT, History
from uqcalc.watching.joint import Joint
from uqcalc.watching.outputs import Outputs
from uqcalc.watching.report import summarise
from uqcalc.watching.structure import Structure
from uqcalc.watching.trigger import Trigger
from uqcalc.watching.watched import (
    counts_steps,
    has_converged,
    is_complete,
    timestep_fs,
    watched_atoms,
    watched_band,
)


Action = Literal["halt", "raise", "warn"]
LOST = "Energy, forces or a moving cell's stress are not numbers"
ABSURD = "Beyond all physics"


class Monitor:
    """ASE observer for molecular dynamics and optimisers; it attaches itself.

    Of a `BasinHopping` each new lowest minimum is watched and counts as a step; it is
    halted by `UnreliableError`, as SciPy's optimisers are. Of an optimiser of a band of
    images (``FIRE(NEB(images))``) each image is judged, and the worst one decides the
    verdict of the step; `band` says all of it, with a verdict for the barrier.

    A halted run stays halted: a later ``run`` makes no step and says so in one line,
    until `resume`.

    Parameters
    ----------
    dynamics : ase MD or optimiser
        Its atoms, or the images of its band, must carry a `ReliableCalculator`.
    log : path, optional
        Event log: JSON lines, one record a step, on disk before the next one. A
        continued log counts on from its last step.
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
    mode : {"continue", "append", "new"}
        What to do with files that exist. "continue": go on with a log of the same run
        if the structure has the energy with which the log ended, and refuse it if not,
        as when a script is run twice. "append": go on without that check. "new": refuse
        all that exist.
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
    interval : int
        Look at every ``interval``-th step only, and at the last one. A frame stands for
        the steps until the next one that is judged. The calculator still judges each
        geometry, unless it has an ``interval`` of its own, which saves the time.
    enabled : bool
        With False nothing is watched, and no file is opened or written.
    log_every : int
        Log a step at least so many steps after the one before. UNRELIABLE steps,
        changes of the level and the last step are always logged.

    Attributes
    ----------
    halted : bool
        Whether it has ended the run, and no `resume` came since.
    reason : str
        Why it last acted; empty if it never did.
    acted_on : Event or None
        The step on which it last acted.
    history : History
        A sequence of the last `Event` records; it has counted those before, too.
    last : Assessment or None
        Of the last step that it looked at; None where that was not judged.
    band : BandAssessment or None
        Of the images of a band at that step.
    end : dict or None
        The end record, once there is one; None as soon as the run goes on.

    Raises
    ------
    ValueError
        For atoms without a `ReliableCalculator` or impossible settings.
    RecordError
        If existing files belong to another run or do not end at this structure, or if
        another process, or a monitor of
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
        mode: Literal["continue", "append", "new"] = "continue",
        max_flagged: int = 100,
        about: Mapping[str, Any] | None = None,
        first_step: int | None = None,
        history: int | None = KEPT,
        interval: int = 1,
        enabled: bool = True,
        log_every: int = 1,
    ) -> None:
        _check_settings(on_unreliable, mode)
        _check_paths(log, flagged)
        self.dynamics = dynamics
        self.interval = checked_interval(interval, "interval")
        self.enabled = enabled
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
        self.end: dict[str, Any] | None = None
        self.log: EventLog | None = None
        self.flagged: FrameFile | None = None
        self._halt = Halt(dynamics)
        self._halted_by: Assessment | None = None
        self._resumed_at: int | None = None
        self._calls = 0
        self._offset = 0
        self._is_md = isinstance(dynamics, MolecularDynamics)
        neb = watched_band(dynamics)
        self._watched: Structure | Band = (
            Structure(dynamics, lambda: watched_atoms(dynamics))
            if neb is None
            else Band(dynamics, neb)
        )
        self.first_step = first_step
        if enabled:
            self._open(log, flagged, mode, about, max_flagged, log_every)
        self.outputs = Outputs(
            self.log, self.flagged, checked_interval(log_every, "log_every")
        )
        if enabled:
            self.outputs.hold()
            # First in line: trajectory and logger then also see the halting step.
            dynamics.insert_observer(self, position=0)

    def __call__(self) -> None:
        """Record first, then decide, so that the halting step is on disk."""
        self._calls += 1
        watched = self._watched
        if not watched.calculator.enabled:
            return
        step = self.step
        if step == self._resumed_at:  # ASE shows the first geometry in every run
            return
        if step % self.interval and not (self.halted or is_complete(self.dynamics)):
            return
        self.outputs.hold()
        assessment = self.last = watched.look(step, self.interval)
        event = self._event(step, assessment)
        self.history.append(event)
        self.end = None
        # the next geometry would have no number in it, whatever the patience
        absurd = assessment is not None and bool(assessment.absurd)
        stop = absurd or not watched.finite
        act = self.trigger(assessment, step) or stop
        whole = assessment is not None and not assessment.verdict.skipped
        self.outputs.step(event, whole=whole)
        if event.level is Level.UNRELIABLE:
            self._flag(final=act)
        if self.halted:  # a loop that began before it was halted
            self._end("halted")
            self._stop()
        elif act:
            why = ABSURD if absurd else self.trigger.words()
            self._act(event, why if watched.finite else LOST)
        if is_complete(self.dynamics):
            self.close()

    def __repr__(self) -> str:
        said = ", ".join(f"{name}: {text}" for name, text in self._rows())
        return f"<Monitor {said}>"

    def _repr_html_(self) -> str:
        return html_table("Monitor", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        counts = ", ".join(f"{n} {level.name}" for level, n in self.counts().items())
        if self.history.unjudged:
            counts += f", {self.history.unjudged} not judged"
        rows = [("dynamics", type(self.dynamics).__name__), ("looked at", counts)]
        if not self.enabled:
            rows.append(("enabled", "no"))
        if self.reason:
            rows.append(("halted" if self.halted else "acted", self.reason))
        return rows

    @property
    def step(self) -> int:
        """Step number of this run, counted on across restarts."""
        if not counts_steps(self.dynamics):  # then by what was watched
            return self._offset + max(0, self._calls - 1)
        return self._offset + int(self.dynamics.nsteps)

    @property
    def band(self) -> BandAssessment | None:
        """The images and the barrier of a band at the last step; None without one."""
        return self._watched.seen if isinstance(self._watched, Band) else None

    def resume(self) -> None:
        """Let a halted run go on with the next ``run``.

        It is halted again only by frames from then on. Without a halt nothing happens.
        """
        if self.halted:
            self._resumed_at = self.step
        self.halted = False
        self._halt.lift()

    def summary(self) -> str:
        """Say in a few lines what was watched, when and why it stopped, what next."""
        if not self.enabled:
            return "Nothing is watched: the monitor is not enabled."
        return summarise(
            self.history,
            self.acted_on,
            halted=self.halted,
            reason=self.reason,
            outputs=self.outputs,
            first_step=self.first_step,
            band=self.band,
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

    def snapshot(self, image: int | None = None) -> Atoms:
        """Return an annotated copy of the geometry that was looked at last.

        Of a band it is the given image, by default the worst one. A geometry that was
        not judged is judged now.

        Raises
        ------
        ValueError
            If nothing was looked at yet, or the atoms have moved on since.
        """
        if not self.history:
            msg = "monitor must have seen a step, got none; run the dynamics first"
            raise ValueError(msg)
        step = self.history[-1].step
        if isinstance(self._watched, Band):
            return self._watched.snapshot(step, image)
        return self._watched.snapshot(step)

    def _open(
        self,
        log: str | os.PathLike[str] | None,
        flagged: str | os.PathLike[str] | None,
        mode: str,
        about: Mapping[str, Any] | None,
        max_flagged: int,
        log_every: int,
    ) -> None:
        """Open the files, or take up those of the run that goes on."""
        calculator = self._watched.calculator
        if flagged is not None:
            self.flagged = FrameFile(flagged, max_flagged, mode)
        run = self._run(calculator) | ({} if about is None else {"about": dict(about)})
        header: dict[str, Any] = {"run": run, "versions": versions()}
        if log_every != 1:
            header["log_every"] = log_every
        if log is not None:
            atoms = len(self._watched.atoms)
            joint = Joint(self._watched.energies_now, atoms, self.first_step)
            self.log = EventLog(
                log, header, mode, joint if mode == "continue" else None
            )
            if self.log.last_step is not None:
                self._offset = self.log.last_step - int(self.dynamics.nsteps)
        if self.first_step is not None:
            self._go_back(self.first_step, calculator.policy.signals)

    def _flag(self, *, final: bool) -> None:
        """Write the UNRELIABLE frames of this step, the one that decides it last."""
        watched = self._watched
        if not isinstance(watched, Band):
            self.outputs.flag(self.snapshot, final=final)
            return
        for index in watched.unreliable():
            worst = watched.seen is not None and index == watched.seen.worst
            frame = partial(self.snapshot, index)
            self.outputs.flag(frame, final=final and worst)

    def _go_back(self, step: int, judged: tuple[str, ...]) -> None:
        """Stand at ``step``, as if what was logged after it had not been seen."""
        self._offset = step - int(self.dynamics.nsteps)
        if self.log is not None:
            records = read_standing(self.log.path)
            self.trigger.replay((r for r in records if r["step"] < step), judged)
            self.log.write({"event": "resumed", "step": step})
        if self.flagged is not None:
            self.flagged.written = cut_frames(self.flagged.path, "flagged frames", step)

    def _act(self, event: Event, why: str) -> None:
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
        self._halted_by = self.last
        self._end("halted")
        self._halt.bar(self._refuse)
        self._stop()

    def _stop(self) -> None:
        """End the run that is under way."""
        if self.on_unreliable == "raise" or self._halt.needs_exception:
            self._raise()
        self._halt.stop()

    def _refuse(self) -> None:
        """Say that a run does not begin, or raise where that is how it was ended."""
        if self.on_unreliable == "raise":
            self._raise()
        logging.getLogger("uqcalc").warning(
            "no step is made: the monitor has halted this run. %s. Call "
            "monitor.resume() to go on all the same",
            self.reason,
        )

    def _raise(self) -> NoReturn:
        if self.acted_on is None or self._halted_by is None:
            msg = "a halted monitor must know the step, got none"
            raise RuntimeError(msg)
        raise UnreliableError(self.acted_on.step, self._halted_by)

    def _end(self, how: str) -> None:
        self.end = {
            "event": "end",
            "how": how,
            "step": self.history[-1].step,
            "levels": {level.name: n for level, n in self.counts().items()},
            "reason": self.reason,
        }
        if self.history.unjudged:
            self.end["not_judged"] = self.history.unjudged
        converged = has_converged(self.dynamics)
        if how == "finished" and converged is not None:
            self.end["converged"] = converged
        self.outputs.log_last_step()
        self.end |= self.outputs.entry()
        self.outputs.record(self.end)
        self.outputs.rest()

    def _event(self, step: int, assessment: Assessment | None) -> Event:
        watched = self._watched
        results = {} if assessment is None else assessment.results()
        timestep = timestep_fs(self.dynamics)
        entries: dict[str, Any] = {
            "step": step,
            "time_fs": None if timestep is None else step * timestep,
            "temperature_K": (
                float(watched.atoms.get_temperature()) if self._is_md else None
            ),
            "energy_eV": watched.energy,
            "level": None,
            "readings": {},
            "values": {k: float(v) for k, v in results.items() if np.ndim(v) == 0},
            "reasons": (),
            "worst_atoms": (),
        }
        if assessment is not None:
            entries["level"] = assessment.level
            entries["readings"] = {r.signal: r.risk for r in assessment.readings}
            entries["reasons"] = assessment.verdict.reasons
            entries["worst_atoms"] = tuple(assessment.worst_atoms())
        band = self.band
        if band is None:
            return Event(**entries)
        return BandEvent(
            **entries,
            image=band.worst,
            levels=band.levels,
            energies_eV=band.energies_eV,
            barrier_eV=band.barrier_eV,
            barrier=band.barrier.level,
        )

    def _run(self, calculator: Any) -> dict[str, Any]:
        about: dict[str, Any] = calculator.describe()
        about |= {
            "dynamics": type(self.dynamics).__name__,
            "timestep_fs": timestep_fs(self.dynamics),
            "formula": str(self._watched.atoms.symbols),
        }
        neb = watched_band(self.dynamics)
        return about if neb is None else about | {"images": len(neb.images)}


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
    if mode not in {"continue", "append", "new"}:
        msg = f"mode must be 'continue', 'append' or 'new', got {mode!r}"
        raise ValueError(msg)
