"""From the network's margin to a probability that means what it says."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression

from uqcalc.errors import LabelError


def calibrate(margin: ArrayLike, reliable: ArrayLike) -> tuple[float, float]:
    """Return (slope, intercept) of Platt's sigmoid on held-out labels.

    ``P(reliable) = sigmoid(slope * margin + intercept)`` by maximum likelihood
    (Platt 1999). Two parameters, because a temperature alone cannot repair a
    shifted prevalence.

    Parameters
    ----------
    margin : array (structures,)
        Logit of reliable minus logit of unreliable.
    reliable : boolean array (structures,)

    Raises
    ------
    LabelError
        If only one class is present, or if the margin ranks the wrong way round.
    """
    margins = np.asarray(margin, dtype=float)
    truth = np.asarray(reliable, dtype=bool)
    if truth.all() or not truth.any():
        msg = (
            "calibration labels must hold reliable and unreliable structures, got "
            f"{int(truth.sum())} reliable of {truth.size}; use other frames or another "
            "boundary"
        )
        raise LabelError(msg)
    model = LogisticRegression(C=np.inf).fit(margins[:, None], truth)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        msg = (
            "the probe must rank held-out structures better than chance, got a "
            f"calibration slope of {slope:.3g}; it learned nothing that transfers: add "
            "labels closer to what it will see"
        )
        raise LabelError(msg)
    return slope, intercept
