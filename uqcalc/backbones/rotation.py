"""Averages over rotated copies, for potentials that do not know about rotations."""

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
from uqcalc.backbones.prediction import Prediction
from uqcalc.backbones.registry import tap
from uqcalc.backbones.several import Several, SeveralCalculator, mean, voigt
from uqcalc.errors import BackboneError


# Fields of a `Prediction` and results whose last axis is a vector's, and stresses.
_VECTORS = ("direct_forces", "conservative_forces", "vectors")
_STRESSES = ("direct_stress", "conservative_stress")
_RESULTS = ("energy", "free_energy", "energy_comm")
_VECTOR_RESULTS = ("forces", "forces_comm")


@final
class RotationAverage(Several):
    """A potential averaged over the same few rotations of every geometry.

    Of use where turning a structure changes what the potential says of it, as with
    Orb: energies, forces, stress and features become closer to what they should be,
    the closer the more rotations; exactly so never. **A geometry costs as many passes
    as there are rotations.** For MACE and other invariant potentials it is waste.

    The structure is turned together with its cell, forces and stress are turned back.
    Results other than energies, forces and stress are left out, and the stress, too,
    of a structure without a cell. Vectors in ``atoms.info``, such as an external field,
    are not turned.

    Parameters
    ----------
    calculator : ase calculator or Backbone
        What `uqcalc.tap` knows. A sum counts as one potential.
    rotations : int
        How many: the first leaves the structure alone, the others are drawn at random
        once.
    seed : int
        Of this draw. A probe belongs to one number of rotations and one seed.

    Raises
    ------
    BackboneError
        If the calculator cannot be tapped or ``rotations`` is no positive number.

    Examples
    --------
    >>> averaged = RotationAverage(ORBCalculator(...), rotations=8)  # doctest: +SKIP
    >>> atoms.calc = ReliableCalculator(averaged, probe="my.probe")  # doctest: +SKIP
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
            # of a part of a sum they would not be what its energy goes with
            self.provides |= inner.provides & {*_VECTORS, *_STRESSES}
        shared = {"charges", "vectors", "expected_errors"}
        # where they come on demand they are not among the results that are turned back
        shared |= {"committee_forces", "committee_energies"} - inner.on_demand
        self.provides |= inner.provides & shared
        self.on_demand = inner.on_demand & self.provides

    def joined(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Return the averages of features and of all that was turned back."""
        names = {"features", "charges", "expected_errors", *_VECTORS, *_STRESSES}
        means = {
            name: mean(getattr(prediction, name) for prediction in predictions)
            for name in names & {"features", *self.provides}
        }
        # a mean of forces without net force or torque has none either
        return means | {"projected": predictions[0].projected}


class RotatingCalculator(SeveralCalculator):
    """Evaluates turned copies of a geometry, and turns the answers back.

    Parameters
    ----------
    inner : Backbone
        What is evaluated.
    matrices : array (rotations, 3, 3)
        Each turns a column vector.
    """

    def __init__(self, inner: Backbone, matrices: np.ndarray) -> None:
        super().__init__([inner] * len(matrices))
        self.inner = inner
        self.matrices = matrices

    def evaluate(self, atoms: Atoms, wanted: Sequence[str]) -> list[Prediction]:
        """Evaluate one turned copy after the other."""
        return [
            _turned_back(self.inner(_turned(atoms, matrix), wanted), matrix)
            for matrix in self.matrices
        ]

    def evaluate_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str]
    ) -> list[list[Prediction]]:
        """Turn all frames by the same rotation, and evaluate them together."""
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
            f"rotations must be an integer of at least 1, got {rotations!r}; each "
            "costs a pass, 4 to 16 are usual"
        )
        raise BackboneError(msg)
    drawn: np.ndarray = Rotation.random(
        max(rotations, 2) - 1, np.random.default_rng(seed)
    ).as_matrix()
    return np.concatenate([np.eye(3)[None], drawn])[:rotations]


def _turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    turned: Atoms = atoms.copy()
    turned.set_constraint()  # they would hold the atoms back
    turned.set_cell(atoms.cell.array @ matrix.T)
    turned.set_positions(atoms.positions @ matrix.T)
    return turned


# numbers that are not finite have no direction to turn; who reads them, sees them
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
    # of a structure without a volume Orb says infinity, others whatever
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
