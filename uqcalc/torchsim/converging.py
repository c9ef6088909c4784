"""`reliable_convergence`: optimise many systems, and say which results are reliable."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from uqcalc.records import Assessment, Level
from uqcalc.torchsim.model import ReliableModel
from uqcalc.torchsim.systems import Left, Places, numbers_of, put, settle
from uqcalc.torchsim.watching import CHECK, SystemClock, Watcher, moves_cell
from uqcalc.watching.relaxation import Outcome
from uqcalc.watching.trigger import Trigger


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """State of the optimisation of one system.

    Attributes
    ----------
    outcome : Outcome
        ``CONVERGED``, ``CONVERGED_UNRELIABLE``, ``LEFT``, or ``NOT_CONVERGED`` while it
        runs and if the steps were not enough.
    check : int
        Number of checks of this system so far.
    assessment : Assessment
        Of the last check.
    """

    outcome: Outcome
    check: int
    assessment: Assessment

    @property
    def level(self) -> Level:
        """Level of the geometry at the last check."""
        return self.assessment.level


class ReliableConvergence:
    """A ``convergence_fn`` that also ends systems that leave the reliable region.

    `reliable_convergence` makes it.

    Attributes
    ----------
    systems : dict
        Number of a system -> `Ended`.
    left : dict
        Number of a system -> `Left`, for each system whose trigger acted.
    """

    def __init__(
        self,
        converged: Callable[[Any, torch.Tensor], torch.Tensor],
        model: ReliableModel,
        watcher: Watcher,
    ) -> None:
        self._converged, self._model, self._watcher = converged, model, watcher
        self.systems: dict[int, Ended] = {}

    @property
    def left(self) -> dict[int, Left]:
        """Number of a system -> `Left`, for each system whose trigger acted."""
        return dict(self._watcher.left)

    def counts(self) -> dict[Outcome, int]:
        """Return the number of systems with each outcome."""
        found = [ended.outcome for ended in self.systems.values()]
        return {outcome: found.count(outcome) for outcome in Outcome}

    def close(self) -> None:
        """Write the files to disk, and release them for other runs."""
        self._watcher.close()

    def __call__(self, state: Any, last_energy: torch.Tensor) -> torch.Tensor:
        """Return which systems end here: they have converged, or have left.

        The rows of a system that has left are set to its last good state.
        """
        numbers, watcher, model = numbers_of(state), self._watcher, self._model
        judged = model.look(state)
        settle(state, model.system_keys)
        watcher.open(model, {"dynamics": type(state).__name__, "timestep_fs": None})
        cell = moves_cell(state)
        for row, number in enumerate(numbers):
            if number not in watcher.watches:
                watcher.begin(number, model, row, SystemClock(None, cell))
        done = self._converged(state, last_energy).clone()
        ready = done.tolist()
        seen, checks = [], []
        for row, number in enumerate(numbers):
            known = self.systems.get(number)
            checks.append(0 if known is None else known.check + 1)
            seen.append(watcher.look(judged, row, number, checks[row]))
        watcher.keep(state, numbers, checks)
        for row, number in enumerate(numbers):
            outcome = _outcome(seen[row].assessment, ready=ready[row])
            if seen[row].why and not ready[row]:
                outcome = Outcome.LEFT
                kept = watcher.leave(judged, row, number, checks[row], seen[row])
                put(state, kept, Places.of(state, [row]))
                done[row] = True
            elif ready[row]:
                watcher.ended(number, checks[row], seen[row].assessment, outcome.value)
            self.systems[number] = Ended(outcome, checks[row], seen[row].assessment)
        return done


def _outcome(assessment: Assessment, *, ready: bool) -> Outcome:
    if not ready:
        return Outcome.NOT_CONVERGED
    unreliable = assessment.level is Level.UNRELIABLE
    return Outcome.CONVERGED_UNRELIABLE if unreliable else Outcome.CONVERGED


def reliable_convergence(
    converged: Callable[[Any, torch.Tensor], torch.Tensor],
    model: ReliableModel,
    *,
    trigger: Trigger | None = None,
    log: str | os.PathLike[str] | None = None,
    flagged: str | os.PathLike[str] | None = None,
    mode: Literal["append", "new"] = "new",
) -> ReliableConvergence:
    """Return a ``convergence_fn`` for ``torch_sim.optimize``.

    At each check every system is judged. It ends where ``converged`` says so, and also
    where the trigger acts: it has left the reliable region, and its result is the last
    state that was RELIABLE at a check (or else SUSPECT, or the first one).

    Parameters
    ----------
    converged : callable
        ``converged(state, last_energy)`` returns a boolean for each system, such as
        ``torch_sim.generate_force_convergence_fn(0.05)``.
    model : ReliableModel
        The model that is given to ``torch_sim.optimize``.
    trigger : Trigger, optional
        Each system gets a copy, which counts checks: TorchSim checks after
        ``steps_between_swaps`` steps. By default three UNRELIABLE checks in a row.
    log, flagged, mode
        As for `guard`. Events are "level", "left", "converged" and "converged but
        unreliable"; records have a ``check`` in place of a ``step``.

    Raises
    ------
    ValueError
        When it is called with systems that have no numbers (`numbered`).
    RecordError
        If files exist (mode "new"), or another writer has them.
    """
    watcher = Watcher(trigger, log, flagged, mode, CHECK)
    return ReliableConvergence(converged, model, watcher)
