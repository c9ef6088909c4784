"""`run_file`: carry out a run file under a monitor, and continue after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ase import Atoms

from uqcalc.annotating.frames import append_frame, cut_frames
from uqcalc.errors import MissingExtraError, RecordError, RunFileError
from uqcalc.files.writing import OneWriter, whole
from uqcalc.runfile.actions import RewindSection
from uqcalc.runfile.dynamics import molecular_dynamics, optimiser
from uqcalc.runfile.file import RunFile, read_run_file
from uqcalc.runfile.opening import (
    check_structure,
    halting_guarantee,
    open_calculator,
    open_structure,
)
from uqcalc.runfile.restart import Restart
from uqcalc.runfile.sections import MdSection, RelaxSection
from uqcalc.watching.aserun import watched_atoms
from uqcalc.watching.eventlog import check_same_run
from uqcalc.watching.harvest import BUDGET
from uqcalc.watching.logsummary import LogSummary, summarise_log
from uqcalc.watching.monitor import Monitor


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How the run of a run file ended.

    Attributes
    ----------
    how : {"finished", "halted"}
    step : int
        Its last step.
    converged : bool or None
        Whether a relaxation has converged; None if it was halted, and for dynamics.
    summary : str
        All results in a few lines, with the next steps.
    reason : str
        Why the monitor halted the run; empty if it did not.
    """

    how: Literal["finished", "halted"]
    step: int
    converged: bool | None
    summary: str
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a record that JSON can hold, for a workflow."""
        return asdict(self)


def run_file(
    path: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], object] | None = None,
) -> RunOutcome:
    """Run a run file to its end; continue a killed run; report a run that has ended.

    Parameters
    ----------
    path : path
        See `uqcalc.runfile.RunFile` for what it may hold.
    progress : callable, optional
        Called with the step number and the number of steps after each step.

    Raises
    ------
    RunFileError
        If the file, or the structure it names, does not allow the run.
    RecordError
        If files of its outputs belong to something else.
    """
    file = read_run_file(path)
    about = _about(file)
    past = _past(file, about)
    restart = _restart(file, about, past)
    if past is not None and past.end is not None and _is_saved(past.end, restart):
        return _outcome(
            file, past.end, f"Nothing to do: this run has ended. {_how(past.end)}"
        )
    task = _task(file)
    monitor = _prepared(file, about, past, restart)
    if progress is not None:
        monitor.dynamics.attach(lambda: progress(monitor.step, task.steps))
    _run(monitor, task)
    end = cast("dict[str, Any]", monitor.end)
    told = monitor.summary()
    return _outcome(file, end, told if monitor.halted else f"{_how(end)}\n{told}")


def _prepared(
    file: RunFile,
    about: dict[str, Any],
    past: LogSummary | None,
    restart: Restart | None,
) -> Monitor:
    """Return the monitor of a run that is ready to start or to continue."""
    task = _task(file)
    atoms = open_structure(file)
    atoms.calc = open_calculator(file)
    check_structure(file, atoms)
    if restart is not None:
        restart.place(atoms, moving=isinstance(task, MdSection))
    dynamics: Any
    if isinstance(task, MdSection):
        dynamics = molecular_dynamics(task, atoms, fresh=restart is None)
    else:
        dynamics = optimiser(task, atoms)
    first_step = None if past is None else 0
    if restart is not None:
        restart.wind(dynamics)
        first_step = restart.step
    atoms.calc.assess(atoms)  # an error is raised before a file is made
    lock = OneWriter(file.at(file.outputs.log))
    if past is None:
        _clear_the_way(file)
    monitor = _monitor(file, dynamics, about, first_step)
    del lock  # the monitor's log has reserved the file now
    dynamics.insert_observer(
        _Keeper(file, _digest(about), monitor, first_step), position=1
    )
    if isinstance(task, MdSection) and isinstance(task.temperature_K, tuple):
        dynamics.attach(_Ramp(task, monitor))
    return monitor


def _monitor(
    file: RunFile, dynamics: Any, about: dict[str, Any], first_step: int | None
) -> Monitor:
    outputs, policy = file.outputs, file.policy
    action, guarantee = _action(file), halting_guarantee(file)
    try:
        return Monitor(
            dynamics,
            log=file.at(outputs.log),
            flagged=None if outputs.flagged is None else file.at(outputs.flagged),
            patience=policy.patience,
            window=policy.window,
            fraction=policy.fraction,
            on_unreliable=action,
            mode="new" if first_step is None else "append",
            max_flagged=outputs.max_flagged,
            max_harvest=policy.max_harvest or BUDGET,
            about=about,
            first_step=first_step,
            bond_change_fs=policy.bond_change_fs,
            guarantee=guarantee,
        )
    except ValueError as error:
        raise RunFileError(str(file.path), [f"policy: {error}"]) from error


def _action(file: RunFile) -> Any:
    """Return the action of the monitor, with its settings.

    Raises
    ------
    RunFileError
        If the reference cannot be made.
    """
    name = file.policy.on_unreliable
    if name == "rewind":
        return (file.rewind or RewindSection()).settings()
    if file.ask is None or file.outputs.labelled is None:
        return name
    try:
        return file.ask.settings(file.at(file.outputs.labelled), file.at(""))
    except (RecordError, MissingExtraError) as error:
        problem = f"ask.reference: {error}"
        raise RunFileError(str(file.path), [problem]) from error


def _run(monitor: Monitor, task: MdSection | RelaxSection) -> None:
    steps = task.steps - monitor.step
    if isinstance(task, MdSection):
        monitor.dynamics.run(steps)
    else:
        monitor.dynamics.run(fmax=task.fmax_eV_per_A, steps=steps)
    monitor.close()


class _Ramp:
    """Sets the temperature of the heat bath at each step, also after a restart."""

    def __init__(self, md: MdSection, monitor: Monitor) -> None:
        self.md, self.monitor = md, monitor

    def __call__(self) -> None:
        temperature = self.md.temperature_at(self.monitor.step)
        self.monitor.dynamics.set_temperature(temperature_K=temperature)


class _Keeper:
    """Writes the frame, the last geometry and then the state of the run.

    If the state was saved at the end, the run is complete. A run that was killed before
    continues from an earlier step and writes all that is missing.
    """

    def __init__(
        self, file: RunFile, run: str, monitor: Monitor, first_step: int | None
    ) -> None:
        self.run = run
        outputs = file.outputs
        self.monitor, self.interval = monitor, outputs.interval
        self.last, self.restart = file.at(outputs.last), _restart_path(file)
        self.trajectory = None
        if outputs.trajectory is not None:
            self.trajectory = file.at(outputs.trajectory)
            cut_frames(self.trajectory, "trajectory", first_step or 0)

    def __call__(self) -> None:
        monitor = self.monitor
        if monitor.step % self.interval and monitor.end is None:
            return
        frame = monitor.snapshot()
        attempt = monitor.outputs.attempt
        if (file := self.trajectory) is not None:
            attempt("trajectory", lambda: append_frame(file, frame))
        attempt("last geometry", lambda: _replaced(self.last, frame))
        dynamics = monitor.dynamics
        atoms = watched_atoms(dynamics)
        state = Restart.of(monitor.step, self.run, atoms, dynamics)
        attempt("state to go on from", lambda: state.save(self.restart))


def _replaced(path: Path, frame: Atoms) -> None:
    """Replace the content of a file by one frame."""
    with whole(path) as partial:
        append_frame(partial, frame, "last geometry")


def _about(file: RunFile) -> dict[str, Any]:
    """Return the entry that identifies this run in the header of its log."""
    about = {
        "input": file.echo(),
        "structure_sha256": _sha256(file.at(file.structure)),
    }
    for key, paths in file.read_files().items():
        about[f"{key}_sha256"] = " ".join(map(_sha256, paths))
    return about


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(about: dict[str, Any]) -> str:
    text = json.dumps(about, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _past(file: RunFile, about: dict[str, Any]) -> LogSummary | None:
    """Return the summary of this run's log; None if there is no log yet."""
    log = file.at(file.outputs.log)
    if not log.exists() or log.stat().st_size == 0:
        return None
    past = summarise_log(log)
    if "input" not in past.run.get("about", {}):
        msg = (
            f"log of a run file must be written by uqcalc run, got {log}, which a "
            "script wrote; choose another name under outputs"
        )
        raise RecordError(msg)
    try:
        check_same_run(log, past.run["about"], about)
    except RecordError as error:
        msg = f"{error}. To continue from the end of a run: {_again(file)}"
        raise RecordError(msg) from error
    return past


def _restart(
    file: RunFile, about: dict[str, Any], past: LogSummary | None
) -> Restart | None:
    path = _restart_path(file)
    if past is None or not path.exists():
        return None
    restart = Restart.load(path)
    if restart.run != _digest(about):
        msg = (
            f"restart file must belong to this run, got {path} of another run; to "
            "start anew, remove this file and the log beside it, or choose another "
            "name"
        )
        raise RecordError(msg)
    if past.last_step is None or restart.step > past.last_step:
        msg = (
            f"restart file must not be ahead of the log, got {path} at step "
            f"{restart.step} and a log that ends at step {past.last_step}; to start "
            "anew, remove both"
        )
        raise RecordError(msg)
    return restart


def _restart_path(file: RunFile) -> Path:
    log = file.at(file.outputs.log)
    return log.with_name(f"{log.name}.restart.npz")


def _is_saved(end: dict[str, Any], restart: Restart | None) -> bool:
    """Return whether all was written at the end; True if the saved state is missing."""
    return restart is None or restart.step == end["step"]


def _clear_the_way(file: RunFile) -> None:
    """Refuse to overwrite existing outputs in a new run; delete an old saved state."""
    for name in (file.outputs.trajectory, file.outputs.last):
        if name is not None and file.at(name).exists():
            msg = (
                f"outputs of a new run must not exist, got {file.at(name)}; move this "
                "file away, or choose another name"
            )
            raise RecordError(msg)
    _restart_path(file).unlink(missing_ok=True)


def _task(file: RunFile) -> MdSection | RelaxSection:
    return file.md or file.relax or RelaxSection()


def _outcome(file: RunFile, end: dict[str, Any], told: str) -> RunOutcome:
    lines = [told, f"Last geometry: {file.at(file.outputs.last)}."]
    if not end.get("converged"):
        lines.append(f"To continue from it: {_again(file)}.")
    told = "\n".join(lines)
    reason = str(end["reason"]) if end["how"] == "halted" else ""
    return RunOutcome(end["how"], int(end["step"]), end.get("converged"), told, reason)


def _again(file: RunFile) -> str:
    moving = "" if file.md is None else " and, under md, velocities: keep"
    return f"a new run file with structure: {file.outputs.last}{moving}"


def _how(end: dict[str, Any]) -> str:
    if end["how"] == "halted":
        return f"Halted by the monitor: {end['reason']}."
    words = {True: "Converged", False: "Not converged", None: "Finished"}
    return f"{words[end.get('converged')]} after {end['step']} steps."
