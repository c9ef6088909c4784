"""Labels that are the potential's own results: a trajectory that was never labelled.

ASE's readers find the results of any calculator under "forces" and "energy". In the
trajectory of a run these are the results of the potential itself. Then every error is
zero, and a probe would learn that the potential is always right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uqcalc.agreement import same_result
from uqcalc.errors import LabelError
from uqcalc.labels.labels import Labels


if TYPE_CHECKING:
    from uqcalc.backbones.prediction import Prediction

# Single labels may agree by chance: one energy, or the one free force of a dimer.
_SHARE, _FEWEST = 0.1, 3
_NAMED = 5  # largest number of frames listed in a message


def is_own_result(
    prediction: Prediction, reference: NDArray[np.float64], labels: Labels
) -> bool:
    """Return whether the label of a frame equals its prediction up to round-off."""
    predicted, atoms = np.asarray(prediction.results[labels.of]), 1
    if labels.of == "energy":
        atoms = len(prediction.numbers)
    return same_result(labels.of, predicted / atoms, reference / atoms)


def refuse_own_results(own: Sequence[int], frames: int, labels: Labels) -> None:
    """Refuse labels many of which are results of the potential itself.

    Parameters
    ----------
    own : sequence of int
        Indices of the frames whose label equals the prediction (`same_result`).
    frames : int
        Number of frames that were compared.
    labels : Labels

    Raises
    ------
    LabelError
        If at least one frame in ten, and at least three frames, are among ``own``.
    """
    if len(own) < max(_FEWEST, _SHARE * frames):
        return
    named = ", ".join(map(str, own[:_NAMED])) + (", ..." if len(own) > _NAMED else "")
    msg = (
        f"labels must be {labels.of} of a reference method, got under "
        f"{labels.reference_key!r} the {labels.of} of the potential itself in "
        f"{len(own)} of {frames} frames (frames {named}); name the key of the "
        f"reference ({labels.of}_key, --{labels.of}-key), or label the frames "
        "(uqcalc label)"
    )
    raise LabelError(msg)
