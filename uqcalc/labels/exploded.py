"""Frames on which a potential explodes: valid labels, but excluded from scales.

If atoms are too close, a potential may predict forces of hundreds to 1e5 eV/Å and
energies of similar size. Such a frame is a valid label ("unreliable"): without the
worst failures P would be biased upwards. But one such frame shifts every mean and
maximum that a fit computes from features and energies. Then no structure appears to be
far from the labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqcalc.backbones.prediction import Prediction
from uqcalc.errors import LabelWarning


# The potential may have failed if its largest force on an atom is above this value
# [eV/Å] and above this multiple of the median of all frames. Reference forces of 4 875
# crystals (random, up to 2 000 K and 500 GPa) are below 30, except for cells under
# high stress.
_FORCE, _MEDIANS = 30.0, 5.0
_WRONG = 0.5  # smallest error relative to that force: true forces may be as large
# Limits without reference forces: true forces in strained cells reach 236 eV/Å.
_UNKNOWN_FORCE, _UNKNOWN_MEDIANS = 300.0, 20.0
_ENERGY, _DEVIATIONS = 10.0, 20.0  # eV/atom, and median deviations of the error
_NAMED = 5  # largest number of frames listed in a message


def exploded(
    predictions: Sequence[Prediction],
    atom_errors: Sequence[NDArray[Any]] | None = None,
    residuals: NDArray[np.float64] | None = None,
) -> NDArray[np.bool_]:
    """Return on which structures the potential explodes, (structures,) of bool.

    Values are compared with medians, so that the method works while fewer than half
    of the structures explode. With a reference, each structure found has an error of at
    least 15 eV/Å or 10 eV/atom; thus no reliable label is excluded from scales.

    Parameters
    ----------
    predictions : sequence of Prediction
        Energies in eV, forces in eV/Å.
    atom_errors : sequence of arrays (atoms,), optional
        |ΔF_i| in eV/Å; NaN is ignored.
    residuals : array (structures,), optional
        Reference minus predicted energy in eV.
    """
    force, sizes = np.zeros(len(predictions)), np.ones(len(predictions))
    for index in range(len(predictions)):
        prediction = predictions[index]
        sizes[index] = max(len(prediction.numbers), 1)
        force[index] = _largest(np.linalg.norm(prediction.forces, axis=-1))
    if not len(force):
        return np.zeros(0, dtype=bool)
    middle = float(np.median(force))
    if atom_errors is None:
        found = force > max(_UNKNOWN_FORCE, _UNKNOWN_MEDIANS * middle)
    else:
        found = force > max(_FORCE, _MEDIANS * middle)
        for index in np.flatnonzero(found).tolist():
            large = _largest(atom_errors[index])
            found[index] = large > _WRONG * force[index]
    if residuals is not None:
        away = residuals / sizes
        away = np.abs(away - np.median(away))
        found |= away > max(_ENERGY, _DEVIATIONS * float(np.median(away)))
    return np.asarray(found)


def warn_of_exploded(
    rows: NDArray[np.int64], predictions: Sequence[Prediction], frames: int
) -> None:
    """Warn of frames on which the potential explodes.

    Parameters
    ----------
    rows : array (exploded,)
        Indices of these frames.
    predictions : sequence of Prediction
        Predictions of these frames only.
    frames : int
        Number of all frames.

    Warns
    -----
    LabelWarning
        If there are such frames; the message names the first ones.
    """
    if not len(rows):
        return
    worst = [_largest(np.linalg.norm(p.forces, axis=-1)) for p in predictions]
    named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
    msg = (
        f"the predicted forces explode on {len(rows)} of {frames} frames (frames "
        f"{named}; up to {max(worst):.3g} eV/Å): these frames are kept as wrong "
        "predictions, but means, scales and limits are fitted without them; leave "
        "these frames out if your runs do not reach such structures"
    )
    warnings.warn(msg, LabelWarning, stacklevel=4)


def _largest(values: NDArray[Any]) -> float:
    """Return the largest value without NaN; 0 if there is no value."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return float(known.max()) if known.size else 0.0
