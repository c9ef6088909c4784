"""Scores of a reliability estimate, and of distributions: arrays in, numbers out.

`fair_crps`, `gaussian_crps`, `gaussian_nll` and `spread_skill` score distributions of a
number, given as members or as mean and deviation. In all other functions ``reliable``
is a boolean array (is the error within the boundary?) and ``probability`` the predicted
P(reliable), both of shape (structures,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics

from uqcalc.statistics.crps import (
    fair_crps as fair_crps,
    gaussian_crps as gaussian_crps,
    gaussian_nll as gaussian_nll,
    spread_skill as spread_skill,
)


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


class Bins(NamedTuple):
    """Counts and means in each bin of the probability, all (bins,).

    Attributes
    ----------
    counts : array of int
        Number of structures.
    predicted, observed : arrays
        Mean probability and share of reliable structures; NaN in empty bins.
    """

    counts: NDArray[np.int64]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]


def reliability_bins(
    reliable: ArrayLike, probability: ArrayLike, bins: int = 10
) -> Bins:
    """Sort probabilities into bins of equal width; the last bin includes 1."""
    truth, belief = _checked(reliable, probability)
    index = _bin_of(belief, bins)
    counts = np.bincount(index, minlength=bins)
    weights = np.where(counts > 0, counts, np.nan)
    return Bins(
        counts,
        np.bincount(index, belief, bins) / weights,
        np.bincount(index, truth, bins) / weights,
    )


def _bin_of(belief: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    return np.minimum((belief * bins).astype(np.int64), np.int64(bins - 1))


def wilson_interval(
    hits: ArrayLike, counts: ArrayLike, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return confidence bounds (low, high) on binomial shares, shaped as ``counts``.

    Wilson 1927, doi:10.1080/01621459.1927.10502953. NaN if a count is 0.
    """
    n = np.asarray(counts, dtype=float)
    n = np.where(n > 0, n, np.nan)
    share = np.asarray(hits, dtype=float) / n
    z = float(stats.norm.ppf((1 + confidence) / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def brier_decomposition(
    reliable: ArrayLike, probability: ArrayLike, bins: int = 10
) -> dict[str, float]:
    """Return the terms of the Brier score over bins of equal width.

    ``brier = reliability - resolution + uncertainty + within_bins`` (Murphy 1973,
    doi:10.1175/1520-0450(1973)012<0595:ANVPOT>2.0.CO;2):

    - reliability: squared difference of predicted and observed shares; 0 is best.
    - resolution: squared difference of the observed shares from the base rate; 0 is no
      skill, the uncertainty is the maximum.
    - uncertainty: Brier score of a model that always predicts the base rate.
    - within_bins: correction for different probabilities within a bin, which makes the
      sum exact (Stephenson et al. 2008, doi:10.1175/2007WAF2006116.1).

    Returns
    -------
    dict
        ``reliability``, ``resolution``, ``uncertainty`` and ``within_bins``.
    """
    truth, belief = _checked(reliable, probability)
    found, index = reliability_bins(truth, belief, bins), _bin_of(belief, bins)
    filled, rate = found.counts > 0, truth.mean()
    share = found.counts[filled] / truth.size
    predicted, observed = found.predicted[filled], found.observed[filled]
    off = belief - found.predicted[index]
    away = truth - found.observed[index]
    return {
        "reliability": float(share @ (predicted - observed) ** 2),
        "resolution": float(share @ (observed - rate) ** 2),
        "uncertainty": float(rate * (1 - rate)),
        "within_bins": float(np.mean(off**2 - 2 * off * away)),
    }


def expected_calibration_error(
    reliable: ArrayLike, probability: ArrayLike, bins: int = 10
) -> float:
    """Return the expected calibration error over equal-width bins.

    ``sum_b n_b / n * |mean(reliable_b) - mean(probability_b)|``
    (Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602).
    """
    truth, belief = _checked(reliable, probability)
    index = _bin_of(belief, bins)
    gap = np.bincount(index, weights=truth - belief, minlength=bins)
    return float(np.abs(gap).sum() / truth.size)


def calibration_noise_floor(
    probability: ArrayLike, bins: int = 10, draws: int = 200, seed: int = 0
) -> float:
    """Return the mean ECE of a *perfectly* calibrated model with these probabilities.

    The outcomes are drawn from the probabilities, so that this ECE is sampling noise
    only. An ECE near this value cannot be improved.
    """
    belief = np.asarray(probability, dtype=float)
    rng = np.random.default_rng(seed)
    errors = [
        expected_calibration_error(rng.random(belief.size) < belief, belief, bins)
        for _ in range(draws)
    ]
    return float(np.mean(errors))


class Chance(NamedTuple):
    """The ECE of a perfectly calibrated model, caused by chance alone.

    Attributes
    ----------
    mean, most : float
        Mean and 95 % quantile of the ECE.
    """

    mean: float
    most: float


def calibration_chance(
    reliable: ArrayLike,
    probability: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    bins: int = 10,
    draws: int = 200,
    seed: int = 0,
) -> Chance:
    """Return the ECE of a perfectly calibrated model with these probabilities.

    Without groups the outcomes are drawn from the probabilities. With groups there is a
    second estimate, and the larger one is returned: structures of one group (one
    molecule, one run) are often right or wrong together, so that 20 groups of 50 hold
    little more information than 20 structures. The second estimate gives the sum of
    ``reliable - probability`` of each group and bin a random sign (wild cluster
    bootstrap: Cameron, Gelbach & Miller 2008, doi:10.1162/rest.90.3.414), which keeps
    the correlation within a group.

    Parameters
    ----------
    reliable, probability : arrays (structures,)
    groups : array (structures,), optional
        Group of each structure; by default all structures are independent.
    """
    truth, belief = _checked(reliable, probability)
    rng = np.random.default_rng(seed)
    alone = [
        expected_calibration_error(rng.random(belief.size) < belief, belief, bins)
        for _ in range(draws)
    ]
    found = [(float(np.mean(alone)), float(np.quantile(alone, 0.95)))]
    if groups is not None:
        names, which = np.unique(np.asarray(groups), return_inverse=True)
        sums = np.zeros((len(names), bins))
        np.add.at(sums, (which.ravel(), _bin_of(belief, bins)), truth - belief)
        signs = rng.choice([-1.0, 1.0], size=(draws, len(names)))
        together = np.abs(signs @ sums).sum(axis=1) / belief.size
        found.append((float(together.mean()), float(np.quantile(together, 0.95))))
    return Chance(*(max(values) for values in zip(*found, strict=True)))


def auroc(reliable: ArrayLike, probability: ArrayLike) -> float:
    """Return the area under the ROC curve; NaN if there is only one class."""
    truth = np.asarray(reliable, dtype=bool)
    if truth.all() or not truth.any():
        return math.nan
    return float(metrics.roc_auc_score(truth, probability))


def _mcc(truth: NDArray[np.bool_], answer: NDArray[np.bool_]) -> float:
    """Return Matthews' correlation; 0 if truth or answer has only one class."""
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
    """Return coverage and precision for each cutoff on P(reliable).

    A structure is kept if its probability is at least the cutoff.

    Returns
    -------
    list of dict
        ``cutoff``, ``coverage`` (share kept) and ``precision`` (share of the kept
        structures that are reliable; NaN if none is kept).
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
    """Return (coverage, mean error of the kept structures), lowest risk first.

    The selective-risk curve of Geifman & El-Yaniv 2017 (arXiv:1705.08500), with the
    error instead of a 0/1 loss. All arrays have the shape (structures,). Structures of
    equal risk count with their mean error. NaN risks come last.
    """
    errors = np.asarray(error, dtype=float)
    _, place, counts = np.unique(  # in order of the risk, NaN last
        np.asarray(risk, dtype=float), return_inverse=True, return_counts=True
    )
    means = np.bincount(place, errors) / counts
    kept = np.arange(1, errors.size + 1)
    return kept / errors.size, np.cumsum(np.repeat(means, counts)) / kept


def classification_report(
    reliable: ArrayLike,
    probability: ArrayLike,
    groups: ArrayLike | None = None,
) -> dict[str, Any]:
    """Return the scores of PROBE's paper (arXiv:2605.00640), and baselines.

    ``accuracy``, ``mcc`` and the F1 scores use the cutoff 0.5. ``f1_unreliable`` is the
    F1 score of the paper, with unreliable as the positive class; ``f1_reliable`` has
    reliable as the positive class. ``majority_accuracy`` is the accuracy of always
    predicting the more frequent class. ``ece_noise_floor`` and ``ece_chance`` are mean
    and 95 % quantile of `calibration_chance` with these ``groups``.
    """
    truth, belief = _checked(reliable, probability)
    answer = belief >= 0.5
    prevalence = float(truth.mean())
    chance = calibration_chance(truth, belief, groups)
    return {
        "structures": int(truth.size),
        "prevalence": prevalence,
        "majority_accuracy": max(prevalence, 1 - prevalence),
        "accuracy": float((answer == truth).mean()),
        "mcc": _mcc(truth, answer),
        "f1_unreliable": float(metrics.f1_score(~truth, ~answer, zero_division=0.0)),
        "f1_reliable": float(metrics.f1_score(truth, answer, zero_division=0.0)),
        "auroc": auroc(truth, belief),
        "ece": expected_calibration_error(truth, belief),
        "ece_noise_floor": chance.mean,
        "ece_chance": chance.most,
        "brier": float(np.mean((belief - truth) ** 2)),
        "brier_decomposition": brier_decomposition(truth, belief),
        "coverage": coverage_table(truth, belief),
    }
