"""Predictions held against labels, one structure at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.backbones.base import Prediction
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.probe.labelling.information import vanishing
from uqcalc.probe.labelling.labels import Labels, force_errors
from uqcalc.probe.labelling.units import warn_of_units
from uqcalc.probe.storage.shards import AtomRows, Shards, evenly, sizes_of, taken


ENOUGH = 5000  # structures that a unit, or a level of theory, shows in


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What labels say of predictions.

    Attributes
    ----------
    errors : array (structures,)
        In the unit of the target; NaN where the prediction is not finite.
    finite : array (structures,)
    blank : array (structures,)
        Whether the target is of forces and all of them vanish by symmetry; never where
        the prediction is not finite.
    residuals : array (structures,) or None
        Reference minus predicted energy in eV; None for forces.
    atom_errors : AtomRows or None
        |ΔF_i| in eV/Å, NaN where the force on the atom vanishes by symmetry; None where
        a frame has no finite forces.
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
    """Hold the predictions for ``frames[rows]`` against their labels.

    Of predictions on disk, errors of atoms are kept in single precision.

    Warns
    -----
    LabelWarning
        If labels look as if in another unit, or only some frames carry forces.
    """
    ends = np.cumsum(sizes_of(predictions))
    kind = np.float32 if isinstance(predictions, Shards) else np.float64
    of_atoms = np.full(int(ends[-1]), np.nan, dtype=kind)
    errors, residuals = np.full((2, len(rows)), np.nan)
    finite, blank = np.zeros((2, len(rows)), dtype=bool)
    with_forces = 0
    for k, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        finite[k] = _finite(prediction)
        if not finite[k]:
            continue
        reference = _reference(frames[row], labels)
        errors[k] = labels.error(prediction, reference)
        if labels.of_energy:
            residuals[k] = float(reference) - float(prediction.results["energy"])
        wanted = labels.reference_forces(frames[row])
        if wanted is not None and np.all(np.isfinite(wanted)):
            with_forces += 1
            zero = vanishing(prediction.results["forces"], wanted)
            blank[k] = zero.all() and not labels.of_energy
            first = ends[k] - len(prediction.numbers)
            found = force_errors(prediction, wanted)
            of_atoms[first : ends[k]] = np.where(zero, np.nan, found)
    sound = np.flatnonzero(finite)
    if len(sound):
        sample = sound[evenly(len(sound), ENOUGH)]
        warn_of_units(
            labels.target,
            taken(predictions, sample),
            [_reference(frames[rows[k]], labels) for k in sample],
        )
    if 0 < (missing := len(sound) - with_forces) < len(sound):
        msg = (
            f"frames should all carry finite reference forces, or none, but {missing} "
            f"of {len(sound)} have none: no probabilities of single atoms come of "
            "these labels; complete them or leave these frames out"
        )
        warnings.warn(msg, LabelWarning, stacklevel=4)
    return Comparison(
        errors,
        finite,
        blank,
        residuals if labels.of_energy else None,
        AtomRows(of_atoms, ends) if with_forces == len(sound) else None,
    )


def _finite(prediction: Prediction) -> bool:
    return prediction.finite and bool(prediction.features.isfinite().all())


def _reference(frame: Atoms, labels: Labels) -> NDArray[np.float64]:
    reference = labels.reference(frame)
    if reference is None:
        msg = "frame must have a label, got none; build the dataset again"
        raise LabelError(msg)
    return reference
