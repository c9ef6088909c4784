"""Scores of a reliability estimate: arrays in, numbers out.

Throughout, ``reliable`` is a boolean array of the truth (error within the boundary)
and ``probability`` the predicted P(reliable), both of shape (structures,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics


CUTOFFS: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def _checked(
    reliable: ArrayLike, probability: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth = np.asarray(reliable, dtype=bool)
    belief = np.asarray(probability, dtype=float)
    if truth.shape != belief.shape or truth.ndim != 1 or truth.size == 0:
        msg = (
            "reliable and probability must be non-empty 1-D arrays of one length, "
            f"got shapes {truth.shape} and {belief.shape}"
        )
        raise ValueError(msg)
    if not np.all((belief >= 0) & (belief <= 1)):
        msg = "probability must lie in [0, 1], got values outside or NaN"
        raise ValueError(msg)
    return truth, belief


def expected_calibration_error(
    reliable: ArrayLike, probability: ArrayLike, bins: int = 10
) -> float:
    """Return the expected calibration error over equal-width bins.

    ``sum_b n_b / n * |mean(reliable_b) - mean(probability_b)|``
    (Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602).
    """
    truth, belief = _checked(reliable, probability)
    index = np.minimum((belief * bins).astype(int), bins - 1)
    gap = np.bincount(index, weights=truth - belief, minlength=bins)
    return float(np.abs(gap).sum() / truth.size)


def calibration_noise_floor(
    probability: ArrayLike, bins: int = 10, draws: int = 200, seed: int = 0
) -> float:
    """Return the mean ECE of a *perfectly* calibrated model of these probabilities.

    Truths are drawn from the probabilities themselves, so what is left is the
    sampling noise of the estimator; an ECE near it cannot be improved upon.
    """
    belief = np.asarray(probability, dtype=float)
    rng = np.random.default_rng(seed)
    errors = [
        expected_calibration_error(rng.random(belief.size) < belief, belief, bins)
        for _ in range(draws)
    ]
    return float(np.mean(errors))


def auroc(reliable: ArrayLike, probability: ArrayLike) -> float:
    """Return the area under the ROC curve; NaN where only one class is present."""
    truth = np.asarray(reliable, dtype=bool)
    if truth.all() or not truth.any():
        return math.nan
    return float(metrics.roc_auc_score(truth, probability))


def _mcc(truth: NDArray[np.bool_], answer: NDArray[np.bool_]) -> float:
    """Matthews' correlation, 0 where truth or answer is all one class."""
    if truth.all() or not truth.any() or answer.all() or not answer.any():
        return 0.0
    return float(metrics.matthews_corrcoef(truth, answer))


def spearman(error: ArrayLike, risk: ArrayLike) -> float:
    """Return Spearman's rank correlation of error and risk; NaN if one is constant."""
    if np.ptp(np.asarray(error)) == 0 or np.ptp(np.asarray(risk)) == 0:
        return math.nan
    return float(stats.spearmanr(error, risk).statistic)


def coverage_table(
    reliable: ArrayLike,
    probability: ArrayLike,
    cutoffs: Sequence[float] = CUTOFFS,
) -> list[dict[str, float]]:
    """Return, for each cutoff on P(reliable), who is kept and how right that is.

    Returns
    -------
    list of dict
        ``cutoff``, ``coverage`` (fraction kept) and ``precision`` (fraction of the
        kept that are reliable; NaN where none is kept).
    """
    truth, belief = _checked(reliable, probability)
    rows = []
    for cutoff in cutoffs:
        kept = belief >= cutoff
        precision = float(truth[kept].mean()) if kept.any() else math.nan
        rows.append(
            {
                "cutoff": float(cutoff),
                "coverage": float(kept.mean()),
                "precision": precision,
            }
        )
    return rows


def risk_coverage(
    error: ArrayLike, risk: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (coverage, mean error of the kept), keeping the least risky first.

    The selective-risk curve of Geifman & El-Yaniv 2017 (arXiv:1705.08500) for the
    error itself instead of a 0/1 loss. Both arrays have shape (structures,).
    """
    errors = np.asarray(error, dtype=float)
    order = np.argsort(np.asarray(risk, dtype=float), kind="stable")
    kept = np.arange(1, errors.size + 1)
    return kept / errors.size, np.cumsum(errors[order]) / kept


def classification_report(
    reliable: ArrayLike, probability: ArrayLike
) -> dict[str, Any]:
    """Return the scores of PROBE's paper (arXiv:2605.00640), and the baselines.

    ``accuracy``, ``mcc`` and ``f1`` cut at 0.5; ``majority_accuracy`` is what
    always answering the commoner class would reach.
    """
    truth, belief = _checked(reliable, probability)
    answer = belief >= 0.5
    prevalence = float(truth.mean())
    return {
        "structures": int(truth.size),
        "prevalence": prevalence,
        "majority_accuracy": max(prevalence, 1 - prevalence),
        "accuracy": float((answer == truth).mean()),
        "mcc": _mcc(truth, answer),
        "f1": float(metrics.f1_score(truth, answer, zero_division=0.0)),
        "auroc": auroc(truth, belief),
        "ece": expected_calibration_error(truth, belief),
        "ece_noise_floor": calibration_noise_floor(belief),
        "brier": float(np.mean((belief - truth) ** 2)),
        "coverage": coverage_table(truth, belief),
    }
