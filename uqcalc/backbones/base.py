"""The backbone: an ASE calculator, and the tap that reads features in its pass."""

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

from uqcalc.backbones.locks import (
    entered,
    held,
    is_mine,
    models_in,
    noted,
    parts_of,
)
from uqcalc.backbones.passmemory import Costs, check_load
from uqcalc.backbones.prediction import Capture, Prediction, geometry
from uqcalc.backbones.structure import Passed, check_atoms, check_cell, check_finite
from uqcalc.chargespin import check_charge_spin
from uqcalc.errors import BackboneError


__all__ = ["Backbone", "Capture", "Prediction", "one_at_a_time"]

B = TypeVar("B", bound="Backbone")
P = ParamSpec("P")
R = TypeVar("R")

_CPU_BATCH_ATOMS = 128
_LIGHT = 0.25  # share of the memory limit; four times as much memory is also allowed


@contextmanager
def _gradients(*, needed: bool) -> Iterator[None]:
    """Enable gradients in torch, even if the caller disabled them."""
    if not needed:
        yield
        return
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


def one_at_a_time(
    method: Callable[Concatenate[B, P], R],
) -> Callable[Concatenate[B, P], R]:
    """Run a method inside `Backbone.alone`.

    Gradients are enabled if the backbone is ``by_autograd``.
    """

    @wraps(method)
    def holding(self: B, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.alone(), _gradients(needed=self.by_autograd):
            return method(self, *args, **kwargs)

    return holding


class Backbone(ABC):
    """An ASE calculator and the tap that reads features from its model.

    The tap is armed only while this backbone evaluates. So calculators and models may
    be shared, pickled and copied, and features of an earlier pass are never returned.
    Threads may share them: an evaluation locks every calculator and torch module that
    it uses (`alone`).

    Attributes
    ----------
    name : str
        Kind of backbone, such as ``"mace"``.
    calculator : ase calculator
        The calculator given by the user; it may be a sum that includes the model.
    model_calculator : ase calculator
        The calculator that owns the tapped model.
    provides : frozenset of str
        Quantities in a `Prediction`: "energy", "forces", "features" and, if the model
        has them, "stress", "charges", "committee_forces", "committee_energies",
        "committee_stresses", "expected_errors", "energy_uncertainties",
        "direct_forces", "conservative_forces", "direct_stress", "conservative_stress",
        "vectors".
    on_demand : frozenset of str
        The part of ``provides`` that costs extra and is given only on request.
    conservative : bool
        Whether ``forces`` are -dE/dr of ``energy``.
    feature_dim : int or None
        Width of the features; None if it is unknown before the first pass.
    fingerprint : str
        Identity of the model: the same in float32 and float64, eager or compiled.
    elements : frozenset of int or None
        Atomic numbers that the model supports; None if unknown.
    invariant_features : bool
        Whether the features stay the same when the structure is rotated.
    batches_stress : bool
        Whether a native batch of `predict_many` gives the stress when it is wanted.
    passes_per_geometry : int
        How often the tap is called in one evaluation: once for each member.
    passes : int
        Forward passes of the model so far (a committee of K counts K).
    changes_process : bool
        Whether a pass changes a setting of the whole process for a while, such as
        torch's default dtype. Then no other backbone evaluates at the same time.
    by_autograd : bool
        Whether torch differentiates a pass. Then ``torch.no_grad`` and
        ``torch.inference_mode`` around the evaluation have no effect on it.
    cutoff : float or None
        Largest distance of a neighbour in one step of message passing, Å; None if
        unknown.
    always_periodic : bool
        Whether the model treats every structure as periodic in three directions,
        whatever ``atoms.pbc`` says.
    reads : frozenset of str or None
        Keys of ``atoms.info`` for charge or spin
        (`uqcalc.chargespin.NAMES`) that change the model's results; None if
        unknown.
    parses : frozenset of str
        Keys of these that the calculator converts to a number, even if the model does
        not use it. Values other than whole numbers are refused.
    most_batch_atoms : int
        Largest number of atoms in a native batch, for its memory.
    projected : frozenset of str
        `Prediction.projected`.
    perturbable : tuple of str
        Names of the layers that take noise by default, with ``*`` for any text
        (`uqcalc.perturbation.layers.find_layers`).
    perturbable_atoms : tuple of str
        Those of them with one row for each atom; empty for all.
    trains_in_batches : bool
        Whether a pass for training (`CanTrain`) evaluates several frames and copies.
    costs : Costs or None
        Memory that a pass needs. With the cutoff it predicts which structures would
        fill the memory; they are refused before the pass.
    """

    name: str
    invariant_features: bool = True
    batches_stress: bool = False
    conservative: bool = True
    on_demand: frozenset[str] = frozenset()
    passes_per_geometry: int = 1
    changes_process: bool = False
    by_autograd: bool = False
    cutoff: float | None = None
    always_periodic: bool = False
    reads: frozenset[str] | None = None
    parses: frozenset[str] = frozenset()
    costs: Costs | None = None
    projected: frozenset[str] = frozenset()
    most_batch_atoms: int = 512
    perturbable: tuple[str, ...] = ()
    perturbable_atoms: tuple[str, ...] = ()
    trains_in_batches: bool = True

    def __init__(
        self,
        calculator: BaseCalculator,
        model_calculator: BaseCalculator,
        *,
        feature_dim: int | None,
        fingerprint: str,
        elements: frozenset[int] | None = None,
    ) -> None:
        # Any: each subclass reads other attributes of them.
        self.calculator: Any = calculator
        self.model_calculator: Any = model_calculator
        self.feature_dim = feature_dim
        self.fingerprint = fingerprint
        self.elements = elements
        self.passes = 0
        self._passed: Passed | None = None
        provides = {"features", "energy", "forces"}
        if "stress" in calculator.implemented_properties:
            provides.add("stress")
        if self.conservative:
            provides.add("conservative_forces")
        self.provides = frozenset(provides)

    @property
    def network(self) -> torch.nn.Module | None:
        """The single torch model, uncompiled; None if there is none."""
        return None

    @property
    def batch_atoms(self) -> int:
        """Largest number of atoms in a native batch, for its speed.

        On a CPU small batches are fastest: their arrays stay in the caches, and the C
        library keeps their memory for the next batch. Measured with
        ``benchmarks/annotate.py --batches``.
        """
        if any(p.device.type != "cpu" for p in self._parameters()):
            return self.most_batch_atoms
        return min(_CPU_BATCH_ATOMS, self.most_batch_atoms)

    def _parameters(self) -> Iterator[torch.Tensor]:
        for model in self.models():
            if isinstance(model, torch.nn.Module):
                yield from model.parameters()

    @property
    def skips_forces(self) -> bool:
        """Whether `predict_many` spares the forces if ``wanted`` lacks them.

        The predictions then have energy and features, and no forces.
        """
        return False

    @abstractmethod
    def armed(self) -> AbstractContextManager[Capture]:
        """Arm the tap; it is removed at the end of the context."""

    def armed_for(
        self,
        extras: frozenset[str],  # noqa: ARG002
    ) -> AbstractContextManager[Capture]:
        """Arm the tap for a pass with ``extras`` (a part of ``on_demand``)."""
        return self.armed()

    def calculators(self) -> list[object]:
        """Return every calculator used in a pass, including the parts of sums."""
        parts = parts_of(self.calculator)
        every = [self.calculator, self.model_calculator, *parts]
        return [*{id(calculator): calculator for calculator in every}.values()]

    def models(self) -> list[object]:
        """Return every torch module used in a pass, and the objects that hold it.

        The default searches the attributes of the calculators. The caller holds the
        locks of the calculators.
        """
        return [m for calculator in self.calculators() for m in models_in(calculator)]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the model against other threads.

        If backbones share a calculator, a torch module or a part of one, only one of
        them is inside at a time. The same thread may enter again.
        """
        if is_mine(self):  # entered again: skip the slow search for models
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
        """Lock the calculators against passes of other threads.

        Do not evaluate inside; use `alone` for that.
        """
        if is_mine(self):
            yield
            return
        with held(self.calculators()):
            yield

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:
        """Return all inputs of the model other than the geometry.

        A change in them invalidates cached results. The default is all of
        ``atoms.info``.
        """
        return dict(atoms.info)

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate several frames, in one native batch if the model supports it.

        Overrides must be decorated with `one_at_a_time`.
        """
        given = sorted(self.provides & {*wanted})
        return [self(frame, given) for frame in frames]

    @final
    def may_batch(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> bool:
        """Return whether to use a native batch: not for one frame or for a sum.

        Nor for periodic frames if the stress is wanted and a batch does not give it.

        Raises
        ------
        BackboneError
            If one of the frames cannot be evaluated.
        """
        if self.calculator is not self.model_calculator or len(frames) < 2:
            return False
        alone = "stress" in wanted and not self.batches_stress
        if alone and any(frame.pbc.all() for frame in frames):
            return False
        for frame in {id(frame): frame for frame in frames}.values():
            self.check_structure(frame)
        return True

    @final
    @one_at_a_time
    def __call__(
        self, atoms: Atoms, wanted: Sequence[str] = ("energy", "forces")
    ) -> Prediction:
        """Evaluate ``atoms`` in exactly one pass.

        ``wanted`` are ASE properties and quantities of ``on_demand``. The features of
        the atoms are `Prediction.features`.

        Raises
        ------
        BackboneError
            If `check_structure` refuses the structure, or the tap was not called in
            this pass.
        """
        self.check_structure(atoms)
        given = self.prepared(atoms)
        captured = self._evaluate(given, wanted)
        if not captured.features:
            # A sum takes the cached results of a part that has already evaluated
            # this geometry: no pass has run yet, so run it now.
            self.model_calculator.results = {}
            self.model_calculator.atoms = None
            captured = self._evaluate(given, wanted)
        # copies: the next pass of the calculator may overwrite its arrays
        return self._prediction(atoms, captured).own()

    @final
    @one_at_a_time
    def untapped(self, atoms: Atoms, wanted: Sequence[str]) -> dict[str, Any]:
        """Return the results of the calculator alone, in one pass without the tap.

        ``wanted`` are ASE properties. Arrays are copies: the next pass of the
        calculator may overwrite its own.
        """
        calculator, given = self.calculator, self.prepared(atoms)
        calculator.calculate(given, wanted, calculator.check_state(given))
        return {
            key: value.copy() if isinstance(value, np.ndarray) else value
            for key, value in calculator.results.items()
        }

    def prepared(self, atoms: Atoms) -> Atoms:
        """Return the structure that the calculator gets; by default ``atoms`` itself.

        Override it for calculators that write to the structure, or refuse NumPy's
        numbers in ``info``: return a copy, and leave ``atoms`` as they are.
        """
        return atoms

    def check_structure(self, atoms: Atoms) -> None:
        """Raise an error for a structure that the model cannot evaluate.

        Raises
        ------
        BackboneError
            If there are no atoms; if positions or cell are NaN or infinite; if a
            coordinate is above 1e6 Å; if a mass is not positive or an atomic number,
            charge or spin is invalid; if the model does not support an element; if the
            cell does not span its periodic directions or is far too small; or if the
            pass would fill the memory.
        """
        if len(atoms) == 0:
            msg = "structure must have at least one atom, got none; leave it out"
            raise BackboneError(msg)
        check_finite(atoms)
        check_charge_spin(atoms, self.parses | (self.reads or frozenset()))
        passed = self._passed  # read once: another thread may replace it
        if passed is not None and passed.covers(atoms):
            return
        check_atoms(atoms)
        if atoms.pbc.any():
            check_cell(atoms)
        load = 0.0
        if self.cutoff is not None and self.costs is not None:
            load = check_load(atoms, self.cutoff, self.costs)
        self._check_elements(atoms)
        if load < _LIGHT:
            self._passed = Passed.of(atoms)

    def _check_elements(self, atoms: Atoms) -> None:
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
            # Compare with the last geometry of the base calculator: the trajectory is
            # then bitwise that of the bare calculator.
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
        """Return the features, shape (atoms, dim).

        Raises
        ------
        BackboneError
            If the shape is another, or the tap was not called as often as it must.
        """
        expected = (atoms, self.feature_dim)
        if len(captured.features) != self.passes_per_geometry:
            msg = (
                f"the tap on {self.name} must be called {self.passes_per_geometry} "
                f"time(s) for each geometry, got {len(captured.features)}; a compiled "
                "or converted model may bypass the tap: wrap the model uncompiled"
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
