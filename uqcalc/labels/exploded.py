"""Frames on which a potential explodes: labels that must not set any scale.

A potential met with atoms too close predicts forces of hundreds to 1e5 eV/Å and
energies to match. Such a frame is a true label ("unreliable"): without the worst
failures P would be biased upwards. But one of them moves every mean and maximum that a
fit learns from features and energies, and then nothing is far from the labels any more.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqcalc.backbones.prediction import Prediction
from uqcalc.errors import LabelWarning


# Largest predicted force of an atom, beyond which, and beyond this many medians of all
# frames, the potential may have failed [eV/Å]. Reference forces of 4 875 crystals, at
# random and up to 2 000 K and 500 GPa, are below 30 but for cells under high stress.
_FORCE, _MEDIANS = 30.0, 5.0
_WRONG = 0.5  # of that force, to be an error: true forces may be as large
# Without reference forces nobody knows: strained cells truly reach 236 eV/Å.
_UNKNOWN_FORCE, _UNKNOWN_MEDIANS = 300.0, 20.0
_ENERGY, _DEVIATIONS = 10.0, 20.0  # eV/atom, and median deviations of the error
_NAMED = 5  # frames


def exploded(
    predictions: Sequence[Prediction],
    atom_errors: Sequence[NDArray[Any]] | None = None,
    residuals: NDArray[np.float64] | None = None,
) -> NDArray[np.bool_]:
    """Return which structures the potential explodes on, (structures,) of bool.

    Everything is held against medians, so that up to half of the structures may
    explode. What is found is wrong by at least 15 eV/Å or 10 eV/atom wherever there is
    a reference: leaving it out of locations, scales and limits costs no right label.

    Parameters
    ----------
    predictions : sequence of Prediction
        Energies in eV, forces in eV/Å.
    atom_errors : sequence of arrays (atoms,), optional
        |ΔF_i| in eV/Å; NaN where nothing is known.
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
    """Name the frames that the potential explodes on.

    Parameters
    ----------
    rows : array (exploded,)
        Their places among the frames.
    predictions : sequence of Prediction
        Theirs alone.
    frames : int
        How many frames were given.

    Warns
    -----
    LabelWarning
        If there are any.
    """
    if not len(rows):
        return
    worst = [_largest(np.linalg.norm(p.forces, axis=-1)) for p in predictions]
    named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
    msg = (
        f"predictions should be sane, but the potential explodes on {len(rows)} of "
        f"{frames} frames (frames {named}; forces of up to {max(worst):.3g} eV/Å): "
        "they stay labels, of wrong predictions, and no location, scale or limit of a "
        "fit rests on them; if no run of yours would come near them, leave them out"
    )
    warnings.warn(msg, LabelWarning, stacklevel=4)


def _largest(values: NDArray[Any]) -> float:
    """Return the largest value; NaN does not count, and of none it is 0."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return float(known.max()) if known.size else 0.0
