"""`Monitor`: judges and records the steps of a run, and halts it if UNRELIABLE."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NoReturn

from ase import Atoms

from uqcalc.errors import UnreliableError
from uqcalc.files.structures import read_frames
from uqcalc.htmltable import html_table
from uqcalc.records import Assessment, Event, Level, checked_interval
from uqcalc.watching.aserun import (
    counts_steps,
    has_converged,
    is_complete,
    timestep_fs,
    watched_atoms,
    watched_band,
)
from uqcalc.watching.asker import Ask, Asker
from uqcalc.watching.band import Band, BandAssessment
from uqcalc.watching.eventlog import EventLog, read_standing, versions
from uqcalc.watching.events import event_of
from uqcalc.watching.flagged import FrameFile
from uqcalc.watching.halting import Halt
from uqcalc.watching.harvest import BUDGET, FULL
from uqcalc.watching.history import KEPT, History
from uqcalc.watching.joint import Joint
from uqcalc.watching.outputs import Outputs
from uqcalc.watching.report import summarise
from uqcalc.watching.rewinding import Rewind, Rewinder, Rewound, settings_of
from uqcalc.watching.settings import (
    HaltingStatement,
    ask_of,
    check_guarantee,
    check_paths,
    check_settings,
    harvest_of,
)
from uqcalc.watching.structure import Structure
from uqcalc.watching.trigger import Trigger


Action = Literal["halt", "raise", "warn", "harvest", "rewind", "ask"]
LOST = "Energy, forces or stress of a moving cell are NaN or infinite"
ABSURD = "Unphysical values"
BONDS = "Bonds have stayed changed"
WRECKED = (LOST, ABSURD)  # beginnings of the reason of a run that must not continue
HARVEST = "UNRELIABLE: the harvest of frames begins"


class Monitor:
    """ASE observer for molecular dynamics and optimisers; it attaches itself.

    `BasinHopping`: each new lowest minimum is judged and counts as a step. It and
    SciPy's optimisers are halted by `UnreliableError`. Band of images
    (``FIRE(NEB(images))``): each image is judged, and the worst one decides the verdict
    of the step; `band` has all verdicts and that of the barrier.

    A halted run stays halted until `resume`: a later ``run`` makes no step and logs a
    warning.

    Parameters
    ----------
    dynamics : ase MD or optimiser
        Its atoms, or the images of its band, must have a `ReliableCalculator`. A run of
        another program can stand here, too: `uqcalc.lammps.LammpsPotential`.
    log : path, optional
        Event log: JSON lines, one record per step, each written before the next step. A
        continued log counts on from its last step.
    flagged : path, optional
        Extended XYZ file for annotated UNRELIABLE frames, the halting frame included.
    patience : int, optional
        Number of consecutive UNRELIABLE frames after which the monitor acts. By default
        `Trigger.usual`: half of the last 50 fs, or three frames in a row of an
        optimiser.
    window, fraction : int, float, optional
        Instead of ``patience``: act as soon as UNRELIABLE frames cover ``fraction`` of
        the last ``window`` steps. A frame counts for all steps until the next judged
        frame.
    on_unreliable : str, Rewind, Ask or callable
        The action. "halt": stop in the same step. "raise": raise `UnreliableError`.
        "warn": only log. "harvest": go on, and write to ``flagged`` only frames from
        this step on whose features differ from those of all frames written before;
        stop at the first physically impossible frame, or after ``max_harvest`` frames.
        "rewind": go back to the last RELIABLE state and take another path, at most
        three times, then halt; `uqcalc.Rewind` has settings for it.
        "ask": evaluate the frame with ``reference``, go on if its true error is at most
        the boundary of the probe, else halt; `uqcalc.Ask` has settings for it.
        A callable is called with the monitor, and the run goes on.
        The monitor acts at once, without ``patience`` or ``window``, if energy or
        forces are NaN or infinite, or if values are physically impossible
        (`uqcalc.Sanity` and `uqcalc.watching.runchecks`).
    reference : ase calculator, optional
        With "ask": the reference method, another calculator than that of the run.
    labelled : path, optional
        With "ask": extended XYZ file for the frames that the reference has evaluated,
        with ``REF_energy`` and ``REF_forces``.
    mode : {"continue", "append", "new"}
        Handling of existing files. "continue": continue a log of the same run if the
        structure has the energy with which the log ended, and refuse it otherwise (for
        example if a script is started twice). "append": continue without this check.
        "new": refuse existing files.
    max_flagged : int
        Largest number of frames in ``flagged``, the halting frame included.
    max_harvest : int
        Largest number of frames in ``flagged`` with "harvest".
    about : mapping, optional
        JSON-able entry for the header of the log. Only a run with an equal entry can
        continue the log.
    first_step : int, optional
        Step number of the saved geometry from which a killed run continues. Records of
        this step and later ones in existing files become invalid.
    history : int or None
        Number of last events in memory, at most 18 MB by default; None keeps all,
        without a memory limit. The log does not depend on it.
    interval : int
        Check only every ``interval``-th step and the last one. A frame counts for all
        steps until the next judged frame. The calculator still judges each geometry; to
        save this time, set the ``interval`` of the calculator.
    enabled : bool
        With False the monitor checks nothing and opens no file.
    log_every : int
        Smallest distance of logged steps. UNRELIABLE steps, changes of the level and
        the last step are always logged.
    bond_change_fs : float, optional
        Act, too, if bonds have stayed changed since the first step for so many fs. Give
        it if the potential was not trained on reactions; 25 is usual. By default
        changed bonds are only SUSPECT. Molecular dynamics only.
    guarantee : HaltingGuarantee, optional
        From `uqcalc.certify_halting`. Its statement goes to the log and to the summary.

    Attributes
    ----------
    halted : bool
        Whether the monitor has halted the run, without a later `resume`.
    reason : str
        Reason of the last action; empty without one.
    acted_on : Event or None
        The step of the last action.
    asker : Asker or None
        With "ask": counts of right, wrong and failed calls.
    harvest : Harvest or None
        With "harvest": which frames are kept, and how many were.
    history : History
        A sequence of the last `Event` records, with counts of all events.
    last : Assessment or None
        Assessment of the last step that was checked; None if it was not judged.
    band : BandAssessment or None
        Assessments of the images of a band at the last step.
    rewinds : tuple of Rewound
        The rewinds so far, in order.
    end : dict or None
        The end record; None before it is written and when the run goes on.

    Raises
    ------
    ValueError
        If atoms have no `ReliableCalculator`, or if settings are invalid, or are not
        those of the guarantee.
    RecordError
        If existing files belong to another run or do not end at this structure, or if
        another process or an unfinished monitor of this process writes them. A write
        that fails later does not end the run: the summary and the end record name the
        missing output.
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
        on_unreliable: Action | Rewind | Ask | Callable[[Monitor], object] = "halt",
        reference: Any = None,
        labelled: str | os.PathLike[str] | None = None,
        mode: Literal["continue", "append", "new"] = "continue",
        max_flagged: int = 100,
        max_harvest: int = BUDGET,
        about: Mapping[str, Any] | None = None,
        first_step: int | None = None,
        history: int | None = KEPT,
        interval: int = 1,
        enabled: bool = True,
        log_every: int = 1,
        bond_change_fs: float | None = None,
        guarantee: HaltingStatement | None = None,
    ) -> None:
        check_settings(on_unreliable, mode)
        self.dynamics = dynamics
        self.interval = checked_interval(interval, "interval")
        self.enabled = enabled
        step_fs = timestep_fs(dynamics)
        self.trigger = Trigger.chosen(patience, window, fraction, step_fs)
        self.on_unreliable = on_unreliable
        rewind = settings_of(on_unreliable)
        self._rewinder = (
            None if rewind is None else Rewinder(rewind, dynamics, self.trigger)
        )
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
        self._watched = _watched(dynamics, bond_change_fs)
        band = isinstance(self._watched, Band)
        self.harvest = harvest_of(on_unreliable, max_harvest, flagged, band=band)
        if self.harvest is not None:
            max_flagged = self.harvest.budget
        ask = ask_of(on_unreliable, reference, labelled, band=band)
        kept = None if ask is None else ask.labelled
        check_paths(log=log, flagged=flagged, labelled=kept)
        self.asker = None if ask is None else Asker(ask, self._watched.calculator)
        self.first_step = first_step
        self.guarantee = guarantee
        check_guarantee(
            guarantee,
            on_unreliable,
            self._watched.calculator.policy,
            self.trigger,
            step_fs,
        )
        if enabled:
            self._open(log, flagged, mode, about, max_flagged, log_every)
        self.outputs = Outputs(
            self.log,
            self.flagged,
            checked_interval(log_every, "log_every"),
            None if self.asker is None else self.asker.file,
        )
        if enabled:
            self.outputs.hold()
            # First observer, so that trajectory and logger also get the halting step.
            dynamics.insert_observer(self, position=0)

    def __call__(self) -> None:
        """Judge and record a step, then act if needed.

        The order makes sure that the halting step is on disk.
        """
        self._calls += 1
        watched = self._watched
        if not watched.calculator.enabled:
            return
        step = self.step
        if step == self._resumed_at:  # each run repeats its first geometry
            return
        if step % self.interval and not (self.halted or is_complete(self.dynamics)):
            return
        self.outputs.hold()
        assessment = self.last = watched.look(step, self.interval)
        event = self._record(step, assessment)
        # act at once: the next geometry would be NaN
        absurd = assessment is not None and bool(assessment.absurd)
        stop = absurd or not watched.finite
        lasted = isinstance(watched, Structure) and watched.bonds_lasted
        act = self.trigger(assessment, step) or stop or lasted
        why = ABSURD if absurd else BONDS if lasted else self.trigger.words()
        if not (stop or self.halted):
            act, why = self._instead(event, why, act=act)
        if event.level is Level.UNRELIABLE and self.harvest is None:
            for frame, decides in watched.unreliable_frames(step):
                self.outputs.flag(frame, final=act and decides)
        if self.halted:  # a loop that started before the halt
            self._end("halted")
            self._stop()
        elif act:
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
        """Step number of this run; it continues across restarts."""
        if not counts_steps(self.dynamics):  # count the calls instead
            return self._offset + max(0, self._calls - 1)
        return self._offset + int(self.dynamics.nsteps)

    @property
    def rewinds(self) -> tuple[Rewound, ...]:
        """The rewinds so far, in order; see `uqcalc.Rewind`."""
        return () if self._rewinder is None else tuple(self._rewinder.done)

    @property
    def band(self) -> BandAssessment | None:
        """Images and barrier of a band at the last step; None without a band."""
        return self._watched.seen if isinstance(self._watched, Band) else None

    def resume(self) -> None:
        """Allow a halted run to continue with the next ``run``.

        Only later frames can halt it again. Without a halt nothing happens.
        """
        if self.halted:
            self._resumed_at = self.step
        self.halted = False
        self._halt.lift()

    def summary(self) -> str:
        """Return a few lines: steps and levels, any halt and its reason, next steps."""
        if not self.enabled:
            return "Nothing was watched: the monitor is not enabled."
        return summarise(
            self.history,
            self.acted_on,
            halted=self.halted,
            reason=self.reason,
            outputs=self.outputs,
            first_step=self.first_step,
            band=self.band,
            harvest=self.harvest,
            asker=self.asker,
            rewinds=self.rewinds,
            validity=getattr(self._watched.calculator, "validity", ""),
            guarantee="" if self.guarantee is None else str(self.guarantee),
        )

    def close(self) -> None:
        """Write the end record unless it exists; more steps may follow.

        Call it for loops that end early, for example over ``dynamics.irun()``. Runs
        that are halted, converge or complete their steps do not need it.
        """
        if self.history and self.end is None:
            self._end("finished")
        self.outputs.rest()

    def counts(self) -> dict[Level, int]:
        """Return the number of checked frames with each level."""
        return self.history.counts()

    def snapshot(self, image: int | None = None) -> Atoms:
        """Return an annotated copy of the geometry that was checked last.

        For a band it is the given image, by default the worst one. A geometry without
        an assessment is judged now.

        Raises
        ------
        ValueError
            If no step was checked yet, or if the atoms have moved since.
        """
        if not self.history:
            msg = (
                "at least one step must have been run, got none; run the dynamics first"
            )
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
        """Open new files, or the files of the run that continues."""
        calculator = self._watched.calculator
        if flagged is not None:
            self.flagged = FrameFile(flagged, max_flagged, mode)
        if self.asker is not None:
            self.asker.open(mode)
        run = self._run(calculator) | ({} if about is None else {"about": dict(about)})
        header: dict[str, Any] = {"run": run, "versions": versions()}
        if log_every != 1:
            header["log_every"] = log_every
        if self.guarantee is not None:
            header["guarantee"] = str(self.guarantee)
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
        if self.harvest is not None and self.flagged and self.flagged.written:
            continues = self.first_step is not None
            continues |= self.log is not None and self.log.last_step is not None
            frames = read_frames(self.flagged.path)
            fingerprint = calculator.backbone.fingerprint
            self.harvest.restore(frames, fingerprint, begun=continues)

    def _go_back(self, step: int, judged: tuple[str, ...]) -> None:
        """Go back to ``step``: the trigger and the files drop later records."""
        self._offset = step - int(self.dynamics.nsteps)
        if self.log is not None:
            path = self.log.path  # a long log is read twice to save memory
            before = (r for r in read_standing(path) if r["step"] < step)
            self.trigger.replay(before, judged)
            if self._rewinder is not None:
                again = (r for r in read_standing(path) if r["step"] < step)
                self._rewinder.restore(r for r in again if r["event"] == "rewind")
            self.log.write({"event": "resumed", "step": step})
        if self.flagged is not None:
            self.flagged.cut(step)
        if self.asker is not None:
            self.asker.go_back(step)

    def _instead(self, event: Event, why: str, *, act: bool) -> tuple[bool, str]:
        """Harvest the frame, or ask the reference; return whether to act, and why."""
        if self.harvest is not None:
            alarm = partial(self._warn, event, HARVEST) if act else None
            return self.harvest.step(event, self._watched, self.outputs, alarm), FULL
        if self.asker is None:
            return act, why
        wrong = self.asker.step(event, self._watched, self.outputs, acts=act)
        if wrong is None and self.asker.just_right(event.step):
            self.trigger.clear()
        return wrong is not None, wrong or why

    def _act(self, event: Event, why: str) -> None:
        if self.on_unreliable == "warn":
            self._warn(event, why)
            return
        self._note(event, why)
        if callable(self.on_unreliable):
            self.on_unreliable(self)
            return
        if self._rewinder is not None:
            rewound = self._rewinder.back(event.step)
            if rewound is not None:
                self.outputs.log_last_step()
                self.outputs.record(rewound.to_dict() | {"reason": self.reason})
                return
            self.reason = f"{self.reason} ({self._rewinder.why_not()})"
        self.halted = True
        self._halted_by = self.last
        self._end("halted")
        self._halt.bar(self._refuse)
        self._stop()

    def _warn(self, event: Event, why: str) -> None:
        """Log that the trigger has acted, and let the run continue."""
        self._note(event, why)
        warning = {"event": "warning", "step": event.step}
        self.outputs.record(warning | {"reason": self.reason})

    def _note(self, event: Event, why: str) -> None:
        self.acted_on = event
        self.reason = f"{why} at step {event.step}: {'; '.join(event.reasons)}"
        self.trigger.clear()

    def _stop(self) -> None:
        """End the current run."""
        if self.on_unreliable == "raise" or self._halt.needs_exception:
            self._raise()
        self._halt.stop()

    def _refuse(self) -> None:
        """Log that a run does not begin; raise if ``on_unreliable`` is "raise"."""
        if self.on_unreliable == "raise":
            self._raise()
        logging.getLogger("uqcalc").warning(
            "the monitor has halted this run, and no step was made. %s. Call "
            "monitor.resume() to continue the run",
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
        if self.rewinds:
            self.end["rewinds"] = len(self.rewinds)
        self.end |= self.outputs.entry()
        if self.history.asks:
            self.end["ask"] = dict(self.history.asks)
        for one in (self.harvest, self.asker):
            self.end |= {} if one is None else one.entry()
        self.outputs.record(self.end)
        self.outputs.rest()

    def _record(self, step: int, assessment: Assessment | None) -> Event:
        """Store a step in the history, the log and, if RELIABLE, for a rewind."""
        event = event_of(step, assessment, self._watched, self.dynamics)
        self.history.append(event)
        self.end = None
        whole = assessment is not None and not assessment.verdict.skipped
        self.outputs.step(event, whole=whole)
        if self._rewinder is not None:
            self._rewinder.keep(step, assessment)
        return event

    def _run(self, calculator: Any) -> dict[str, Any]:
        about: dict[str, Any] = calculator.describe()
        about |= {
            "dynamics": type(self.dynamics).__name__,
            "timestep_fs": timestep_fs(self.dynamics),
            "formula": str(self._watched.atoms.symbols),
        }
        neb = watched_band(self.dynamics)
        return about if neb is None else about | {"images": len(neb.images)}


def _watched(dynamics: Any, bond_change_fs: float | None) -> Structure | Band:
    """Return the structure or the band of images that the dynamics moves."""
    neb = watched_band(dynamics)
    if neb is None:
        return Structure(dynamics, lambda: watched_atoms(dynamics), bond_change_fs)
    if bond_change_fs is not None:
        msg = (
            "bond_change_fs must be left out for a band of images, got "
            f"{bond_change_fs:g}: images have no time, and a path may break bonds"
        )
        raise ValueError(msg)
    return Band(dynamics, neb)
