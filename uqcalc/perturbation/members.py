"""A backbone that evaluates the members of a perturbation beside the potential."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, one_at_a_time
from uqcalc.backbones.multipass import voigt
from uqcalc.backbones.prediction import Capture, Prediction
from uqcalc.errors import BackboneError, ModelError
from uqcalc.perturbation.perturbation import Perturbation


# Quantity of a prediction -> the result of a member.
QUANTITIES = {
    "perturbed_energies": "energy",
    "perturbed_forces": "forces",
    "perturbed_stresses": "stress",
}


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """Results of the members of a perturbation for one structure.

    Attributes
    ----------
    energies : array (members,)
        In eV.
    forces : array (members, atoms, 3)
        In eV/Å.
    stresses : array (members, 6) or None
        In eV/Å³, Voigt order; None if they were not requested, and for structures that
        are not periodic in three directions.
    """

    energies: np.ndarray
    forces: np.ndarray
    stresses: np.ndarray | None = None


@final
class PerturbedBackbone(Backbone):
    """A potential whose predictions also hold the members of a perturbation.

    Energy, forces and features are those of the potential without noise. The members
    are on demand: a geometry costs ``members`` further passes if they are requested,
    in as few batches as possible.

    Parameters
    ----------
    inner : Backbone
    perturbation : Perturbation
    members : int
    seed : int
        Seed of the members. The same seed gives the same members at every geometry.

    Raises
    ------
    ModelError
        If the perturbation belongs to another potential.
    """

    def __init__(
        self, inner: Backbone, perturbation: Perturbation, members: int, seed: int
    ) -> None:
        perturbation.layers(inner)  # refuses another potential
        self.inner = inner
        self.perturbation = perturbation
        self.members = members
        self.seed = seed
        for name in _COPIED:
            setattr(self, name, getattr(inner, name))
        super().__init__(
            inner.calculator,
            inner.model_calculator,
            feature_dim=inner.feature_dim,
            fingerprint=inner.fingerprint,
            elements=inner.elements,
        )
        own = {*QUANTITIES} - (
            set() if "stress" in inner.provides else {"perturbed_stresses"}
        )
        self.provides = inner.provides | own
        self.on_demand = inner.on_demand | own
        self._asked: frozenset[str] = frozenset()
        self._native: dict[tuple[frozenset[str], bool], bool] = {}

    @property
    def network(self) -> torch.nn.Module | None:
        """The model of the potential."""
        return self.inner.network

    def armed(self) -> AbstractContextManager[Capture]:
        """Arm the tap of the potential."""
        return self.inner.armed()

    def armed_for(self, extras: frozenset[str]) -> AbstractContextManager[Capture]:
        """Arm the tap of the potential for what it gives of ``extras``."""
        return self.inner.armed_for(extras & self.inner.on_demand)

    def models(self) -> list[object]:
        """Return the torch modules of the potential."""
        return self.inner.models()

    def calculators(self) -> list[object]:
        """Return the calculators of the potential."""
        return self.inner.calculators()

    def prepared(self, atoms: Atoms) -> Atoms:
        """Return the structure as the calculator inside gets it."""
        return self.inner.prepared(atoms)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:
        """Return the extra state of the potential."""
        return self.inner.extra_state(atoms)

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse what the potential refuses."""
        self.inner.check_structure(atoms)

    def check_same(self, perturbation: Perturbation, members: int, seed: int) -> None:
        """Refuse a second signal that needs other members than these.

        Raises
        ------
        ModelError
            If one of the arguments differs from those of this backbone.
        """
        if (members, seed) == (self.members, self.seed) and perturbation.same_as(
            self.perturbation
        ):
            return
        msg = (
            "signals of one calculator must read the same members of one perturbation, "
            f"got {self.members} members of seed {self.seed} and {members} of seed "
            f"{seed}, or two perturbations; leave out one of the signals"
        )
        raise ModelError(msg)

    def feature_rows(self, captured: Capture, atoms: int) -> torch.Tensor:
        """Return the features of the potential."""
        rows = self.inner.feature_rows(captured, atoms)
        self.feature_dim = self.inner.feature_dim
        return rows

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate all frames in native batches, then the members of each frame."""
        plain = [name for name in wanted if name not in QUANTITIES]
        predictions = self.inner.predict_many(frames, plain)
        self.passes = self.inner.passes
        asked = frozenset(QUANTITIES) & {*wanted}
        if not asked:
            return predictions
        return [
            replace(prediction, **self._found(frame, asked))
            for frame, prediction in zip(frames, predictions, strict=True)
        ]

    @one_at_a_time
    def evaluate_members(self, atoms: Atoms, *, stress: bool = False) -> Members:
        """Return the results of all members for one structure.

        Raises
        ------
        BackboneError
            If the structure cannot be evaluated, if a layer takes no noise in a pass,
            or if the potential has no stress.
        """
        self.check_structure(atoms)
        if stress and "stress" not in self.inner.provides:
            msg = f"potential must give a stress, got {self.name} without; leave it out"
            raise BackboneError(msg)
        draws = self.perturbation.draws(self.members, self.seed, len(atoms))
        wanted = ["energy", "forces"]
        if stress and atoms.pbc.all():
            wanted.append("stress")
        with _undisturbed(self.inner):
            found = self._together(atoms, draws, wanted)
        self.passes = self.inner.passes
        results = [prediction.results for prediction in found]
        return Members(
            np.array([result["energy"] for result in results], dtype=float),
            np.stack([np.asarray(result["forces"], float) for result in results]),
            np.stack([voigt(np.asarray(r["stress"], float)) for r in results])
            if "stress" in wanted
            else None,
        )

    def _together(
        self, atoms: Atoms, draws: torch.Tensor, wanted: Sequence[str]
    ) -> list[Prediction]:
        """Return one prediction for each member, from as few passes as possible."""
        size = 1
        if self._evaluates_together(atoms, wanted):
            size = max(1, self.inner.batch_atoms // len(atoms))
        found: list[Prediction] = []
        for part in draws.split(size):
            before = self.inner.passes
            with self.perturbation.applied(self.inner, part):
                found += self.inner.predict_many([atoms] * len(part), wanted)
            if self.inner.passes - before != 1:
                msg = (
                    "members of a batch must be evaluated in one pass, got "
                    f"{self.inner.passes - before} passes of {self.name} for "
                    f"{len(part)} members; report this with the potential's version"
                )
                raise BackboneError(msg)
        return found

    def _evaluates_together(self, atoms: Atoms, wanted: Sequence[str]) -> bool:
        """Return whether two replicas are evaluated in one pass; measured once."""
        key = (frozenset(wanted), bool(atoms.pbc.any()))
        if key not in self._native:
            before = self.inner.passes
            self.inner.predict_many([atoms, atoms], wanted)
            self._native[key] = self.inner.passes - before == 1
        return self._native[key]

    def _found(self, atoms: Atoms, asked: Collection[str]) -> dict[str, Any]:
        """Return the fields of a prediction with the members."""
        members = self.evaluate_members(atoms, stress="perturbed_stresses" in asked)
        return {
            "perturbed_energies": members.energies,
            "perturbed_forces": members.forces,
            "perturbed_stresses": members.stresses,
        }

    def _evaluate(self, atoms: Atoms, wanted: Sequence[str]) -> Capture:
        self._asked = frozenset(QUANTITIES) & {*wanted}
        plain = [name for name in wanted if name not in QUANTITIES]
        captured = self.inner._evaluate(atoms, plain)
        self.passes = self.inner.passes
        return captured

    def _prediction(self, atoms: Atoms, captured: Capture) -> Prediction:
        prediction = self.inner._prediction(atoms, captured)
        self.feature_dim = self.inner.feature_dim
        if not self._asked:
            return prediction
        # copies: the passes of the members may overwrite its arrays
        return replace(prediction.own(), **self._found(atoms, self._asked))


# Statements of a backbone on its model, except those that perturbed passes extend.
_COPIED = [name for name in Backbone.__annotations__ if name != "on_demand"]


@contextmanager
def _undisturbed(backbone: Backbone) -> Iterator[None]:
    """Keep the results that the calculators cache: members are not their results."""
    owners: list[Any] = [
        calculator
        for calculator in backbone.calculators()
        if hasattr(calculator, "results")
    ]
    kept = [(owner, owner.results, owner.atoms) for owner in owners]
    for owner in owners:
        owner.results = {}
    try:
        yield
    finally:
        for owner, results, atoms in kept:
            owner.results, owner.atoms = results, atoms
