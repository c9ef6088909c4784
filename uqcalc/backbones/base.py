"""What a backbone is: an ASE calculator tapped in the pass it runs anyway."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, final

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from uqcalc.backbones.load import Costs, check_load
from uqcalc.backbones.locks import (
    entered,
    held,
    is_mine,
    models_in,
    noted,
    parts_of,
)
from uqcalc.backbones.prediction import Capture, Prediction, geometry
from uqcalc.backbones.structure import check_atoms, check_cell, check_finite
from uqcalc.backbones.told import check_told
from uqcalc.errors import BackboneError


__all__ = ["Backbone", "Capture", "Prediction", "one_at_a_time"]

B = TypeVar("B", bound="Backbone")
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def _gradients(*, needed: bool) -> Iterator[None]:
    """Let torch differentiate, also where the caller has switched that off."""
    if not needed:
        yield
        return
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


def one_at_a_time(
    method: Callable[Concatenate[B, P], R],
) -> Callable[Concatenate[B, P], R]:
    """Let a method that evaluates hold the model as `Backbone.alone` does.

    And let it differentiate where the backbone is ``by_autograd``.
    """

    @wraps(method)
    def holding(self: B, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.alone(), _gradients(needed=self.by_autograd):
            return method(self, *args, **kwargs)

    return holding


class Backbone(ABC):
    """An ASE calculator and the tap on its model.

    The tap is armed only while this backbone evaluates, so calculators and models
    may be shared, pickled and copied, and a stale feature cannot be read. Threads may
    share them, too: an evaluation holds a lock of every calculator and torch module
    that it goes through (`alone`).

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
        there are any, "stress", "charges", "committee_forces", "committee_energies",
        "committee_stresses", "expected_errors", "direct_forces",
        "conservative_forces", "direct_stress", "conservative_stress", "vectors".
    on_demand : frozenset of str
        Those of ``provides`` that cost extra, and are given only when wanted.
    conservative : bool
        Whether ``forces`` are -dE/dr of ``energy``.
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
    changes_process : bool
        Whether a pass changes for a while what all threads read, as torch's default
        dtype. It then has the process to itself, as far as backbones go.
    by_autograd : bool
        Whether a pass is differentiated by torch, which ``torch.no_grad`` and
        ``torch.inference_mode`` around the evaluation are then kept from forbidding.
    cutoff : float or None
        How far an atom sees its neighbours in one step of message passing, Å; None
        where it is not known.
    reads : frozenset of str or None
        Which of the keys of ``atoms.info`` that name a charge or a spin
        (`uqcalc.backbones.told.NAMES`) change the model's answer; None where it is not
        known.
    parses : frozenset of str
        Which of these keys the calculator makes a number of, whether the model reads it
        or not: what is not a whole number is refused.
    costs : Costs or None
        What a pass takes of memory; with the cutoff, structures that would fill it are
        refused before it is tried.
    """

    name: str
    invariant_features: bool = True
    conservative: bool = True
    on_demand: frozenset[str] = frozenset()
    passes_per_geometry: int = 1
    changes_process: bool = False
    by_autograd: bool = False
    cutoff: float | None = None
    reads: frozenset[str] | None = None
    parses: frozenset[str] = frozenset()
    costs: Costs | None = None

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
        if self.conservative:
            provides.add("conservative_forces")
        self.provides = frozenset(provides)

    @abstractmethod
    def armed(self) -> AbstractContextManager[Capture]:
        """Arm the tap; leaving the context takes it off again."""

    def armed_for(
        self,
        extras: frozenset[str],  # noqa: ARG002
    ) -> AbstractContextManager[Capture]:
        """Arm the tap for a pass that gives these of ``on_demand``, too."""
        return self.armed()

    def calculators(self) -> list[object]:
        """Return every calculator that a pass goes through, parts of sums included."""
        parts = parts_of(self.calculator)
        every = [self.calculator, self.model_calculator, *parts]
        return [*{id(calculator): calculator for calculator in every}.values()]

    def models(self) -> list[object]:
        """Return every torch module that a pass goes through, and what holds it.

        By default what is found among the attributes of the calculators. It is called
        while their locks are held.
        """
        return [m for calculator in self.calculators() for m in models_in(calculator)]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads away from the model meanwhile.

        Of all backbones that share a calculator, a torch module or a part of one, in
        whatever thread, one at a time is inside; the same thread may enter again.
        """
        if is_mine(self):  # entered again: looking for models takes time
            yield
            return
        with (
            entered(alone=self.changes_process),
            held(self.calculators()),
            held(self.models()),
            noted(self),
        ):
            yield

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Let no other thread's pass change the calculators meanwhile.

        No evaluation may begin inside: for that there is `alone`.
        """
        if is_mine(self):
            yield
            return
        with held(self.calculators()):
            yield

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:
        """Return what, beyond the geometry, the model's answer depends on.

        A change in it invalidates cached results. Without better knowledge of the
        calculator this is the whole of ``atoms.info``.
        """
        return dict(atoms.info)

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate several frames; natively batched where the model can do it.

        Where this is overridden it is to be wrapped in `one_at_a_time`.
        """
        given = sorted(self.provides & {*wanted})
        return [self(frame, given) for frame in frames]

    @final
    def may_batch(self, frames: Sequence[Atoms]) -> bool:
        """Whether a native batch is for these: not for one frame, nor for a sum.

        Raises
        ------
        BackboneError
            If no pass can be made for one of them.
        """
        if self.calculator is not self.model_calculator or len(frames) < 2:
            return False
        for frame in frames:
            self.check_structure(frame)
        return True

    @final
    @one_at_a_time
    def __call__(self, atoms: Atoms, wanted: Sequence[str]) -> Prediction:
        """Evaluate ``atoms`` in exactly one pass.

        ``wanted`` are ASE properties, and those of ``on_demand`` that a signal needs.

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
        # its own arrays: the next pass of the calculator, whoever asks, may write
        return self._prediction(atoms, captured).own()

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse what no pass can be made for.

        Raises
        ------
        BackboneError
            If there are no atoms, positions or cell are not finite, a mass is not
            positive, an atomic number is none, the model does not know an element or
            cannot read the charge or spin, or the cell does not span its periodic
            directions or is far too small.
        """
        if len(atoms) == 0:
            msg = "structure must have at least one atom, got none; leave it out"
            raise BackboneError(msg)
        check_finite(atoms)
        check_atoms(atoms)
        check_told(atoms, self.parses | (self.reads or frozenset()))
        if atoms.pbc.any():
            check_cell(atoms)
        if self.cutoff is not None and self.costs is not None:
            check_load(atoms, self.cutoff, self.costs)
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
        known = self.calculator.implemented_properties
        properties = [name for name in wanted if name in known]
        with self.armed_for(self.on_demand & {*wanted}) as captured:
            # What changed is relative to the base calculator's own last geometry;
            # with it the trajectory is bitwise the bare calculator's.
            changes = self.calculator.check_state(atoms)
            self.calculator.calculate(atoms, properties, changes)
        self.passes += len(captured.features)
        return captured

    def _prediction(self, atoms: Atoms, captured: Capture) -> Prediction:
        results = dict(self.calculator.results)
        own = self.model_calculator.results
        members = own.get("forces_comm")
        forces = np.asarray(own["forces"])
        more: dict[str, Any] = dict(captured.more)
        if "energy_comm" in own:
            more["committee_energies"] = np.asarray(own["energy_comm"])
        if "committee_stresses" in self.provides and atoms.pbc.all():
            more["committee_stresses"] = full_3x3_to_voigt_6_stress(own["stress_comm"])
        if self.conservative:
            more["conservative_forces"] = forces
        return Prediction(
            **geometry(atoms),
            results=results,
            energy=float(own["energy"]),
            forces=forces,
            features=self.feature_rows(captured, len(atoms)),
            charges=captured.charges[0] if captured.charges else None,
            committee_forces=None if members is None else np.asarray(members),
            **more,
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
