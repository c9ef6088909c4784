"""Rewinding: back to an earlier RELIABLE state of a run, with other noise."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.md.contour_exploration import ContourExploration
from ase.md.md import MolecularDynamics
from ase.md.melchionna import MelchionnaNPT
from numpy.typing import NDArray

from uqcalc.records import Assessment, Level
from uqcalc.watching.aserun import timestep_fs, watched_atoms
from uqcalc.watching.enginerun import EngineRun
from uqcalc.watching.state import State
from uqcalc.watching.trigger import Trigger


# The first two keep positions of earlier steps, from which the next step is computed;
# the state of the last one is in another program.
_NOT_REWOUND = (MelchionnaNPT, ContourExploration, EngineRun)
# Saved states within ``back_fs``: a rewind goes back by at most a quarter more.
_DENSITY = 4


@dataclass(frozen=True, slots=True)
class Rewind:
    """Settings of ``Monitor(on_unreliable="rewind")``, for molecular dynamics.

    Instead of a halt, the run goes back to an earlier state and takes another path from
    there: the last RELIABLE state that is at least ``back_fs`` older than the alarm and
    older than the UNRELIABLE frames that caused it. Positions, momenta, cell, heat
    bath and barostat are those of that state. Then a part of the momenta is
    drawn anew, and the random numbers of the dynamics (``dynamics.rng``) are replaced
    by a new generator. If no such state is left, or after ``max_rewinds`` rewinds, the
    run is halted.

    The new momenta are ``sqrt(1 - refresh) p + sqrt(refresh) q``. Here q is drawn from
    the Maxwell-Boltzmann distribution, as in generalised hybrid Monte Carlo (Horowitz
    1991, doi:10.1016/0370-2693(91)90812-5). Then they are scaled to the kinetic energy
    of p. The total momentum stays that of p if no constraint acts.

    Parameters
    ----------
    max_rewinds : int
        Largest number of rewinds of one monitor, at least 1.
    back_fs : float
        Smallest time between the state and the alarm in fs, along the path that the run
        took.
    refresh : float
        Share of the momenta that is drawn anew, from 0 (only the noise of a heat bath
        differs) to 1.
    seed : int
        Seed of new momenta and noise; each rewind has its own random numbers.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    max_rewinds: int = 3
    back_fs: float = 100.0
    refresh: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_rewinds", 1), ("seed", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < least:
                msg = (
                    f"{name} must be a whole number of at least {least}, got {value!r}"
                )
                raise ValueError(msg)
            object.__setattr__(self, name, int(value))
        if not (_is_number(self.back_fs) and self.back_fs > 0):
            msg = f"back_fs must be a time above 0 in fs, got {self.back_fs!r}"
            raise ValueError(msg)
        if not (_is_number(self.refresh) and 0 <= self.refresh <= 1):
            msg = f"refresh must be a number from 0 to 1, got {self.refresh!r}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Rewound:
    """One rewind: steps ``to_step + 1`` to ``step`` do not belong to the path any more.

    Steps are never numbered twice: the first step after a rewind is ``step + 1``.
    """

    number: int
    step: int
    to_step: int

    def to_dict(self) -> dict[str, Any]:
        """Return the record for the event log, without its reason."""
        return {
            "event": "rewind",
            "step": self.step,
            "to_step": self.to_step,
            "number": self.number,
        }


class Rewinder:
    """Keeps some RELIABLE states of a run, and goes back to one of them.

    The number of states is bounded: four for each ``back_fs``, enough for all rewinds
    to go back by ``back_fs`` each.

    Parameters
    ----------
    settings : Rewind
    dynamics : ase MD
    trigger : Trigger
        That of the monitor.

    Attributes
    ----------
    done : list of Rewound

    Raises
    ------
    ValueError
        If the dynamics cannot be rewound.
    """

    def __init__(self, settings: Rewind, dynamics: Any, trigger: Trigger) -> None:
        timestep = timestep_fs(dynamics)
        if timestep is None or isinstance(dynamics, _NOT_REWOUND):
            msg = (
                "dynamics must be molecular dynamics whose next step depends on the "
                'present state only for on_unreliable="rewind", got '
                f'{type(dynamics).__name__}; choose on_unreliable="halt"'
            )
            raise ValueError(msg)
        self.settings = settings
        self._dynamics: MolecularDynamics = dynamics
        self._back = math.ceil(settings.back_fs / timestep - 1e-9)
        self._every = max(1, self._back // _DENSITY)
        kept = (_DENSITY + 1) * (settings.max_rewinds + 1)
        self._states: deque[tuple[int, State]] = deque(maxlen=kept)
        self._window = trigger.window
        # UNRELIABLE frames that the trigger counts now
        self._bad: deque[int] = deque(maxlen=trigger.needed)
        self._discarded = 0
        self.done: list[Rewound] = []

    def restore(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Count the rewinds in the log of a killed run; its states are lost."""
        self.done += [
            Rewound(len(self.done) + n, int(r["step"]), int(r["to_step"]))
            for n, r in enumerate(records, start=1)
        ]

    def keep(self, step: int, assessment: Assessment | None) -> None:
        """Save the state at a RELIABLE step, unless one was saved shortly before.

        A step without the reading of a signal that has a threshold is not saved.
        """
        time = step - self._discarded
        if assessment is None:
            return
        if assessment.level is Level.UNRELIABLE:
            self._bad.append(time)
            return
        if assessment.verdict.skipped:
            return
        if self._window is None:
            self._bad.clear()  # the row has ended
        if assessment.level is not Level.RELIABLE:
            return
        if not self._states or time - self._states[-1][0] >= self._every:
            state = State.of(step, watched_atoms(self._dynamics), self._dynamics)
            self._states.append((time, state))

    def back(self, step: int) -> Rewound | None:
        """Go back at the next step; return None if the run must be halted instead."""
        if len(self.done) >= self.settings.max_rewinds:
            return None
        time = step - self._discarded
        latest = min(time - self._back, self._first_bad(time) - 1)
        while self._states and self._states[-1][0] > latest:
            self._states.pop()
        self._bad.clear()
        if not self._states:
            return None
        saved, state = self._states[-1]
        self._discarded += time - saved
        rewound = Rewound(len(self.done) + 1, step, state.step)
        self.done.append(rewound)
        self._before_next_step(lambda: self._restore(state, rewound.number))
        return rewound

    def _first_bad(self, time: int) -> int:
        """Return the first UNRELIABLE frame that has raised the alarm at ``time``.

        A RELIABLE frame after it is a fluctuation within the failure.
        """
        start = -math.inf if self._window is None else time - self._window
        return min((bad for bad in self._bad if bad > start), default=time)

    def why_not(self) -> str:
        """Return why `back` returned None."""
        most = self.settings.max_rewinds
        if len(self.done) >= most:
            return f"after {most} rewind{'' if most == 1 else 's'}"
        return (
            f"no RELIABLE state is left {self.settings.back_fs:g} fs before the alarm "
            "and before its UNRELIABLE frames"
        )

    def _before_next_step(self, act: Callable[[], None]) -> None:
        """Call ``act`` when the next step begins.

        The other observers of this step still get the frame of the alarm.
        """
        dynamics, attributes = self._dynamics, vars(self._dynamics)
        own = {"step": attributes["step"]} if "step" in attributes else {}

        def step(*args: Any, **options: Any) -> Any:
            del attributes["step"]
            attributes.update(own)
            act()
            return dynamics.step(*args, **options)  # type: ignore[attr-defined]

        attributes["step"] = step

    def _restore(self, state: State, number: int) -> None:
        dynamics = self._dynamics
        atoms = watched_atoms(dynamics)
        state.place(atoms, moving=True)
        state.wind(dynamics, noise=False)
        momenta, noise = (
            np.random.default_rng([self.settings.seed, number, use]) for use in (0, 1)
        )
        refresh_momenta(atoms, self.settings.refresh, momenta)
        if hasattr(dynamics, "_p"):  # Nosé-Hoover chains and MTK have a copy
            dynamics._p = atoms.get_momenta()
        if hasattr(dynamics, "rng"):
            dynamics.rng = noise


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    known = isinstance(value, int | float | np.integer | np.floating)
    return known and math.isfinite(value)


def refresh_momenta(atoms: Atoms, share: float, rng: np.random.Generator) -> None:
    """Draw a share of the momenta anew; see `Rewind`."""
    before, masses = atoms.get_momenta(), atoms.get_masses()[:, None]
    drawn = rng.standard_normal(before.shape) * np.sqrt(masses)
    drift = np.zeros_like(before)
    if not atoms.constraints and len(atoms) > 1:
        drift = masses * before.sum(axis=0) / masses.sum()
        drawn -= masses * drawn.sum(axis=0) / masses.sum()
    atoms.set_momenta(drawn)  # constraints remove what they hold
    drawn, own = atoms.get_momenta(), before - drift
    energy, other = _twice_kinetic(own, masses), _twice_kinetic(drawn, masses)
    if energy > 0 and other > 0:
        own *= np.sqrt(1 - share)
        own += np.sqrt(share * energy / other) * drawn
        own *= np.sqrt(energy / _twice_kinetic(own, masses))
    atoms.set_momenta(own + drift)


def _twice_kinetic(momenta: NDArray[np.float64], masses: NDArray[np.float64]) -> float:
    return float((momenta**2 / masses).sum())


def settings_of(action: object) -> Rewind | None:
    """Return the settings in ``on_unreliable``; None for another action."""
    if isinstance(action, Rewind):
        return action
    return Rewind() if action == "rewind" else None
