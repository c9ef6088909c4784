"""Comparison of predictions with labels: errors, and labels in a wrong unit or sign."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy import stats

from uqcalc.agreement import vanishing
from uqcalc.backbones.base import Prediction
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.labels.atomorder import in_another_order
from uqcalc.labels.labels import Labels
from uqcalc.labels.offsets import without_elements
from uqcalc.labels.ownresults import is_own_result, refuse_own_results
from uqcalc.labels.shards import (
    AtomRows,
    Shards,
    evenly,
    numbers_of,
    sizes_of,
    taken,
)
from uqcalc.targets import QUANTITIES, TARGETS, force_errors, voigt_stress


# Largest scale error of a usual potential; the two closest units differ by 1.9.
_NEAR = 1.3
_NOTHING = 1e-6  # eV or eV/Å; smaller values count as zero
# Predicted force [eV/Å] beside which a label of exactly zero is no true force, and
# share of the frames from which a warning is given.
_HELD, _SOME = 0.1, 0.01
# Smallest rank correlation for which labels can be a multiple of the predictions.
_CORRELATED = 0.5


def warn_of_units(
    target: str,
    predictions: Sequence[Prediction],
    references: Sequence[NDArray[np.float64]],
) -> bool:
    """Warn if labels seem to have another unit or sign, or to be of other atoms.

    Medians and ranks are compared, so that a few exploded predictions have no effect.
    Energies are compared after the best energy of each element is subtracted from
    both, so that a different zero of energy has no effect. Forces and stresses are also
    compared with the opposite sign, and stresses as virials (stress times volume).
    Forces may be those of the atoms in another order (`in_another_order`), or zero
    where a constraint held an atom.

    Returns
    -------
    bool
        Whether the labels seem to be in another unit, of the opposite sign, or of other
        atoms.

    Warns
    -----
    LabelWarning
        With the unit or the sign that the ratio indicates, or that the order differs.
    """
    mistake = _mistake(TARGETS[target].of, predictions, references)
    if mistake:
        warnings.warn(mistake, LabelWarning, stacklevel=5)
    return bool(mistake)


def _mistake(
    of: str,
    predictions: Sequence[Prediction],
    references: Sequence[NDArray[np.float64]],
) -> str:
    """Return what labels of this quantity seem to be instead; empty if nothing."""
    if of == "stress":
        found = _stress_mistake(predictions, references)
        return found and (
            "stress labels must be in eV/Å³ and negative in a compressed cell "
            f"(the convention of ASE), but seem to be {found}; convert the labels"
        )
    scales, right = QUANTITIES[of].other_units, QUANTITIES[of].unit
    if of == "energy":
        numbers = [p.numbers for p in predictions]
        predicted = without_elements(
            numbers, [p.results["energy"] for p in predictions]
        )
        labels = without_elements(numbers, [float(r) for r in references])
    else:
        rows = [np.asarray(p.results[of]) for p in predictions]
        if of == "forces" and (held := _constrained(rows, references)):
            return held
        predicted = np.concatenate([np.ravel(row) for row in rows])
        labels = np.concatenate([r.ravel() for r in references])
        if _opposite(predicted, labels):
            msg = (
                f"labels must be {of} in {right}, got labels of the opposite sign to "
                "the predictions, such as gradients of the energy; change their sign"
            )
            if (unit := _guess(predicted, -labels, scales)) is not None:
                msg += f", and convert them from {unit} (factor {scales[unit]:.4g})"
            return msg
        if of == "forces" and in_another_order(rows, references):
            return (
                "labels must be forces of the same frame, with its atoms in the same "
                "order and orientation, got forces whose norms agree with the "
                "predictions and whose directions do not; compare frame, order of the "
                "atoms and cell with those of the reference calculation"
            )
    unit = _guess(predicted, labels, scales)
    if unit is None:
        return ""
    ratio = _spread(labels) / _spread(predicted)
    return (
        f"labels must be in {right}, got labels {ratio:.3g} times as large as the "
        f"predictions, which fits {unit} (factor {scales[unit]:.4g}); convert the "
        "labels"
    )


def _constrained(
    predicted: Sequence[NDArray[np.float64]], labels: Sequence[NDArray[np.float64]]
) -> str:
    """Return that a constraint has set labels to zero, in words; empty if not.

    A true force is exactly zero by symmetry only, and then the prediction vanishes too.
    """
    atoms, frames, largest = 0, 0, 0.0
    for ours, theirs in zip(predicted, labels, strict=True):
        sizes = np.linalg.norm(ours, axis=1)
        held = ~theirs.any(axis=1) & (sizes > _HELD)
        if held.any():
            atoms, frames = atoms + int(held.sum()), frames + 1
            largest = max(largest, float(sizes[held].max()))
    if frames < max(3, _SOME * len(labels)):
        return ""
    return (
        "labels must be forces without constraints, got forces that are exactly zero "
        f"on {atoms} atoms of {frames} frames, where the prediction is up to "
        f"{largest:.3g} eV/Å, as FixAtoms or selective dynamics leave them; take the "
        "forces before constraints act (ASE: get_forces(apply_constraint=False))"
    )


def _opposite(predicted: NDArray[np.float64], labels: NDArray[np.float64]) -> bool:
    """Return whether the ranks of labels and predictions are opposite."""
    told = (np.abs(predicted) > _NOTHING) | (np.abs(labels) > _NOTHING)
    predicted, labels = predicted[told], labels[told]
    if len(labels) < 3 or min(_spread(predicted), _spread(labels)) < _NOTHING:
        return False
    return bool(stats.spearmanr(predicted, labels).statistic < -_CORRELATED)


def _guess(
    predicted: NDArray[np.float64],
    labels: NDArray[np.float64],
    scales: Mapping[str, float],
) -> str | None:
    # values that are zero in both, for example by symmetry, do not depend on the unit
    told = (np.abs(predicted) > _NOTHING) | (np.abs(labels) > _NOTHING)
    predicted, labels = predicted[told], labels[told]
    if len(labels) < 3 or min(_spread(predicted), _spread(labels)) < _NOTHING:
        return None
    if stats.spearmanr(predicted, labels).statistic < _CORRELATED:
        return None
    ratio = _spread(labels) / _spread(predicted)
    nearest = min(scales, key=lambda unit: abs(np.log(ratio / scales[unit])))
    away = abs(np.log(ratio / scales[nearest]))
    return nearest if away < min(np.log(_NEAR), abs(np.log(ratio))) else None


def _stress_mistake(
    predictions: Sequence[Prediction], references: Sequence[NDArray[np.float64]]
) -> str:
    """Return what the stress labels seem to be, in words; empty if they seem right."""
    volumes = np.repeat([abs(np.linalg.det(p.cell)) for p in predictions], 6)
    predicted = np.ravel([voigt_stress(p.results["stress"]) for p in predictions])
    labels = np.ravel([voigt_stress(r) for r in references])
    told = (np.abs(predicted) > _NOTHING) | (np.abs(labels) > _NOTHING)
    predicted, labels, volumes = predicted[told], labels[told], volumes[told]
    if len(labels) < 3 or min(_spread(predicted), _spread(labels)) < _NOTHING:
        return ""
    agreement = stats.spearmanr(predicted, labels).statistic
    if abs(agreement) < _CORRELATED:
        return ""
    sign = float(np.sign(agreement))
    unit = _guess(predicted, sign * labels, QUANTITIES["stress"].other_units)
    ratio = _spread(labels) / _spread(predicted)
    words = [] if sign > 0 else ["of the opposite sign"]
    if _is_virial(predicted, sign * labels, volumes, ratio):
        words.append("virials in eV (stress times volume)")
    elif unit is not None:
        scale = QUANTITIES["stress"].other_units[unit]
        words.append(
            f"in {unit} (labels {ratio:.3g} times as large as the predictions, factor "
            f"{scale:.4g})"
        )
    return " and ".join(words)


def _is_virial(
    predicted: NDArray[np.float64],
    labels: NDArray[np.float64],
    volumes: NDArray[np.float64],
    ratio: float,
) -> bool:
    """Return whether the labels fit the predictions better when divided by volume."""
    divided = labels / volumes
    again = _spread(divided) / _spread(predicted)
    if abs(np.log(again)) > np.log(_NEAR):
        return False
    left = _spread(divided / again - predicted)
    return bool(left <= _spread(labels / ratio - predicted)) and ratio > _NEAR


def _spread(values: NDArray[np.float64]) -> float:
    """Return the median absolute deviation, which outliers hardly change."""
    return float(np.median(np.abs(values - np.median(values))))


ENOUGH = 5000  # structures that suffice to detect a wrong unit or level of theory


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Errors of predictions.

    Attributes
    ----------
    errors : array (structures,)
        In the unit of the target; NaN where the prediction is not finite.
    finite : array (structures,)
        Whether energy, forces and features of the prediction are finite.
    blank : array (structures,)
        Whether the frame has no information: all forces vanish by symmetry for a target
        of forces, or the frame is the only one of its composition for relative
        energies. False where the prediction is not finite.
    residuals : array (structures,) or None
        Reference minus predicted energy in eV, for relative energies minus the median
        of the composition; None for forces and stresses.
    atom_errors : AtomRows or None
        |ΔF_i| in eV/Å, NaN where the force on the atom vanishes by symmetry; None if
        a frame has no finite reference forces.
    """

    errors: NDArray[np.float64]
    finite: NDArray[np.bool_]
    blank: NDArray[np.bool_]
    residuals: NDArray[np.float64] | None
    atom_errors: AtomRows | None


def compare(
    frames: Sequence[Atoms],
    rows: Sequence[int],
    predictions: Sequence[Prediction],
    labels: Labels,
) -> Comparison:
    """Compare the predictions for ``frames[rows]`` with their labels.

    Errors of atoms are in single precision if the predictions are on disk.

    Raises
    ------
    LabelError
        As `uqcalc.labels.ownresults.refuse_own_results`.

    Warns
    -----
    LabelWarning
        If labels seem to be in another unit, or only some frames have forces.
    """
    ends = np.cumsum(sizes_of(predictions))
    kind = np.float32 if isinstance(predictions, Shards) else np.float64
    of_atoms = np.full(int(ends[-1]), np.nan, dtype=kind)
    errors, residuals = np.full((2, len(rows)), np.nan)
    finite, blank = np.zeros((2, len(rows)), dtype=bool)
    with_forces = 0
    own: list[int] = []
    for k, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        finite[k] = _finite(prediction, labels)
        if not finite[k]:
            continue
        reference = _reference(frames[row], labels)
        if not labels.relative:
            errors[k] = labels.error(prediction, reference)
        if labels.of_energy:
            residuals[k] = float(reference) - float(prediction.results["energy"])
        wanted = labels.reference_of(frames[row], "forces")
        if wanted is not None and np.all(np.isfinite(wanted)):
            with_forces += 1
            zero = vanishing(prediction.results["forces"], wanted)
            blank[k] = zero.all() and labels.of == "forces"
            first = ends[k] - len(prediction.numbers)
            found = force_errors(prediction.results["forces"], wanted)
            of_atoms[first : ends[k]] = np.where(zero, np.nan, found)
        if not blank[k] and is_own_result(prediction, reference, labels):
            own.append(row)
    if labels.relative:
        numbers = numbers_of(predictions)
        residuals, alone = relative_residuals(numbers, residuals)
        errors, blank = np.abs(residuals), alone & finite
    sound = np.flatnonzero(finite)
    refuse_own_results(own, int(np.sum(finite & ~blank)), labels)
    if len(sound):
        sample = sound[evenly(len(sound), ENOUGH)]
        warn_of_units(
            labels.target,
            taken(predictions, sample),
            [_reference(frames[rows[k]], labels) for k in sample],
        )
    if 0 < (missing := len(sound) - with_forces) < len(sound):
        msg = (
            "either all frames or none should have finite reference forces, but "
            f"{missing} of {len(sound)} have none, so that the probe gets no "
            "probabilities of single atoms; add these forces or leave these frames "
            "out"
        )
        warnings.warn(msg, LabelWarning, stacklevel=4)
    return Comparison(
        errors,
        finite,
        blank,
        residuals if labels.of_energy else None,
        AtomRows(of_atoms, ends) if with_forces == len(sound) else None,
    )


def relative_residuals(
    numbers: Sequence[NDArray[np.int64]], residuals: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return residuals minus the median over all frames of one composition.

    A composition is the number of atoms of each element: two cells of different size
    are two compositions. The median is that of the frames with a finite residual. It
    belongs to the frame, too: with two frames both errors are half their difference.

    Parameters
    ----------
    numbers : sequence of arrays (atoms,)
    residuals : array (structures,)
        Reference minus predicted energy in eV; NaN stays NaN.

    Returns
    -------
    relative : array (structures,)
        In eV.
    alone : array (structures,) of bool
        Whether no other frame of the composition has a finite residual.
    """
    frames = defaultdict(list)
    for row in range(len(numbers)):
        frames[np.sort(numbers[row]).tobytes()].append(row)
    relative, alone = residuals.copy(), np.zeros(len(residuals), dtype=bool)
    for rows in frames.values():
        known = residuals[rows][np.isfinite(residuals[rows])]
        alone[rows] = len(known) < 2
        if len(known):
            relative[rows] -= np.median(known)
    return relative, alone


def _finite(prediction: Prediction, labels: Labels) -> bool:
    if labels.of not in prediction.results:
        return False
    return prediction.finite and bool(prediction.features.isfinite().all())


def _reference(frame: Atoms, labels: Labels) -> NDArray[np.float64]:
    reference = labels.reference(frame)
    if reference is None:
        msg = "frame must have a label, got none; build the dataset again"
        raise LabelError(msg)
    return reference
