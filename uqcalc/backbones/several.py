"""Backbones that evaluate each geometry several times: what they have in common."""

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


# What is averaged of a calculator's results; the rest is not, and left out.
AVERAGED = ("energy", "free_energy", "forces", "stress")


@dataclass(slots=True, eq=False)
class Evaluations(Capture):
    """What the evaluations of one geometry gave, in order."""

    predictions: list[Prediction] = field(default_factory=list)


class SeveralCalculator(Calculator, ABC):
    """An ASE calculator that evaluates a geometry several times, and averages.

    Parameters
    ----------
    parts : sequence of Backbone
        What is evaluated; a part may be there more than once.
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
        """Each part once."""
        return list({id(part): part for part in self.parts}.values())

    @abstractmethod
    def evaluate(self, atoms: Atoms, wanted: Sequence[str]) -> list[Prediction]:
        """Evaluate each of ``parts`` once, in order."""

    @abstractmethod
    def evaluate_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str]
    ) -> list[list[Prediction]]:
        """Do so for several frames: a list for each frame."""

    def combined(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Return the results of a geometry: averages of what all evaluations gave."""
        return averages([prediction.results for prediction in predictions])

    @contextmanager
    def listening(self, extras: frozenset[str]) -> Iterator[Evaluations]:
        """Hand out the evaluations of one call, with these extras in them."""
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
        """Evaluate every part once; what changed, each finds out by itself."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        own: Any = self.atoms
        captured, extras = self._armed or (None, frozenset())
        wanted = {"energy", "forces", *(properties or ()), *extras}
        predictions = self.evaluate(own, sorted(wanted))
        self.results = self.combined(predictions)
        if captured is not None:
            captured.predictions.extend(predictions)
            for part, prediction in zip(self.parts, predictions, strict=True):
                # one entry for each pass: their number is held to what it must be
                rows = [prediction.features] * part.passes_per_geometry
                captured.features.extend(rows)


class Several(Backbone):
    """A backbone whose calculator evaluates each geometry several times.

    Energies and forces of its `Prediction` are the averages, like its results: a sum
    of calculators counts as one potential.
    """

    calculator: SeveralCalculator

    def __init__(self, calculator: SeveralCalculator, **identity: Any) -> None:
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
        read = [part.reads for part in parts if part.reads is not None]
        if len(read) == len(parts):  # what one of them leaves out is left out
            self.reads = frozenset.intersection(*read)

    @abstractmethod
    def joined(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Return what is not among the results: fields of a `Prediction` by name."""

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Note what the evaluations of one call give."""
        with self.armed_for(frozenset()) as captured:
            yield captured

    @contextmanager
    def armed_for(self, extras: frozenset[str]) -> Iterator[Capture]:
        """Ask each part for these, too."""
        with self.calculator.listening(extras) as captured:
            yield captured

    def calculators(self) -> list[object]:
        """Return the parts' calculators, too: all are held before one evaluates."""
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
        """Return all that one of the parts reads."""
        return {
            f"{index}: {key}": value
            for index, part in enumerate(self.calculator.distinct)
            for key, value in part.extra_state(atoms).items()
        }

    def feature_rows(self, captured: Capture, atoms: int) -> torch.Tensor:
        """Take over a width that a part learned in its first pass."""
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
        more = self.joined(predictions)
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


@np.errstate(invalid="ignore")  # infinities of both signs
def averages(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of what all of these hold, in double precision."""
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
    """Return the mean of equal arrays or tensors, None where they are None."""
    listed = list(values)
    if listed[0] is None:
        return None
    if isinstance(listed[0], torch.Tensor):
        return torch.stack(listed).mean(0)
    return np.mean(listed, axis=0)


def voigt(stress: np.ndarray) -> np.ndarray:
    """Return a stress as six numbers: CHGNet gives a matrix."""
    if stress.shape == (6,):
        return stress
    six: np.ndarray = full_3x3_to_voigt_6_stress(stress)
    return six
