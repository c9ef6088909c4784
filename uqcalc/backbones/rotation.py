"""Averages over rotated copies, for potentials without rotational symmetry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from scipy.spatial.transform import Rotation

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.fingerprint import combined
from uqcalc.backbones.multipass import (
    MultiPassBackbone,
    MultiPassCalculator,
    mean,
    voigt,
)
from uqcalc.backbones.prediction import Prediction
from uqcalc.backbones.registry import tap
from uqcalc.errors import BackboneError


# Fields of a `Prediction` and results: vectors (along the last axis) and stresses.
_VECTORS = ("direct_forces", "conservative_forces", "vectors")
_STRESSES = ("direct_stress", "conservative_stress")
_RESULTS = ("energy", "free_energy", "energy_comm")
_VECTOR_RESULTS = ("forces", "forces_comm")


@final
class RotationAverage(MultiPassBackbone):
    """A potential averaged over the same few rotations of every geometry.

    It helps if rotating a structure changes the potential's results, as with Orb:
    energies, forces, stress and features come closer to rotational symmetry with more
    rotations, but never reach it exactly. **A geometry costs one pass for each
    rotation.** For MACE and other invariant potentials it is useless.

    The structure is rotated with its cell; forces and stress are rotated back. Other
    results than energies, forces and stress are left out, and so is the stress of a
    structure without a cell. Vectors in ``atoms.info``, such as an external field, are
    not rotated.

    Parameters
    ----------
    calculator : ase calculator or Backbone
        Any that `uqcalc.tap` supports. A sum counts as one potential.
    rotations : int
        Number of rotations. The first is the identity; the others are drawn at random
        once.
    seed : int
        Seed of this draw. A probe belongs to one number of rotations and one seed.

    Raises
    ------
    BackboneError
        If the calculator cannot be tapped or ``rotations`` is not a positive integer.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from uqcalc import RotationAverage, open_model
    >>> averaged = RotationAverage(open_model("default"), rotations=3)
    >>> prediction = averaged(molecule("CH3OH"), ["energy", "forces"])
    >>> averaged.passes
    3
    """

    name = "rotation_average"

    def __init__(
        self,
        calculator: BaseCalculator | Backbone,
        rotations: int,
        *,
        seed: int = 0,
    ) -> None:
        matrices = _matrices(rotations, seed)
        inner = tap(calculator)
        super().__init__(
            RotatingCalculator(inner, matrices),
            fingerprint=combined(self.name, [inner.fingerprint], [rotations, seed]),
            elements=inner.elements,
        )
        if inner.calculator is inner.model_calculator:
            # not for a part of a sum: they would not belong to the energy of the sum
            self.provides |= inner.provides & {*_VECTORS, *_STRESSES}
        shared = {"charges", "vectors", "expected_errors"}
        # those on demand are not among the results that are rotated back
        shared |= {"committee_forces", "committee_energies"} - inner.on_demand
        self.provides |= inner.provides & shared
        self.on_demand = inner.on_demand & self.provides

    def combined(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Return the averages of features and of all fields that were rotated back."""
        names = {"features", "charges", "expected_errors", *_VECTORS, *_STRESSES}
        means = {
            name: mean(getattr(prediction, name) for prediction in predictions)
            for name in names & {"features", *self.provides}
        }
        # forces without net force or torque have a mean without them
        return means | {"projected": predictions[0].projected}


class RotatingCalculator(MultiPassCalculator):
    """Evaluates rotated copies of a geometry, and rotates the results back.

    Parameters
    ----------
    inner : Backbone
        The backbone that is evaluated.
    matrices : array (rotations, 3, 3)
        Rotation matrices, for column vectors.
    """

    def __init__(self, inner: Backbone, matrices: np.ndarray) -> None:
        super().__init__([inner] * len(matrices))
        self.inner = inner
        self.matrices = matrices

    def evaluate(self, atoms: Atoms, wanted: Sequence[str]) -> list[Prediction]:
        """Evaluate one rotated copy after the other."""
        return [
            _turned_back(self.inner(_turned(atoms, matrix), wanted), matrix)
            for matrix in self.matrices
        ]

    def evaluate_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str]
    ) -> list[list[Prediction]]:
        """Evaluate all frames together, for one rotation after the other."""
        each = []
        for matrix in self.matrices:
            turned = [_turned(frame, matrix) for frame in frames]
            predictions = self.inner.predict_many(turned, wanted)
            each.append([_turned_back(one, matrix) for one in predictions])
        return [list(predictions) for predictions in zip(*each, strict=True)]


def _matrices(rotations: int, seed: int) -> np.ndarray:
    given: object = rotations
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        msg = (
            f"rotations must be an integer of at least 1, got {rotations!r}; 4 to 16 "
            "are usual, and each costs one pass of the model"
        )
        raise BackboneError(msg)
    drawn: np.ndarray = Rotation.random(
        max(rotations, 2) - 1, np.random.default_rng(seed)
    ).as_matrix()
    return np.concatenate([np.eye(3)[None], drawn])[:rotations]


def _turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    turned: Atoms = atoms.copy()
    turned.set_constraint()  # constraints would keep the atoms in place
    turned.set_cell(atoms.cell.array @ matrix.T)
    turned.set_positions(atoms.positions @ matrix.T)
    return turned


# NaN and infinity give invalid values here; signals detect these later
@np.errstate(invalid="ignore")
def _turned_back(prediction: Prediction, matrix: np.ndarray) -> Prediction:
    given = prediction.results
    results = {name: given[name] for name in _RESULTS if name in given}
    for name in _VECTOR_RESULTS:
        if name in given:
            results[name] = np.asarray(given[name], dtype=float) @ matrix
    turned: dict[str, Any] = {"results": results}
    for name in _VECTORS:
        turned[name] = _vectors_back(getattr(prediction, name), matrix)
    # without a volume, Orb gives infinity and others a meaningless stress
    has_volume = np.linalg.matrix_rank(prediction.cell) == 3
    if "stress" in given and has_volume:
        results["stress"] = _stress_back(given["stress"], matrix)
    for name in _STRESSES:
        value = getattr(prediction, name) if has_volume else None
        turned[name] = None if value is None else _stress_back(value, matrix)
    return replace(prediction, **turned)


def _vectors_back(value: Any, matrix: np.ndarray) -> Any:
    if isinstance(value, torch.Tensor):
        return value @ torch.as_tensor(matrix, dtype=value.dtype, device=value.device)
    return None if value is None else np.asarray(value) @ matrix


def _stress_back(stress: torch.Tensor | np.ndarray, matrix: np.ndarray) -> np.ndarray:
    host = stress.cpu().numpy() if isinstance(stress, torch.Tensor) else stress
    full = voigt_6_to_full_3x3_stress(voigt(np.asarray(host, dtype=float)))
    back: np.ndarray = full_3x3_to_voigt_6_stress(matrix.T @ full @ matrix)
    return back
