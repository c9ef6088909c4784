"""Scores of one row on one test set."""

from __future__ import annotations

from typing import Any

import numpy as np

from uqcalc.statistics import scores


def judge(
    errors: np.ndarray,
    risk: np.ndarray,
    probability: np.ndarray | None,
    boundary: float,
    *,
    own_median: bool,
) -> dict[str, Any]:
    """Return the columns of the table.

    With ``own_median`` the AUROC is at the median error of the test set, because at the
    boundary of the labels all structures of some test sets have one class. ``aurc`` is
    the area under the risk-coverage curve of the error, divided by that of a random
    order.
    """
    median = float(np.median(errors))
    cut = median if own_median else boundary
    _, kept = scores.risk_coverage(errors, risk)
    found: dict[str, Any] = {
        "structures": len(errors),
        "auroc": scores.auroc(errors <= cut, -risk),
        "spearman": scores.spearman(errors, risk),
        "aurc": float(kept.mean() / errors.mean()),
    }
    if probability is None or own_median:
        return found
    report = scores.classification_report(errors <= boundary, probability)
    names = ("accuracy", "majority_accuracy", "mcc", "ece", "ece_noise_floor", "brier")
    return found | {name: report[name] for name in names}
