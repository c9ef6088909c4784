"""Where a promise starts: cutoffs that are fixed before any of its labels is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from uqcalc.probe.promise import one_of_each


# Shares of the surest groups; between them it is a matter of interpolation.
_SHARES = (
    0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8,
    0.9, 1.0,
)  # fmt: skip
_MOST = 15.0  # log-odds that a probability in single precision still tells from 1


def held_out_logits(
    logits: ArrayLike, outside: ArrayLike, groups: Sequence[str]
) -> list[list[float]]:
    """Return what a probe says of groups it was not fitted to: [share, logit] pairs.

    The ``share`` of the surest of them have at least that logit of P(error <=
    boundary), one structure of each drawn at random.

    Parameters
    ----------
    logits : array (structures,)
        At the probe's own boundary.
    outside : boolean array (structures,)
        Who lies outside the scope, and is never accepted.
    groups : sequence of str
    """
    said = np.where(np.asarray(outside, bool), -np.inf, np.asarray(logits, float))
    drawn = np.sort(said[one_of_each(groups)])[::-1]
    pairs = []
    for share in _SHARES:
        last = float(drawn[max(math.ceil(share * len(drawn)) - 1, 0)])
        if math.isfinite(last):
            pairs.append([share, round(float(np.clip(last, -_MOST, _MOST)), 4)])
    return pairs


def starting_cutoffs(
    pairs: Sequence[Sequence[float]], shares: Sequence[float], shift: float = 0.0
) -> NDArray[np.float64]:
    """Return the P at which these shares of groups would be accepted, (shares,).

    Parameters
    ----------
    pairs : sequence of [share, logit]
        Of `held_out_logits`.
    shares : sequence of float
        A share beyond what ever had a probability starts where all of that is accepted.
    shift : float
        What another boundary than the probe's own adds to a logit.
    """
    known = np.asarray(pairs, dtype=float)
    logits = np.interp(shares, known[:, 0], known[:, 1]) + shift
    return np.asarray(special.expit(np.clip(logits, -_MOST, _MOST)))
