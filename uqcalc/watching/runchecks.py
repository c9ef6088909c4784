"""Checks on a run: temperature, speed, energy drift, lost atoms and a moving cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols
from ase.filters import StrainFilter, UnitCellFilter
from ase.md.md import MolecularDynamics

from uqcalc.policy import RUN, Policy, extended
from uqcalc.records import Assessment, Level, Reading, Verdict, told_apart
from uqcalc.uses import Use, uncovered
from uqcalc.watching.aserun import timestep_fs
from uqcalc.watching.bondgraph import BondGraph


# K. Electrons are excited there (8.6 eV): ground-state potentials do not apply.
HOTTEST = 1e5
# Å in one time step: more than half a bond length, so that the integration fails.
FARTHEST = 1.0
# eV/atom, up or down since the first step: ten times the energy of a bond.
STEEPEST = 100.0


class Clock(Protocol):
    """Data of a run for the checks."""

    @property
    def timestep_fs(self) -> float | None:
        """The time step in fs; None for an optimiser."""

    @property
    def nsteps(self) -> int:
        """Steps made so far."""

    @property
    def moves_cell(self) -> bool:
        """Whether the run can change the cell."""


@dataclass(frozen=True, slots=True)
class AseClock:
    """The clock of an MD or optimiser object of ASE."""

    dynamics: Any

    @property
    def timestep_fs(self) -> float | None:
        """The time step in fs; None for an optimiser."""
        return timestep_fs(self.dynamics)

    @property
    def nsteps(self) -> int:
        """Steps made so far."""
        return int(self.dynamics.nsteps)

    @property
    def moves_cell(self) -> bool:
        """Whether the run can change the cell."""
        return moves_cell(self.dynamics)


class RunChecks:
    """Adds findings on the run to the assessment of each step.

    - UNRELIABLE, and the monitor acts in the same step: the temperature is above
      100 000 K, velocities are not finite, an atom moves by more than 1 Å in a time
      step, or the energy differs by more than 100 eV/atom from the first step.
    - UNRELIABLE: more atoms than at the first step have no neighbour within the cutoff
      (`uqcalc.Sanity`).
    - SUSPECT: a bond is broken or formed since the first step, and the temperature is
      above that of the probe's labels (both only if `uqcalc.Flags` is among the
      signals). UNRELIABLE, if bonds have stayed changed for ``bond_change_fs``.
    - SUSPECT: the policy has no threshold for a signal that judges the forces or, when
      the cell moves (a barostat, a cell filter, or a change since the first step), the
      stress (`uqcalc.uses`).

    Parameters
    ----------
    clock : Clock
        `AseClock` for an MD or optimiser object of ASE.
    signals : sequence of Signal
        Signals of the calculator.
    policy : Policy
        Policy of the calculator. When the cell moves, its thresholds for a moving cell
        count, too.
    bond_change_fs : float, optional
        Time in fs after which changed bonds are UNRELIABLE.

    Attributes
    ----------
    bonds_lasted : bool
        Whether bonds have stayed changed for ``bond_change_fs`` at this step. The time
        then starts again.

    Raises
    ------
    ValueError
        If ``bond_change_fs`` is not a time above 0, or if the run has no time step or
        its signals lack `uqcalc.Flags`.
    """

    def __init__(
        self,
        clock: Clock,
        signals: Sequence[Any],
        policy: Policy,
        bond_change_fs: float | None = None,
    ) -> None:
        self._clock = clock
        self._policy = policy
        uses: tuple[Use, ...] = ("fixed_cell", "moving_cell")
        self._uncovered = {use: uncovered(signals, policy, use) for use in uses}
        self._by_design = clock.moves_cell
        self._first: tuple[float, np.ndarray, float] | None = None
        # of `uqcalc.Flags`, which cannot be imported here
        find = next((s.bonds for s in signals if hasattr(s, "bonds")), None)
        self._bonds = None if find is None else BondGraph(find)
        self._patience = self._checked(bond_change_fs)
        self._changed_fs: float | None = None
        self.bonds_lasted = False
        hottest = [getattr(signal, "hottest", None) for signal in signals]
        self._hottest = max((t for t in hottest if t is not None), default=None)

    def __call__(
        self, atoms: Atoms, assessment: Assessment | None, total_energy: float
    ) -> Assessment | None:
        """Return the assessment of this step with the findings on the run.

        None (a step that was not judged) stays None, unless there is a finding.
        ``total_energy`` is the potential energy in eV.
        """
        energy = total_energy / len(atoms)
        self.bonds_lasted = False
        unseen = np.nan  # comparisons with NaN are False
        if assessment is not None:
            unseen = float(assessment.results().get("sanity_unseen", 0.0))
        if self._first is None:
            self._first = energy, atoms.cell.array.copy(), unseen
        risk, absurd = self._motion(atoms)
        change = energy - self._first[0]
        if abs(change) > STEEPEST:  # another check handles NaN
            found, most = told_apart(abs(change), STEEPEST)
            sign = "+" if change > 0 else "-"
            absurd.append(
                f"the energy differs from that of the first step by {sign}{found} "
                f"eV/atom, more than {most} eV/atom"
            )
        left = unseen - self._first[2]
        faults = (
            [
                f"atoms have left: {left:.0f} more without a neighbour than at the "
                "first step"
            ]
            if left > 0
            else []
        )
        doubts, unlabelled = [], list[str]()
        if assessment is not None:
            use: Use = "moving_cell" if self.moves_cell(atoms) else "fixed_cell"
            assessment = self._policy.for_use(assessment, use)
            doubts += self._uncovered[use]
        if assessment is not None and self._bonds is not None:
            changed = self._bonds(atoms)
            self.bonds_lasted = self._lasted(changed=bool(changed))
            (faults if self.bonds_lasted else doubts).extend(changed)
            unlabelled = self._too_hot(atoms)
        if not (absurd or faults or doubts or unlabelled):
            return assessment
        reading = Reading(
            RUN,
            risk,
            doubts=tuple(doubts),
            unlabelled=tuple(unlabelled),
            faults=tuple(faults),
            absurd=tuple(absurd),
            always=True,
        )
        return extended(assessment or not_judged(self._policy.signals), reading)

    def moves_cell(self, atoms: Atoms) -> bool:
        """Return whether the cell can move or has changed since the first step."""
        changed = self._first is not None and not np.array_equal(
            self._first[1], atoms.cell.array
        )
        return self._by_design or changed

    def _checked(self, bond_change_fs: float | None) -> float | None:
        if bond_change_fs is None:
            return None
        if not 0 < bond_change_fs < np.inf:
            msg = f"bond_change_fs must be a time above 0 in fs, got {bond_change_fs!r}"
            raise ValueError(msg)
        if self._bonds is None or self._clock.timestep_fs is None:
            msg = (
                "bond_change_fs must be given with molecular dynamics and the signal "
                "'flags', got a run without them; leave out bond_change_fs"
            )
            raise ValueError(msg)
        return bond_change_fs

    def _lasted(self, *, changed: bool) -> bool:
        """Return whether bonds have stayed changed for the given time."""
        timestep = self._clock.timestep_fs
        if self._patience is None or timestep is None:
            return False
        now = self._clock.nsteps * timestep
        if not changed:
            self._changed_fs = None
            return False
        if self._changed_fs is None:
            self._changed_fs = now
        lasted = now - self._changed_fs >= self._patience - 1e-6
        if lasted:
            self._changed_fs = now
        return lasted

    def _too_hot(self, atoms: Atoms) -> list[str]:
        """Return a reason if the temperature is above that of the labels.

        Three standard deviations of the canonical temperature, T sqrt(2 / (3 N))
        (Allen & Tildesley 1987, section 2.5), are allowed.
        """
        if self._hottest is None or self._clock.timestep_fs is None:
            return []
        limit = self._hottest * (1 + 3 * np.sqrt(2 / (3 * len(atoms))))
        temperature = float(atoms.get_temperature())
        if not temperature > limit:
            return []
        return [
            f"the temperature is {temperature:.0f} K > {limit:.0f} K, the limit for "
            f"labels of at most {self._hottest:.0f} K"
        ]

    def _motion(self, atoms: Atoms) -> tuple[float, list[str]]:
        """Return a risk, NaN for non-finite velocities and else 0, and the reasons."""
        timestep = self._clock.timestep_fs
        if timestep is None or not atoms.has("momenta"):
            return 0.0, []
        if not np.isfinite(atoms.get_momenta()).all():
            return np.nan, ["velocities are NaN or infinite"]
        reasons = []
        temperature = float(atoms.get_temperature())
        if temperature > HOTTEST:
            hot, most = told_apart(temperature, HOTTEST, digits=6)
            reasons.append(f"the temperature is {hot} K > {most} K")
        moves = np.linalg.norm(atoms.get_velocities(), axis=1) * timestep * units.fs
        fastest = int(moves.argmax())
        if moves[fastest] > FARTHEST:
            symbol = chemical_symbols[atoms.numbers[fastest]]
            far, most = told_apart(float(moves[fastest]), FARTHEST)
            reasons.append(
                f"{symbol}{fastest} moves by {far} Å in one time step > {most} Å"
            )
        return 0.0, reasons


def not_judged(skipped: Sequence[str]) -> Assessment:
    """Return an assessment without readings, to which findings can be added."""
    return Assessment((), Verdict(Level.RELIABLE, (), tuple(skipped)))


def moves_cell(dynamics: Any) -> bool:
    """Return whether an MD or optimiser object can change the cell."""
    moved: Any = getattr(dynamics, "atoms", None)
    while moved is not None and not isinstance(moved, Atoms):
        if isinstance(moved, StrainFilter | UnitCellFilter):
            return True
        moved = getattr(moved, "atoms", None)
    if not isinstance(dynamics, MolecularDynamics):
        return False
    if (
        getattr(dynamics, "pfactor_given", 1.0) is None
    ):  # MelchionnaNPT without barostat
        return False
    names = ("externalstress", "pressure", "_pressure_au")
    return any(getattr(dynamics, name, None) is not None for name in names)
