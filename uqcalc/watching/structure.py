"""The structure under a monitor, with the assessments of calculator and run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.annotating.copies import annotated_copy, drop_labels
from uqcalc.annotating.descriptor import store_descriptor, structure_descriptor
from uqcalc.policy import RUN, extended
from uqcalc.records import Assessment, Reading
from uqcalc.watching.aserun import is_finite, reliable_calculator
from uqcalc.watching.runchecks import AseClock, RunChecks, not_judged


LOST = "energy, forces or stress of a moving cell are NaN or infinite"


class Structure:
    """One structure of a run, checked step by step.

    Parameters
    ----------
    dynamics : ase MD or optimiser
    find : callable
        Returns the structure that the dynamics currently moves.
    bond_change_fs : float, optional
        As for `RunChecks`.

    Attributes
    ----------
    last : Assessment or None
        Assessment of the last look; None if the geometry was not judged.
    finite : bool
        Whether energy, forces and, for a moving cell, stress were finite.
    results : mapping
        Results of the calculator at the last look; empty before the first one.
    """

    def __init__(
        self,
        dynamics: Any,
        find: Callable[[], Atoms],
        bond_change_fs: float | None = None,
    ) -> None:
        self._find = find
        calculator = self.calculator
        self._judged = calculator.policy.signals
        self._circumstances = RunChecks(
            AseClock(dynamics), calculator.signals, calculator.policy, bond_change_fs
        )
        self._judged_step = -math.inf
        self.last: Assessment | None = None
        self.finite = True
        self.results: Mapping[str, Any] = {}

    @property
    def atoms(self) -> Atoms:
        """The current structure."""
        return self._find()

    @property
    def calculator(self) -> Any:
        """The `ReliableCalculator` of the structure."""
        return reliable_calculator(self._find())

    @property
    def moves_cell(self) -> bool:
        """Whether the cell can move or has changed since the first look."""
        return self._circumstances.moves_cell(self.atoms)

    @property
    def bonds_lasted(self) -> bool:
        """Whether bonds have stayed changed for ``bond_change_fs`` at the last look."""
        return self._circumstances.bonds_lasted

    @property
    def energy(self) -> float:
        """Potential energy in eV at the last look."""
        return float(self.results["energy"])

    def energies_now(self) -> list[float]:
        """Return the current potential energy in eV, as a list of one number."""
        return [float(self.calculator.get_property("energy", self.atoms))]

    def look(self, step: int, interval: int) -> Assessment | None:
        """Return the assessment of the geometry at this step.

        None if the ``interval`` of the calculator skips the geometry. If the last
        verdict is older than the intervals of monitor and calculator, the geometry is
        judged now, with one more evaluation.
        """
        atoms = self.atoms
        calculator = reliable_calculator(atoms)
        judged = calculator.assessment_of(atoms)
        oldest = max(interval, calculator.interval)
        if judged is None and step - self._judged_step >= oldest:
            judged = calculator.assess(atoms)
        if judged is not None:
            self._judged_step = step
        self.results = calculator.results
        found = self._circumstances(atoms, judged, self.energy)
        self.finite = is_finite(self.results, stress=self.moves_cell)
        if found is None and not self.finite:
            reading = Reading(RUN, math.nan, faults=(LOST,), always=True)
            found = extended(not_judged(self._judged), reading)
        self.last = found
        return found

    def snapshot(self, step: int, *, described: bool = False) -> Atoms:
        """Return an annotated copy of the geometry at ``step``, the last look.

        A geometry without an assessment is judged now. With ``described`` the copy has
        the descriptor of the structure, for `uqcalc.select`.

        Raises
        ------
        ValueError
            If the atoms have moved since.
        """
        atoms = self.atoms
        results = atoms.calc.recall(atoms)
        if not results or results is not self.results:
            msg = (
                f"atoms must be unchanged since step {step}, got changed atoms; take "
                "snapshots from an observer or right after run()"
            )
            raise ValueError(msg)
        assessment = self.last
        if assessment is None:
            judged = atoms.calc.assess(atoms)
            self.results = atoms.calc.results
            assessment = self._circumstances(atoms, judged, self.energy) or judged
            self.last = assessment
        copy = annotated_copy(atoms, assessment, self.results)
        drop_labels(copy)  # they belong to the first geometry of the run
        copy.info["step"] = step
        if described and self.finite:
            fingerprint = self.calculator.backbone.fingerprint
            store_descriptor(copy, self.descriptor(), fingerprint)
        return copy

    def descriptor(self) -> NDArray[np.float64]:
        """Return the descriptor of the current geometry (`structure_descriptor`)."""
        return structure_descriptor(self.calculator.features(self.atoms))

    def unreliable_frames(
        self, step: int
    ) -> Iterator[tuple[Callable[[], Atoms], bool]]:
        """Yield what makes the flagged frame of an UNRELIABLE step.

        The second value says whether the frame decides the verdict of the step.
        """
        yield partial(self.snapshot, step, described=True), True
