"""Labels in the wrong unit, given away by their scale beside the predictions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from ase import units
from numpy.typing import NDArray
from scipy import stats

from uqcalc.backbones.base import Prediction
from uqcalc.errors import LabelWarning
from uqcalc.probe.labelling.offsets import without_elements
from uqcalc.quantities import ENERGY_TARGETS


# How many of each fit into one eV, or into one eV/Å.
ENERGY_SCALES = {
    "kcal/mol": units.mol / units.kcal,
    "kJ/mol": units.mol / units.kJ,
    "hartree": 1 / units.Hartree,
    "rydberg": 1 / units.Rydberg,
    "meV": 1000.0,
}
FORCE_SCALES = {
    "kcal/mol/Å": units.mol / units.kcal,
    "kJ/mol/Å": units.mol / units.kJ,
    "hartree/bohr": units.Bohr / units.Hartree,
    "rydberg/bohr": units.Bohr / units.Rydberg,
    "meV/Å": 1000.0,
}
# Potentials are seldom off by more; the closest two units differ by a factor of 1.9.
_NEAR = 1.3
_NOTHING = 1e-6  # eV or eV/Å
# Of ranks; below it the labels are not a multiple of the predictions in any unit.
_CORRELATED = 0.5


def warn_of_units(
    target: str,
    predictions: Sequence[Prediction],
    references: Sequence[NDArray[np.float64]],
) -> bool:
    """Warn where the labels are a unit's multiple of the predictions, and say so.

    Medians and ranks are compared, so that single exploded predictions do not decide.
    Energies are compared after the best energy of each element has been taken out of
    both, so that another zero of energy does not matter.

    Returns
    -------
    bool
        Whether they are.

    Warns
    -----
    LabelWarning
        Naming the unit that the scale points to.
    """
    if target not in ENERGY_TARGETS:
        predicted = np.concatenate([p.forces.ravel() for p in predictions])
        labels = np.concatenate([r.ravel() for r in references])
        scales, right = FORCE_SCALES, "eV/Å"
    else:
        numbers = [p.numbers for p in predictions]
        predicted = without_elements(numbers, [p.energy for p in predictions])
        labels = without_elements(numbers, [float(r) for r in references])
        scales, right = ENERGY_SCALES, "eV"
    unit = _guess(predicted, labels, scales)
    if unit is None:
        return False
    ratio = _spread(labels) / _spread(predicted)
    msg = (
        f"labels must be in {right}, but theirs are {ratio:.3g} times as large as "
        f"the predictions, as labels in {unit} would be (factor "
        f"{scales[unit]:.4g}); convert them: as they are, errors, boundary and "
        "probe mean nothing"
    )
    warnings.warn(msg, LabelWarning, stacklevel=5)
    return True


def _guess(
    predicted: NDArray[np.float64],
    labels: NDArray[np.float64],
    scales: dict[str, float],
) -> str | None:
    # zero in both, as by symmetry, says nothing of the unit
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


def _spread(values: NDArray[np.float64]) -> float:
    """Return the median distance from the median: single blunders do not move it."""
    return float(np.median(np.abs(values - np.median(values))))
