"""Scores of distributions: CRPS, likelihood, and the ratio of spread to skill."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats


Array = TypeVar("Array", NDArray[np.float64], torch.Tensor)


def fair_crps(members: Array, truth: Array) -> Array:
    """Return the fair ensemble CRPS of each number, in the unit of the numbers.

    ``mean_k |x_k - y| - sum_{k<l} |x_k - x_l| / (K (K - 1))``: an estimate of the CRPS
    of the distribution behind the K members that does not depend on K on average
    (Zamo and Naveau 2018, doi:10.1007/s11004-017-9709-7). It is the absolute error for
    members that are all equal.

    ======  ==========================
    symbol  variable
    ======  ==========================
    x_k     ``members``, (members, ...)
    y       ``truth``, (...)
    ======  ==========================

    Parameters
    ----------
    members : array or tensor (members, ...)
        At least two members. A tensor keeps its graph.
    truth : array or tensor (...)

    Raises
    ------
    ValueError
        If there are fewer than two members.
    """
    count = members.shape[0]
    if count < 2:
        msg = f"members must be at least 2 for the fair CRPS, got {count}; add some"
        raise ValueError(msg)
    if isinstance(members, torch.Tensor):
        ordered = members.sort(dim=0).values
        ranks = torch.arange(count).to(members)
    else:
        ordered = np.sort(members, axis=0)
        ranks = np.arange(count, dtype=float)
    # sum over pairs k < l of |x_k - x_l|, from the sorted members
    weights = (2 * ranks - count + 1).reshape(-1, *[1] * (members.ndim - 1))
    pairs = (weights * ordered).sum(0)
    error: Array = abs(members - truth).mean(0) - pairs / (count * (count - 1))
    return error


def gaussian_crps(
    mean: ArrayLike, deviation: ArrayLike, truth: ArrayLike
) -> NDArray[np.float64]:
    """Return the CRPS of normal distributions, in the unit of ``truth``.

    ``s (w (2 Phi(w) - 1) + 2 phi(w) - 1 / sqrt(pi))`` with ``w = (y - m) / s``
    (Gneiting and Raftery 2007, doi:10.1198/016214506000001437, equation 21). For a
    deviation of zero it is the absolute error. NaN stays NaN.
    """
    m, s, y = (np.asarray(part, dtype=float) for part in (mean, deviation, truth))
    with np.errstate(divide="ignore", invalid="ignore"):
        w = (y - m) / s
        score = s * (
            w * (2 * stats.norm.cdf(w) - 1) + 2 * stats.norm.pdf(w) - 1 / np.sqrt(np.pi)
        )
    found: NDArray[np.float64] = np.where(s == 0, np.abs(y - m), score)
    return found


def gaussian_nll(
    mean: ArrayLike, deviation: ArrayLike, truth: ArrayLike
) -> NDArray[np.float64]:
    """Return the negative log-likelihood of ``truth`` under normal distributions.

    ``(y - m)^2 / (2 s^2) + log(s) + log(2 pi) / 2`` (the logarithmic score of Gneiting
    and Raftery 2007, doi:10.1198/016214506000001437). It depends on the unit of the
    numbers. For a deviation of zero it is infinite, with either sign. NaN stays NaN.
    """
    m, s, y = (np.asarray(part, dtype=float) for part in (mean, deviation, truth))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = ((y - m) / s) ** 2 / 2 + np.log(s) + np.log(2 * np.pi) / 2
    limit = np.where(y == m, -np.inf, np.inf)
    return np.asarray(np.where(s == 0, limit, found))


def spread_skill(members: ArrayLike, truth: ArrayLike) -> float:
    """Return the RMS spread over the RMSE of the mean, corrected for K members.

    ``sqrt((K + 1) / K * mean(variance)) / sqrt(mean((mean_k x_k - y)^2))`` with the
    variance over K - 1 (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1). It is 1 if
    the truth is one more draw from the distribution of the members. NaN if the mean
    is right everywhere.
    """
    x, y = np.asarray(members, dtype=float), np.asarray(truth, dtype=float)
    count = x.shape[0]
    spread = np.sqrt((count + 1) / count * x.var(axis=0, ddof=1).mean())
    skill = np.sqrt(np.mean((x.mean(axis=0) - y) ** 2))
    return float(spread / skill) if skill > 0 else float("nan")
