"""What a backbone is: an ASE calculator tapped in the pass it runs anyway."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols

from uqcalc.errors import BackboneError


DENSEST = 10  # atoms/Å³


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One forward pass of a backbone: all that a signal may look at.

    Attributes
    ----------
    numbers, positions, cell, pbc : arrays
        The geometry: (atoms,), (atoms, 3) Å, (3, 3) Å, (3,).
    results : dict
        The wrapped calculator's own results, untouched.
    energy, forces : float eV, (atoms, 3) eV/Å
        Of the tapped model itself: where the calculator is a sum (a potential plus
        a dispersion correction), ``results`` holds the sum and these do not.
    features : tensor (atoms, dim)
        Detached, on the model's device, in the model's dtype.
    charges : tensor (atoms,) or None
        Atomic charges in e, where the model predicts them.
    committee_forces : array (members, atoms, 3) or None
        Forces of each member in eV/Å, where the calculator is a committee.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    results: dict[str, Any]
    energy: float
    forces: np.ndarray
    features: torch.Tensor
    charges: torch.Tensor | None = None
    committee_forces: np.ndarray | None = None

    @property
    def finite(self) -> bool:
        """Whether energies and forces are all finite numbers."""
        whole = (self.results.get("energy", 0.0), self.results.get("forces", 0.0))
        given = (self.energy, self.forces, *whole)
        return all(bool(np.all(np.isfinite(value))) for value in given)

    def own(self) -> Prediction:
        """Return a copy that the next pass leaves alone: EMT writes into its forces."""
        results = {
            key: value.copy() if isinstance(value, np.ndarray) else value
            for key, value in self.results.items()
        }
        members, charges = self.committee_forces, self.charges
        return replace(
            self,
            results=results,
            forces=self.forces.copy(),
            features=self.features.clone(),
            charges=None if charges is None else charges.clone(),
            committee_forces=None if members is None else members.copy(),
        )


@dataclass(slots=True, eq=False)
class Capture:
    """What an armed tap saw: one entry per pass of each tapped model."""

    features: list[torch.Tensor]
    charges: list[torch.Tensor]


class Backbone(ABC):
    """An ASE calculator and the tap on its model.

    The tap is armed only while this backbone evaluates, so calculators and models
    may be shared, pickled and copied, and a stale feature cannot be read.

    Attributes
    ----------
    name : str
        Kind of backbone, such as ``"mace"``.
    calculator : ase calculator
        What the user sees; it may be a sum of which the tapped model is a part.
    model_calculator : ase calculator
        The calculator that owns the tapped model.
    provides : frozenset of str
        What a `Prediction` carries: "energy", "forces", "features" and, where
        there are any, "stress", "charges", "committee_forces".
    feature_dim : int or None
        Width of the features; None until the first pass where it is not known.
    fingerprint : str
        Identity of the model: the same in float32 and float64, eager or compiled.
    elements : frozenset of int or None
        Atomic numbers the model knows; None where it does not say.
    invariant_features : bool
        Whether rotating a structure leaves its features alone.
    passes_per_geometry : int
        How often the tap must fire in one evaluation: once for each member.
    passes : int
        Forward passes of the model seen so far (a committee of K counts K).
    """

    name: str
    invariant_features: bool = True
    passes_per_geometry: int = 1

    def __init__(
        self,
        calculator: BaseCalculator,
        model_calculator: BaseCalculator,
        *,
        feature_dim: int | None,
        fingerprint: str,
        elements: frozenset[int] | None = None,
    ) -> None:
        # Any: what a tap reads off them is known to its subclass alone.
        self.calculator: Any = calculator
        self.model_calculator: Any = model_calculator
        self.feature_dim = feature_dim
        self.fingerprint = fingerprint
        self.elements = elements
        self.passes = 0
        provides = {"features", "energy", "forces"}
        if "stress" in calculator.implemented_properties:
            provides.add("stress")
        self.provides = frozenset(provides)

    @abstractmethod
    def armed(self) -> AbstractContextManager[Capture]:
        """Arm the tap; leaving the context takes it off again."""

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:
        """Return what, beyond the geometry, the model's answer depends on.

        A change in it invalidates cached results. Without better knowledge of the
        calculator this is the whole of ``atoms.info``.
        """
        return dict(atoms.info)

    def predict_many(self, frames: Sequence[Atoms]) -> list[Prediction]:
        """Evaluate several frames; natively batched where the model can do it."""
        wanted = sorted(self.provides & {"energy", "forces"})
        return [self(frame, wanted).own() for frame in frames]

    @final
    def __call__(self, atoms: Atoms, wanted: Sequence[str]) -> Prediction:
        """Evaluate ``atoms`` in exactly one pass.

        Raises
        ------
        BackboneError
            For elements the model does not know, and when the tap did not fire in
            this very pass.
        """
        self.check_structure(atoms)
        captured = self._evaluate(atoms, wanted)
        if not captured.features:
            # A sum answers from its parts' caches when one of them was used on
            # this geometry elsewhere: no pass has run so far, so run it now.
            self.model_calculator.results = {}
            self.model_calculator.atoms = None
            captured = self._evaluate(atoms, wanted)
        return self._prediction(atoms, captured)

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse what no pass can be made for.

        Raises
        ------
        BackboneError
            If there are no atoms, positions or cell are not finite, the model does
            not know an element, or the cell does not span its periodic directions
            or is far too small.
        """
        if len(atoms) == 0:
            msg = "structure must have at least one atom, got none; leave it out"
            raise BackboneError(msg)
        _check_finite(atoms)
        if atoms.pbc.any():
            _check_cell(atoms)
        unknown = set() if self.elements is None else {*atoms.numbers.tolist()}
        unknown -= self.elements or set()
        if unknown:
            known = [chemical_symbols[z] for z in sorted(self.elements or ())]
            msg = (
                f"elements must be among {known} for this {self.name} model, got "
                f"{[chemical_symbols[z] for z in sorted(unknown)]}; choose a model "
                "that was trained on them"
            )
            raise BackboneError(msg)

    def _evaluate(self, atoms: Atoms, wanted: Sequence[str]) -> Capture:
        with self.armed() as captured:
            # What changed is relative to the base calculator's own last geometry;
            # with it the trajectory is bitwise the bare calculator's.
            changes = self.calculator.check_state(atoms)
            self.calculator.calculate(atoms, list(wanted), changes)
        self.passes += len(captured.features)
        return captured

    def _prediction(self, atoms: Atoms, captured: Capture) -> Prediction:
        results = dict(self.calculator.results)
        own = self.model_calculator.results
        members = own.get("forces_comm")
        return Prediction(
            numbers=atoms.numbers.copy(),
            positions=atoms.positions.copy(),
            cell=atoms.cell.array.copy(),
            pbc=atoms.pbc.copy(),
            results=results,
            energy=float(own["energy"]),
            forces=np.asarray(own["forces"]),
            features=self.feature_rows(captured, len(atoms)),
            charges=captured.charges[0] if captured.charges else None,
            committee_forces=None if members is None else np.asarray(members),
        )

    def feature_rows(self, captured: Capture, atoms: int) -> torch.Tensor:
        """Return the (atoms, dim) features, refusing anything else."""
        expected = (atoms, self.feature_dim)
        if len(captured.features) != self.passes_per_geometry:
            msg = (
                f"the tap on {self.name} must fire {self.passes_per_geometry} time(s) "
                f"for each geometry, got {len(captured.features)}; a compiled or "
                "converted model may bypass it: wrap the model uncompiled"
            )
            raise BackboneError(msg)
        features = captured.features[0]
        if tuple(features.shape) != expected:
            msg = (
                f"features of {self.name} must have shape {expected}, got "
                f"{tuple(features.shape)}; tap a layer with one row for each atom"
            )
            raise BackboneError(msg)
        return features


def _check_finite(atoms: Atoms) -> None:
    # some models answer nevertheless, and neighbour lists may fill the memory
    if not np.all(np.isfinite(atoms.cell.array)):
        msg = "cell must be finite, got NaN or infinity; take an earlier frame"
        raise BackboneError(msg)
    if not np.all(np.isfinite(atoms.positions)):
        broken = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
        msg = (
            "positions must be finite, got NaN or infinity at atoms "
            f"{broken[:5].tolist()}; take an earlier frame"
        )
        raise BackboneError(msg)


def _check_cell(atoms: Atoms) -> None:
    vectors = atoms.cell.array[atoms.pbc]
    lengths = np.linalg.norm(vectors, axis=1)
    gram = vectors @ vectors.T
    spanned = np.sqrt(max(float(np.linalg.det(gram)), 0.0))
    if not np.all(lengths > 0) or spanned < 1e-6 * np.prod(lengths):
        msg = (
            "cell must span the periodic directions, got "
            f"{atoms.cell.array.tolist()} with pbc {atoms.pbc.tolist()}; set the cell, "
            "or pbc=False for a molecule"
        )
        raise BackboneError(msg)
    # neighbour lists would fill the memory before a model could say what it thinks
    atoms_within = len(atoms) if atoms.pbc.all() else 1  # slabs may be thick
    if atoms_within > DENSEST * spanned:
        unit = "Å" + {1: "", 2: "²", 3: "³"}[len(vectors)]
        msg = (
            f"cell must hold at most {DENSEST} atoms/{unit} (diamond: 0.18/Å³), got "
            f"{atoms_within} in {spanned:.3g} {unit}; give lengths in Å"
        )
        raise BackboneError(msg)
