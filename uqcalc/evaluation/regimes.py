"""Scores of a probe by regime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
