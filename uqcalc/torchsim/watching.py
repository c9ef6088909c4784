"""Data of each system of a guarded run: trigger, checks, and the last good state."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from uqcalc.annotating.copies import annotated_copy
from uqcalc.policy import RUN, extended
from uqcalc.records import Assessment, Level, Reading
from uqcalc.torchsim.model import Judged, ReliableModel
from uqcalc.torchsim.systems import Left, copied, take
from uqcalc.watching.aserun import is_finite
from uqcalc.watching.eventlog import EventLog, versions
from uqcalc.watching.flagged import FrameFile
from uqcalc.watching.monitor import ABSURD, LOST
from uqcalc.watching.outputs import Outputs
from uqcalc.watching.runchecks import RunChecks
from uqcalc.watching.settings import check_paths
from uqcalc.watching.structure import LOST as LOST_FAULT
from uqcalc.watching.trigger import Trigger


# Entries of states whose cell moves: barostats and cell filters of TorchSim.
_OF_CELLS = frozenset({
    "cell_forces", "cell_masses", "cell_momentum", "cell_position", "cell_positions",
    "cell_velocities", "tau_p",
})  # fmt: skip
STEP, CHECK = "step", "check"


@dataclass(slots=True)
class SystemClock:
    """The clock of one system (`uqcalc.watching.runchecks.Clock`)."""

    timestep_fs: float | None
    moves_cell: bool
    nsteps: int = 0


@dataclass(slots=True, eq=False)
class Watch:
    """One system of a run."""

    trigger: Trigger
    clock: SystemClock
    checks: RunChecks
    level: Level | None = None
    kept: tuple[Any, int] | None = None
    kept_step: int = 0
    kept_level: Level | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The verdict on a system at one step, and whether the trigger acts (``why``)."""

    assessment: Assessment
    why: str


class Watcher:
    """Watches the systems of a run, writes the log, and keeps the last good states.

    Parameters
    ----------
    trigger : Trigger or None
        A copy of it is used for each system; None for `Trigger.usual`.
    log, flagged : path or None
    mode : {"append", "new"}
    unit : {"step", "check"}
        What the steps of the records count.
    """

    def __init__(
        self,
        trigger: Trigger | None,
        log: str | os.PathLike[str] | None,
        flagged: str | os.PathLike[str] | None,
        mode: str,
        unit: str,
    ) -> None:
        if mode not in ("append", "new"):
            msg = f"mode must be 'append' or 'new', got {mode!r}"
            raise ValueError(msg)
        check_paths(log=log, flagged=flagged)
        self._trigger, self._mode, self._unit = trigger, mode, unit
        self._paths = (log, flagged)
        self._outputs: Outputs | None = None
        self.watches: dict[int, Watch] = {}
        self.left: dict[int, Left] = {}

    def open(self, model: ReliableModel, about: dict[str, Any]) -> None:
        """Open the files, with a description of model and run in the log."""
        if self._outputs is not None:
            return
        log, flagged = self._paths
        header = {"run": model.describe() | about, "versions": versions()}
        self._outputs = Outputs(
            None if log is None else EventLog(log, header, self._mode),
            None if flagged is None else FrameFile(flagged, _MANY, self._mode),
        )
        self._outputs.hold()

    def begin(
        self, system: int, model: ReliableModel, row: int, clock: SystemClock
    ) -> None:
        """Watch a system from now on."""
        trigger = self._trigger
        if trigger is None:
            trigger = Trigger.usual(clock.timestep_fs)
        checks = RunChecks(clock, model.signals_of(row), model.policy)
        self.watches[system] = Watch(deepcopy(trigger), clock, checks)

    def look(self, judged: Judged, row: int, system: int, step: int) -> Seen:
        """Judge a system at a step, as `uqcalc.Monitor` does."""
        watch = self.watches[system]
        watch.clock.nsteps = step
        prediction = judged.predictions[row]
        atoms = judged.atoms(row)
        found = judged.assessments[row]
        finite = is_finite(prediction.results, stress=watch.checks.moves_cell(atoms))
        # given an assessment, the checks return one
        found = watch.checks(atoms, found, prediction.results["energy"]) or found
        if not finite and found.level is not Level.UNRELIABLE:
            reading = Reading(RUN, float("nan"), faults=(LOST_FAULT,), always=True)
            found = extended(found, reading)
        act = watch.trigger(found, step)
        why = LOST if not finite else ABSURD if found.absurd else ""
        why = why or (watch.trigger.words() if act else "")
        if found.level is not watch.level:
            self._record("level", system, step, found, was=watch.level)
        watch.level = found.level
        return Seen(found, why)

    def keep(self, state: Any, systems: list[int], steps: list[int]) -> None:
        """Keep the state of all systems that are as good as the one kept, or better.

        ``steps`` are the step of each system. One copy of the whole batch serves for
        all of them. Where a system is worse now, its rows are taken out of the older
        copy, which can then be freed.
        """
        better = [s for s in systems if _is_better(self.watches[s])]
        stale: dict[int, list[int]] = {}
        for system in set(systems) - set(better):
            kept = self.watches[system].kept
            if kept is not None:
                stale.setdefault(id(kept[0]), []).append(system)
        for group in stale.values():
            self._shrink(group)
        if not better:
            return
        copy, row = copied(state), {s: k for k, s in enumerate(systems)}
        for system in better:
            watch = self.watches[system]
            watch.kept = (copy, row[system])
            watch.kept_step, watch.kept_level = steps[row[system]], watch.level

    def _shrink(self, group: list[int]) -> None:
        """Take a group of systems out of the copy of the batch that they share."""
        kept = [self.watches[system].kept for system in group]
        places = [(k[0], k[1]) for k in kept if k is not None]
        whole = places[0][0]
        if len(whole.cell) == len(group):
            return
        part = take(whole, [row for _, row in places])
        for row, system in enumerate(group):
            self.watches[system].kept = (part, row)

    def leave(
        self, judged: Judged, row: int, system: int, step: int, seen: Seen
    ) -> Any:
        """Record that a system leaves, and return its last good state."""
        watch = self.watches[system]
        if watch.kept is None or watch.kept_level is None:
            msg = f"system {system} must have been seen before it leaves, got no state"
            raise RuntimeError(msg)
        reasons = "; ".join(seen.assessment.verdict.reasons)
        reason = f"{seen.why} at {self._unit} {step}: {reasons}"
        self.left[system] = Left(
            system, step, watch.kept_step, watch.kept_level, reason, seen.assessment
        )
        self._record(
            "left",
            system,
            step,
            seen.assessment,
            to_step=watch.kept_step,
            to_level=watch.kept_level,
            reason=reason,
        )
        if self._outputs is not None:
            self._outputs.flag(
                lambda: self._frame(judged, row, system, step, seen), final=True
            )
        kept, watch.kept = watch.kept, None
        return take(kept[0], [kept[1]])

    def ended(self, system: int, step: int, assessment: Assessment, how: str) -> None:
        """Record how an optimisation of a system ended."""
        self._record(how, system, step, assessment)

    def close(self) -> None:
        """Release the files for other writers."""
        if self._outputs is not None:
            self._outputs.rest()

    def _frame(
        self, judged: Judged, row: int, system: int, step: int, seen: Seen
    ) -> Any:
        prediction = judged.predictions[row]
        frame = annotated_copy(judged.atoms(row), seen.assessment, prediction.results)
        frame.info |= {"system": system, self._unit: step}
        return frame

    def _record(
        self, event: str, system: int, step: int, assessment: Assessment, **more: Any
    ) -> None:
        if self._outputs is None:
            return
        named = {k: v.name if isinstance(v, Level) else v for k, v in more.items()}
        self._outputs.record(
            {
                "event": event,
                "system": system,
                self._unit: step,
                "level": assessment.level.name,
                "readings": {r.signal: r.risk for r in assessment.readings},
                "reasons": list(assessment.verdict.reasons),
                "worst_atoms": assessment.worst_atoms(),
                **named,
            }
        )


_MANY = 10**9  # flagged frames: one for each system that leaves


def _is_better(watch: Watch) -> bool:
    """Return whether the state replaces the kept one.

    It does if its level is not worse, and not UNRELIABLE.
    """
    if watch.level is None:
        return False
    if watch.kept_level is None:
        return True
    return watch.level is not Level.UNRELIABLE and watch.level <= watch.kept_level


def moves_cell(state: Any) -> bool:
    """Return whether an integrator or optimiser of TorchSim can change the cell."""
    names = {
        *state._system_attributes,
        *state._global_attributes,
    }
    return bool(names & _OF_CELLS)
