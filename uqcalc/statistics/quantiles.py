"""Conformal quantiles with a finite-sample guarantee for exchangeable groups."""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import ArrayLike

from uqcalc.errors import LabelError


# Tolerance for round-off when sums of weights are compared with a level.
_ROUND_OFF = 1e-9


def groups_needed(level: float) -> int:
    """Return the smallest number of groups for a conformal quantile at ``level``."""
    return math.ceil(level / (1 - level) - _ROUND_OFF)


def group_quantile(values: ArrayLike, groups: ArrayLike, level: float) -> float:
    """Return x for which P(value of a structure of a new group <= x) >= ``level``.

    Each of the K groups has the weight 1 / (K + 1), divided equally among its members;
    the remaining 1 / (K + 1) lies at infinity. This is hierarchical conformal
    prediction (Lee, Barber & Willett 2023, arXiv:2306.06342). With one structure per
    group it is the value of rank ``ceil((K + 1) level)``, split conformal prediction
    (Vovk et al. 2005). The guarantee is an average over groups that are drawn in the
    same way.

    Parameters
    ----------
    values : array (structures,)
        NaN counts as infinite.
    groups : array (structures,)
        Group of each structure, as a number or a name.
    level : float
        In (0, 1).

    Raises
    ------
    ValueError
        If the level is not in (0, 1).
    LabelError
        If there are too few groups (the message gives the number needed), or if the
        quantile is not finite.
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
            f"a quantile of {level:g} must have at least {groups_needed(level)} "
            f"groups (frames without a group key are one each), got {len(counts)}; "
            "give more groups, or choose a lower quantile; for a run of one molecule "
            "or material, give several normal runs to "
            "uqcalc.calibrate_threshold(runs=[...])"
        )
        raise LabelError(msg)
    order = np.argsort(given, kind="stable")  # NaN comes last
    mass = np.cumsum(1.0 / counts[index][order])
    rank = np.searchsorted(mass, level * (len(counts) + 1) - _ROUND_OFF)
    limit = float(given[order[min(int(rank), len(order) - 1)]])
    if not math.isfinite(limit):
        odd = int(np.sum(~np.isfinite(given)))
        msg = (
            f"the {level:g} quantile must be finite, but {odd} of {len(given)} values "
            "are NaN or infinite, such as risks of elements that were not in the "
            "fit; choose a lower quantile, or fit on frames with all elements"
        )
        raise LabelError(msg)
    return limit


def conformal_factor(
    errors: ArrayLike, risks: ArrayLike, groups: ArrayLike, coverage: float
) -> float:
    """Return the factor of ``|error| <= factor * risk`` for the chosen coverage.

    It is the conformal quantile of ``|error| / risk`` (all arrays (structures,)). The
    ratio counts as 0 if the error is 0; otherwise it is infinite for a NaN risk.

    Raises
    ------
    ValueError, LabelError
        As `group_quantile`.
    LabelError
        If too many risks are 0 while their errors are not.
    """
    sizes, scales = np.abs(np.asarray(errors, float)), np.asarray(risks, float)
    never = np.full_like(sizes, sys.float_info.max)  # for a risk of 0
    never[np.isnan(scales)] = np.nan
    scores = np.divide(sizes, scales, out=never, where=scales > 0)
    factor = group_quantile(np.where(sizes > 0, scores, 0.0), groups, coverage)
    if factor == sys.float_info.max:
        flat = int(np.sum((scales <= 0) & (sizes > 0)))
        msg = (
            f"risk must be above 0 where the error is, got {flat} of {len(sizes)} "
            "structures with an error and a risk of 0; add a floor to the risk, in "
            "its unit"
        )
        raise LabelError(msg)
    return factor
