"""From the network's margin to a probability that means what it says."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression

from uqcalc.errors import LabelError


def calibrate(margin: ArrayLike, reliable: ArrayLike) -> tuple[float, float]:
    """Return (slope, intercept) of Platt's sigmoid on held-out labels.

    ``P(reliable) = sigmoid(slope * margin + intercept)`` by maximum likelihood with
    Platt's targets (N+ + 1)/(N+ + 2) and 1/(N- + 2) instead of 1 and 0, which keep
    the slope finite where few labels happen to be separable (Platt 1999; Lin, Lin &
    Weng 2007, doi:10.1007/s10994-007-5018-6). Two parameters, because a temperature
    alone cannot repair a shifted prevalence.

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
    hits, misses = int(truth.sum()), int((~truth).sum())
    target = np.where(truth, (hits + 1) / (hits + 2), 1 / (misses + 2))
    # a soft target is both classes at once, weighted
    scale = float(margins.std()) or 1.0
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
        np.tile(margins / scale, 2)[:, None],
        np.repeat([1, 0], truth.size),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, intercept = float(model.coef_[0, 0]) / scale, float(model.intercept_[0])
    if slope <= 0:
        msg = (
            "the probe must rank held-out structures better than chance, got a "
            f"calibration slope of {slope:.3g}; it learned nothing that transfers: add "
            "labels closer to what it will see"
        )
        raise LabelError(msg)
    return slope, intercept
