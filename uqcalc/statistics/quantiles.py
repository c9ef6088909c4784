"""Quantiles with a finite-sample promise, where groups are what is exchangeable."""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import ArrayLike

from uqcalc.errors import LabelError


# Sums of weights are compared to a level up to their round-off.
_ROUND_OFF = 1e-9


def groups_needed(level: float) -> int:
    """Return how many groups a conformal quantile at ``level`` takes, at least."""
    return math.ceil(level / (1 - level) - _ROUND_OFF)


def group_quantile(values: ArrayLike, groups: ArrayLike, level: float) -> float:
    """Return the limit that a structure of a new group keeps with P >= ``level``.

    Each of the K groups has the mass 1 / (K + 1), its members share it equally, and as
    much lies at infinity: hierarchical conformal prediction (Lee, Barber & Willett
    2023, arXiv:2306.06342). With one structure a group it is the value of rank
    ``ceil((K + 1) level)``, split conformal prediction (Vovk et al. 2005). The promise
    holds on average over groups drawn alike; NaN counts as infinite.

    Parameters
    ----------
    values : array (structures,)
    groups : array (structures,)
        Which belong together, as numbers or names.
    level : float
        In (0, 1).

    Raises
    ------
    ValueError
        If the level is none.
    LabelError
        If there are too few groups for it; it says how many it takes. Also where the
        quantile falls on values that are not finite.
    """
    if not 0 < level < 1:
        msg = f"level of a quantile must lie in (0, 1), got {level}"
        raise ValueError(msg)
    given = np.asarray(values, dtype=float)
    _, index, counts = np.unique(
        np.asarray(groups), return_inverse=True, return_counts=True
    )
    if len(counts) < groups_needed(level):
        msg = (
            f"a quantile of {level:g} must have at least {groups_needed(level)} groups "
            f"(frames without a group key are one each), got {len(counts)}; give more, "
            "or lower it; for a run of one molecule or material, give several normal "
            "runs to uqcalc.calibrate_threshold(runs=[...])"
        )
        raise LabelError(msg)
    order = np.argsort(given, kind="stable")  # NaN comes last
    mass = np.cumsum(1.0 / counts[index][order])
    rank = np.searchsorted(mass, level * (len(counts) + 1) - _ROUND_OFF)
    limit = float(given[order[min(int(rank), len(order) - 1)]])
    if not math.isfinite(limit):
        odd = int(np.sum(~np.isfinite(given)))
        msg = (
            f"a quantile of {level:g} must fall on a number, got {odd} of "
            f"{len(given)} that are none, such as risks of elements that were not in "
            "the fit; lower it, or fit on frames with all elements"
        )
        raise LabelError(msg)
    return limit


def conformal_factor(
    errors: ArrayLike, risks: ArrayLike, groups: ArrayLike, coverage: float
) -> float:
    """Return the factor for which ``|error| <= factor * risk`` holds often enough.

    The conformal quantile of ``|error| / risk`` (all arrays (structures,)); an error
    and a risk of zero agree.

    Raises
    ------
    ValueError, LabelError
        As `group_quantile`; also where too many risks vanish and their errors do not.
    """
    sizes, scales = np.abs(np.asarray(errors, float)), np.asarray(risks, float)
    never = np.full_like(sizes, sys.float_info.max)  # of a risk that no factor scales
    never[np.isnan(scales)] = np.nan
    scores = np.divide(sizes, scales, out=never, where=scales > 0)
    factor = group_quantile(np.where(sizes > 0, scores, 0.0), groups, coverage)
    if factor == sys.float_info.max:
        flat = int(np.sum((scales <= 0) & (sizes > 0)))
        msg = (
            f"a risk must not vanish where errors do not, got {flat} of {len(sizes)} "
            "structures that err at a risk of 0; add a floor to it, in its unit"
        )
        raise LabelError(msg)
    return factor
