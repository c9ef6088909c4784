"""Base classes of backbones that evaluate each geometry several times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from uqcalc.backbones.base import Backbone, one_at_a_time
from uqcalc.backbones.prediction import Capture, Prediction, geometry


# Results that are averaged; all others are left out.
AVERAGED = ("energy", "free_energy", "forces", "stress")


@dataclass(slots=True, eq=False)
class Evaluations(Capture):
    """The predictions of all evaluations of one geometry, in order."""

    predictions: list[Prediction] = field(default_factory=list)


class MultiPassCalculator(Calculator, ABC):
    """An ASE calculator that averages several evaluations of a geometry.

    Parameters
    ----------
    parts : sequence of Backbone
        Backbones to evaluate; one may occur more than once.
    """

    def __init__(self, parts: Sequence[Backbone]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts = tuple(parts)
        self.implemented_properties = [
            name
            for name in AVERAGED
            if all(name in part.calculator.implemented_properties for part in parts)
        ]
        self._armed: tuple[Evaluations, frozenset[str]] | None = None

    @property
    def distinct(self) -> list[Backbone]:
        """All different parts, each once."""
        return list({id(part): part for part in self.parts}.values())

    @abstractmethod
    def evaluate(self, atoms: Atoms, wanted: Sequence[str]) -> list[Prediction]:
        """Evaluate each of ``parts`` once, in order."""

    @abstractmethod
    def evaluate_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str]
    ) -> list[list[Prediction]]:
        """Evaluate each of ``parts`` for several frames: a list for each frame."""

    def combined(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Return the results of a geometry: averages over all evaluations."""
        return averages([prediction.results for prediction in predictions])

    @contextmanager
    def listening(self, extras: frozenset[str]) -> Iterator[Evaluations]:
        """Record the evaluations of one call, which include ``extras``."""
        before, captured = self._armed, Evaluations([], [])
        self._armed = (captured, extras)
        try:
            yield captured
        finally:
            self._armed = before

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate every part once; each part checks for changes itself."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        own: Any = self.atoms
        captured, extras = self._armed or (None, frozenset())
        wanted = {"energy", "forces", *(properties or ()), *extras}
        predictions = self.evaluate(own, sorted(wanted))
        self.results = self.combined(predictions)
        if captured is not None:
            captured.predictions.extend(predictions)
            for part, prediction in zip(self.parts, predictions, strict=True):
                # one entry for each pass: `feature_rows` checks their number
                rows = [prediction.features] * part.passes_per_geometry
                captured.features.extend(rows)


class MultiPassBackbone(Backbone):
    """A backbone whose calculator evaluates each geometry several times.

    Energy and forces of its `Prediction` are the averages, as in its results: a sum of
    calculators counts as one potential.
    """

    calculator: MultiPassCalculator

    def __init__(self, calculator: MultiPassCalculator, **identity: Any) -> None:
        parts = calculator.parts
        self.conservative = all(part.conservative for part in parts)
        self.changes_process = any(part.changes_process for part in parts)
        self.invariant_features = parts[0].invariant_features
        super().__init__(
            calculator, calculator, feature_dim=parts[0].feature_dim, **identity
        )
        self.passes_per_geometry = sum(part.passes_per_geometry for part in parts)
        known = [part.cutoff for part in parts if part.cutoff is not None]
        self.cutoff = min(known, default=None)
        self.always_periodic = any(part.always_periodic for part in parts)
        read = [part.reads for part in parts if part.reads is not None]
        if len(read) == len(parts):  # only keys that all parts read
            self.reads = frozenset.intersection(*read)

    @abstractmethod
    def combined(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Return the fields of a `Prediction` that are not results, by name."""

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Record the evaluations of one call."""
        with self.armed_for(frozenset()) as captured:
            yield captured

    @contextmanager
    def armed_for(self, extras: frozenset[str]) -> Iterator[Capture]:
        """Record the evaluations of one call, with ``extras`` of each part."""
        with self.calculator.listening(extras) as captured:
            yield captured

    def calculators(self) -> list[object]:
        """Return this calculator and those of the parts: a pass locks all first."""
        parts = self.calculator.distinct
        return [self.calculator, *(c for part in parts for c in part.calculators())]

    def models(self) -> list[object]:
        """Return the torch modules of all parts."""
        return [m for part in self.calculator.distinct for m in part.models()]

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse what one of the parts refuses."""
        for part in self.calculator.distinct:
            part.check_structure(atoms)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:
        """Return the extra state of all parts."""
        return {
            f"{index}: {key}": value
            for index, part in enumerate(self.calculator.distinct)
            for key, value in part.extra_state(atoms).items()
        }

    def feature_rows(self, captured: Capture, atoms: int) -> torch.Tensor:
        """Copy the width of the first part, which may be unknown before a pass."""
        self.feature_dim = self.calculator.parts[0].feature_dim
        return super().feature_rows(captured, atoms)

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate all frames, in native batches where the parts can."""
        for frame in frames:
            self.check_structure(frame)
        given = sorted({"energy", "forces"} | (self.provides & {*wanted}))
        parts = self.calculator.distinct
        before = sum(part.passes for part in parts)
        evaluated = self.calculator.evaluate_many(frames, given)
        self.passes += sum(part.passes for part in parts) - before
        return [
            self._join(frame, predictions, self.calculator.combined(predictions))
            for frame, predictions in zip(frames, evaluated, strict=True)
        ]

    def _prediction(self, atoms: Atoms, captured: Capture) -> Prediction:
        self.feature_rows(captured, len(atoms))  # counts the passes
        results = dict(self.calculator.results)
        return self._join(atoms, getattr(captured, "predictions", []), results)

    def _join(
        self, atoms: Atoms, predictions: Sequence[Prediction], results: dict[str, Any]
    ) -> Prediction:
        more = self.combined(predictions)
        if self.conservative:
            more["conservative_forces"] = results["forces"]
        return Prediction(
            **geometry(atoms),
            results=results,
            energy=results["energy"],
            forces=results["forces"],
            committee_forces=results.get("forces_comm"),
            committee_energies=results.get("energy_comm"),
            **more,
        )


@np.errstate(invalid="ignore")  # +infinity and -infinity
def averages(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of the entries that all ``results`` have, in float64."""
    means: dict[str, Any] = {}
    for name in (*AVERAGED, "energy_comm", "forces_comm"):
        if not all(name in result for result in results):
            continue
        values = [np.asarray(result[name], dtype=float) for result in results]
        if name == "stress":
            values = [voigt(value) for value in values]
        value = np.mean(values, axis=0)
        means[name] = value if value.ndim else float(value)
    return means


def mean(values: Iterable[Any]) -> Any:
    """Return the mean of arrays or tensors of one shape; None if they are None."""
    listed = list(values)
    if listed[0] is None:
        return None
    if isinstance(listed[0], torch.Tensor):
        return torch.stack(listed).mean(0)
    return np.mean(listed, axis=0)


def voigt(stress: np.ndarray) -> np.ndarray:
    """Return a stress as (6,), also from (3, 3) as CHGNet gives it."""
    if stress.shape == (6,):
        return stress
    six: np.ndarray = full_3x3_to_voigt_6_stress(stress)
    return six
