"""Scores and guarantees of a probe by regime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqcalc.evaluation.riskcontrol import bound_at
from uqcalc.labels.dataset import Dataset
from uqcalc.labels.regimes import regimes_of
from uqcalc.probe.card import RegimeCount
from uqcalc.statistics import scores


def regime_rows(
    regimes: Sequence[str],
    reliable: NDArray[np.bool_],
    probability: NDArray[np.float64],
) -> list[dict[str, Any]]:
    """Return one row for each regime, the largest first.

    ``regime``, ``structures``, ``prevalence`` (share of right structures), ``accuracy``
    of P >= 0.5, ``auroc`` (None if all are of one class), ``ece``, and ``mean``, the
    mean P.
    """
    names, counts = np.unique(np.asarray(regimes, dtype=str), return_counts=True)
    rows = []
    for name in names[np.argsort(-counts, kind="stable")]:
        mine = np.array([regime == name for regime in regimes])
        right, said = reliable[mine], probability[mine]
        rows.append(
            {
                "regime": str(name),
                "structures": int(mine.sum()),
                "prevalence": float(right.mean()),
                "accuracy": float(np.mean((said >= 0.5) == right)),
                "auroc": (
                    scores.auroc(right, said) if 0 < right.sum() < len(right) else None
                ),
                "ece": scores.expected_calibration_error(right, said),
                "mean": float(said.mean()),
            }
        )
    return rows


def regime_counts(
    data: Dataset,
    probability: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    cutoff: float,
    confidence: float,
) -> dict[str, RegimeCount]:
    """Return accepted and wrong structures by regime, the largest regime first.

    Parameters
    ----------
    probability : array (structures,)
        NaN is never accepted.
    wrong : boolean array (structures,)
    cutoff : float
        Smallest probability of an accepted structure. It must not depend on the labels.
    confidence : float
        Of the bound of each regime by itself.
    """
    regimes = np.array(regimes_of(data.predictions, data.conditions))
    names, counts = np.unique(regimes, return_counts=True)
    found = {}
    for name in names[np.argsort(-counts, kind="stable")]:
        rows = np.flatnonzero(regimes == name)
        groups = [data.groups[i] for i in rows]
        accepted, erring, bound, kept = bound_at(
            cutoff, probability[rows], wrong[rows], groups, confidence=confidence
        )
        seen = rows[kept]
        known = [data.numbers[i] for i in seen]
        elements = np.unique(np.concatenate(known)) if known else np.array([], int)
        hottest = np.nan
        if len(seen) and data.conditions is not None:
            hottest = float(data.conditions.temperatures[seen].max())
        found[str(name)] = RegimeCount(
            groups=len(set(groups)),
            accepted=accepted,
            wrong=erring,
            bound=bound,
            elements=[int(z) for z in elements],
            temperature_K=None if np.isnan(hottest) else hottest,
        )
    return found
