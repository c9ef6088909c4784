"""`relax`: a geometry optimisation that stops when the potential is UNRELIABLE."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ase import Atoms
from ase.optimize import BFGS

from uqcalc.annotating.frametext import frame_text
from uqcalc.errors import UnreliableError
from uqcalc.files.writing import strict_json
from uqcalc.records import Event, Level
from uqcalc.watching.aserun import watched_atoms
from uqcalc.watching.monitor import Monitor


class Outcome(Enum):
    """How a guarded relaxation ended."""

    CONVERGED = "converged"
    NOT_CONVERGED = "not converged"
    CONVERGED_UNRELIABLE = "converged but unreliable"
    LEFT = "left the reliable region"


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """Result of a guarded relaxation.

    Attributes
    ----------
    outcome : Outcome
    final : Atoms
        Annotated copy of the last geometry.
    trusted : Atoms or None
        Annotated copy of the last RELIABLE or SUSPECT geometry.
    trusted_step : int or None
        Step of ``trusted``.
    went_bad_at : int or None
        Step from which on all judged geometries are UNRELIABLE; None if the last judged
        one is not.
    history : list of Event
        One record per optimiser step, without trial points of line searches.
    """

    outcome: Outcome
    final: Atoms
    trusted: Atoms | None
    trusted_step: int | None
    went_bad_at: int | None
    history: list[Event]

    def __str__(self) -> str:
        text = f"{self.outcome.value} after {self.history[-1].step} steps"
        if self.went_bad_at is not None:
            text += f"; UNRELIABLE from step {self.went_bad_at} on"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return a record that JSON can hold, for a workflow; NaN becomes None.

        ``final`` and ``trusted`` are annotated frames as extended XYZ text, ``history``
        has the records of the event log, ``level`` is that of the last geometry that
        was judged.
        """
        levels = [event.level for event in self.history if event.level is not None]
        last = self.history[-1]
        record = {
            "outcome": self.outcome.value,
            "steps": last.step,
            "energy_eV": last.energy_eV,
            "level": levels[-1].name if levels else None,
            "reasons": list(last.reasons),
            "final": frame_text(self.final, "final frame").text,
            "trusted": None
            if self.trusted is None
            else frame_text(self.trusted, "trusted frame").text,
            "trusted_step": self.trusted_step,
            "went_bad_at": self.went_bad_at,
            "history": [event.to_dict() for event in self.history],
        }
        return dict(strict_json(record))


class _Trusted:
    """Keeps a copy of the last RELIABLE or SUSPECT geometry."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.frame: Atoms | None = None
        self.step: int | None = None
        self.went_bad_at: int | None = None

    def __call__(self) -> None:
        event = self.monitor.history[-1]
        if event.level is None:  # not judged: changes nothing
            return
        if event.level is Level.UNRELIABLE:
            if self.went_bad_at is None:
                self.went_bad_at = event.step
        else:
            self.frame, self.step = self.monitor.snapshot(), event.step
            self.went_bad_at = None


def relax(
    atoms: Any,
    optimizer: Any = BFGS,
    *,
    fmax: float = 0.05,
    steps: int = 500,
    patience: int | None = None,
    log: str | os.PathLike[str] | None = None,
    flagged: str | os.PathLike[str] | None = None,
    **optimizer_options: Any,
) -> Relaxation:
    """Relax ``atoms`` under a `Monitor` that halts an UNRELIABLE relaxation.

    Parameters
    ----------
    atoms : Atoms or ase Filter
        Must have a `ReliableCalculator`. The atoms are moved in place, as in ASE.
    optimizer : ase optimiser class
    fmax : float
        Largest force at convergence, in eV/Å.
    steps : int
        Largest number of optimiser steps.
    patience : int, optional
        Number of consecutive UNRELIABLE geometries that halts; three by default.
    log, flagged : path, optional
        As for `Monitor`.
    **optimizer_options
        Passed to ``optimizer``.

    Returns
    -------
    Relaxation

    Raises
    ------
    TypeError
        If ``atoms`` has another type, for example a band of images (NEB), or if
        ``optimizer`` is not a class.
    """
    if not callable(optimizer):
        msg = (
            "optimizer must be a class such as ase.optimize.BFGS, got "
            f"{optimizer!r}; pass the class, not its name or an object"
        )
        raise TypeError(msg)
    optimizer_options.setdefault("logfile", None)
    with optimizer(atoms, **optimizer_options) as dynamics:
        watched_atoms(dynamics)  # one structure, not a band
        monitor = Monitor(
            dynamics, log=log, flagged=flagged, patience=patience, history=None
        )
        trusted = _Trusted(monitor)
        dynamics.insert_observer(trusted, position=1)
        try:
            converged = bool(dynamics.run(fmax=fmax, steps=steps))
        except UnreliableError:  # only an exception stops some optimisers
            converged = False
            trusted()
    monitor.close()
    return Relaxation(
        outcome=_outcome(monitor, converged=converged),
        final=monitor.snapshot(),
        trusted=trusted.frame,
        trusted_step=trusted.step,
        went_bad_at=trusted.went_bad_at,
        history=list(monitor.history),
    )


def _outcome(monitor: Monitor, *, converged: bool) -> Outcome:
    bad = monitor.history[-1].level is Level.UNRELIABLE
    if converged:
        return Outcome.CONVERGED_UNRELIABLE if bad else Outcome.CONVERGED
    if monitor.halted:
        return Outcome.LEFT
    return Outcome.NOT_CONVERGED
