"""Measure how much wider probabilities must be if there are few groups of labels.

The labels are generated. The log-odds that a structure is right are twice a standard
normal number plus a shift of its group (molecule or run). A part of the number is
common to the group. Each of four paths gives the number with noise, of which a part is
common to the group; no path contains the shift. Path weights and calibration are fitted
as in `fit`, to 900 structures. For 300 further groups the script computes the slope of
the truth on the log-odds, with and without the factor `slope_on_new_groups`. At slope 1
the probabilities are right; below 1 they are too close to 0 and 1.

    python benchmarks/few_groups.py
"""

from __future__ import annotations

import argparse

import numpy as np
from common import write_result
from scipy.special import expit

from uqcalc.errors import LabelError
from uqcalc.fitting.crossfit import slope_on_new_groups, stack
from uqcalc.probe.calibration import Calibration, platt


LABELS, NEW_GROUPS = 900, 300


def draw(
    rng: np.random.Generator, groups: int, each: int, shift: float, shared: float
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return paths, truth and groups of ``groups * each`` structures."""
    which = np.repeat(np.arange(groups), each)
    own = rng.normal(size=groups * each)
    number = shared * rng.normal(size=groups)[which] + np.sqrt(1 - shared**2) * own
    odds = 2 * number + shift * rng.normal(size=groups)[which]
    truth = rng.random(len(which)) < expit(odds)
    paths = [
        number
        + 0.7 * part * rng.normal(size=groups)[which]
        + 0.5 * rng.normal(size=len(which))
        for part in (0.2, 0.5, 0.8, 1.0)
    ]
    return np.stack(paths, axis=1), truth, [str(g) for g in which]


def slopes(
    rng: np.random.Generator, groups: int, shift: float, shared: float
) -> list[tuple[float, float]]:
    """Return (slope, Brier score) on new groups, without and with the factor."""
    paths, truth, names = draw(rng, groups, LABELS // groups, shift, shared)
    new, wanted, _ = draw(rng, NEW_GROUPS, 10, shift, shared)
    weights = stack(paths, truth)
    found = []
    for factor in (1.0, slope_on_new_groups(paths, truth, names)):
        fit = Calibration.fit(
            paths @ weights, np.where(truth, 0.5, 2.0), names, 1.0, factor
        )
        odds = fit.slope * (new @ weights) + fit.intercept
        brier = float(np.mean((expit(odds) - wanted) ** 2))
        found.append((platt(odds, wanted)[0], brier))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args()
    rows = []
    for shift, shared in ((1.0, 0.7), (0.5, 0.5)):
        for groups in (6, 12, 30, 100):
            rng = np.random.default_rng(groups)
            found, refused = [], 0
            for _ in range(options.draws):
                try:
                    found.append(slopes(rng, groups, shift, shared))
                except LabelError:
                    refused += 1
            table = np.array(found)
            rows.append(
                {
                    "groups": groups,
                    "shift": shift,
                    "shared": shared,
                    "slope": float(table[:, 0, 0].mean()),
                    "slope_widened": float(table[:, 1, 0].mean()),
                    "brier": float(table[:, 0, 1].mean()),
                    "brier_widened": float(table[:, 1, 1].mean()),
                    "refused": refused,
                }
            )
            print(rows[-1])
    write_result("few_groups", seeds=[6, 12, 30, 100], rows=rows)


if __name__ == "__main__":
    main()
