"""A committee of any calculators, for their agreement at every geometry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.fingerprint import combined
from uqcalc.backbones.multipass import MultiPassBackbone, MultiPassCalculator, voigt
from uqcalc.backbones.prediction import Capture, Prediction
from uqcalc.backbones.registry import tap
from uqcalc.errors import BackboneError


@final
class Committee(MultiPassBackbone):
    """Several calculators as one backbone, for `uqcalc.ForceSpread` and the like.

    Its calculator gives the mean energy and forces of the members (and stress, if all
    have one), and the value of each member in ``energy_comm`` (members,) and
    ``forces_comm`` (members, atoms, 3). Features, charges and vectors are those of the
    first member. A geometry costs one pass of every member.

    If the potentials have different zeros of energy, mean and spread of the energies
    have little meaning. Forces do not depend on the zero.

    Parameters
    ----------
    calculators : sequence of ase calculators or Backbones
        Two or more. `uqcalc.tap` must support the first. Others that it
        does not support run without a tap; their forces count as conservative.

    Raises
    ------
    BackboneError
        If there are fewer than two, the first cannot be tapped, or one gives no
        energy or no forces.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from ase.calculators.emt import EMT
    >>> from uqcalc import Committee, open_model
    >>> committee = Committee([open_model("default"), EMT()])
    >>> prediction = committee(molecule("CH3OH"), ["energy", "forces"])
    >>> prediction.committee_forces.shape
    (2, 6, 3)
    """

    name = "committee"

    def __init__(self, calculators: Sequence[BaseCalculator | Backbone]) -> None:
        listed = list(calculators) if isinstance(calculators, Sequence) else []
        if len(listed) < 2:
            got = len(listed) if listed else type(calculators).__name__
            msg = (
                f"committee must have at least two calculators, got {got}; pass them "
                "as a list: Committee([one, other])"
            )
            raise BackboneError(msg)
        members = [tap(listed[0]), *(_member(other) for other in listed[1:])]
        known = [m.elements for m in members if m.elements is not None]
        super().__init__(
            CommitteeCalculator(members),
            fingerprint=combined("committee", [m.fingerprint for m in members]),
            elements=frozenset.intersection(*known) if known else None,
        )
        self.members = tuple(members)
        self.provides |= {"committee_forces", "committee_energies"}
        self.provides |= members[0].provides & {"charges", "vectors"}
        self.on_demand = members[0].on_demand & {"vectors"}
        if "stress" in self.provides:
            self.provides |= {"committee_stresses"}
            self.on_demand |= {"committee_stresses"}

    def combined(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Return the first member's features, and the stresses if all have one."""
        first = predictions[0]
        names = ("features", "charges", "vectors")
        more = {name: getattr(first, name) for name in names}
        given = [
            one.results["stress"] for one in predictions if "stress" in one.results
        ]
        if len(given) == len(predictions) and first.pbc.all():
            more["committee_stresses"] = np.array([voigt(stress) for stress in given])
        return more


class CommitteeCalculator(MultiPassCalculator):
    """Evaluate every member once; give means, ``energy_comm`` and ``forces_comm``."""

    def evaluate(self, atoms: Atoms, wanted: Sequence[str]) -> list[Prediction]:
        """Evaluate the members, in order."""
        asked = self._of_each(wanted, stress=bool(atoms.pbc.all()))
        return [
            member(atoms, names)
            for member, names in zip(self.parts, asked, strict=True)
        ]

    def evaluate_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str]
    ) -> list[list[Prediction]]:
        """Evaluate all frames, member by member; with stresses, frame by frame."""
        if "committee_stresses" in wanted:
            return [self.evaluate(frame, wanted) for frame in frames]
        each = [
            member.predict_many(frames, names)
            for member, names in zip(self.parts, self._of_each(wanted), strict=True)
        ]
        return [list(predictions) for predictions in zip(*each, strict=True)]

    def _of_each(
        self, wanted: Sequence[str], *, stress: bool = False
    ) -> list[list[str]]:
        """Return the properties to request of each member; extras of the first only."""
        names = {*wanted}
        if "committee_stresses" in names:
            names = names - {"committee_stresses"} | ({"stress"} if stress else set())
        plain = sorted(names & {*self.implemented_properties})
        return [sorted(names), *[plain] * (len(self.parts) - 1)]

    def combined(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Return the means, and energies and forces of each member."""
        results = [prediction.results for prediction in predictions]
        return super().combined(predictions) | {
            "energy_comm": np.array([float(one["energy"]) for one in results]),
            "forces_comm": np.array([one["forces"] for one in results], dtype=float),
        }


class Untapped(Backbone):
    """A calculator without a tap: only its results are read, no features."""

    name = "untapped"

    def __init__(self, calculator: BaseCalculator) -> None:
        missing = {"energy", "forces"} - {*calculator.implemented_properties}
        if missing:
            msg = (
                "member of a committee must give energy and forces, got "
                f"{type(calculator).__name__} without {sorted(missing)}; leave it out"
            )
            raise BackboneError(msg)
        super().__init__(
            calculator, calculator, feature_dim=0, fingerprint=_identity(calculator)
        )

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Count the one call of ``calculate`` as a pass."""
        yield Capture([torch.empty(0)], [])

    def feature_rows(self, captured: Capture, atoms: int) -> torch.Tensor:
        """Return an empty tensor, shape (atoms, 0)."""
        del captured
        return torch.empty(atoms, 0)


def _member(calculator: BaseCalculator | Backbone) -> Backbone:
    if isinstance(calculator, Backbone) or hasattr(calculator, "assess"):
        return tap(calculator)  # raises an error for a ReliableCalculator
    try:
        return tap(calculator)
    except BackboneError:
        if not isinstance(calculator, BaseCalculator):
            raise
    return Untapped(calculator)


def _identity(calculator: BaseCalculator) -> str:
    """Hash the class name and those parameters whose text is equal in every process."""
    kind = type(calculator)
    parameters = getattr(calculator, "parameters", None) or {}
    plain = {
        key: value
        for key, value in sorted(parameters.items())
        if isinstance(value, int | float | str | None)
    }
    return combined("untapped", [f"{kind.__module__}.{kind.__qualname__}"], [plain])
