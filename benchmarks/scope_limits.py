"""Measure which number of a structure the limits on the distance should follow.

    python benchmarks/scope_limits.py --model chgnet --cache features
    python benchmarks/scope_limits.py --model sevennet  # with sevenn

The labels are those of `provenance/universal`, the probe that of the forces that ships.
A label is well judged if it is right and has a P of RELIABLE. For labels of the fit the
distances are from the labels of all other groups, and for the others (guarantee and
test) from all labels of the fit.

A limit that follows a number x is a quantile regression in x, and then a quantile of
the rest (`uqcalc.probe.scope.tail_limit`). (1) Its loss is the pinball loss at the
level of the limit, on well judged labels of tenths of the groups that did not set it:
smaller is better, and the difference to a single limit has a 95 % interval (bootstrap
over groups). (2) Limits from the labels of the fit say which of the others are outside.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import print_table, write_result

import uqcalc
from uqcalc.defaults import shipped_probe
from uqcalc.evaluation.readings import read_structures
from uqcalc.fitting.crossfit import group_folds
from uqcalc.fitting.leftout import left_out_distances
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.inputs import distinct_atoms
from uqcalc.probe.scope import (
    LARGEST_LEVEL,
    MEAN_LEVEL,
    quantile_slope,
    tail_limit,
)


sys.path.insert(0, str(Path(__file__).parents[1] / "provenance" / "universal"))
from fit_probe import BOUNDARIES, divide
from mattersim import KEYS, OPENERS, load_dataset, open_source


FOLDS, ROUNDS, DRAWS = 10, 4, 2000
COLUMNS = {
    "limit": "limit",
    "follows": "follows",
    "slope": "slope",
    "loss": "loss",
    "gain": "gain",
    "gain_interval": "95 %",
    "right_kept": "right kept",
    "wrong_kept": "wrong kept",
    "hot_outside": "hot and outside",
}


class Known(NamedTuple):
    """Data of labelled structures, arrays (structures,)."""

    mean_log: np.ndarray
    log_largest: np.ndarray
    right: np.ndarray
    trusted: np.ndarray  # P of RELIABLE, and no doubtful atom
    fitted: np.ndarray
    hot: np.ndarray
    groups: np.ndarray
    numbers: dict[str, np.ndarray]

    def some(self, rows: np.ndarray) -> Known:
        """Return the same of some structures."""
        chosen = {name: column[rows] for name, column in self.numbers.items()}
        return Known(*(column[rows] for column in self[:-1]), chosen)


def read_labels(options: argparse.Namespace) -> Known:
    """Return distances, verdicts and numbers of the labels of the forces."""
    with contextlib.redirect_stdout(io.StringIO()):
        source = open_source(
            options.model, options.data / "mattersim",
            options.data / "sevennet0_mattersim", options.cache, 40,
        )  # fmt: skip
        labels = uqcalc.Labels(
            "forces", **KEYS, group_key="formula", boundary=BOUNDARIES["forces"]
        )
        data, sets = load_dataset(source, labels)
    fitting, *others = divide(data, source.groups, 0)
    data_of_fit = data.subset(fitting)
    fitting = fitting[~data_of_fit.exploded()]
    away = left_out_distances(data.subset(fitting))
    largest, mean_log = np.full((2, len(data)), np.nan)
    largest[fitting], mean_log[fitting] = away.largest, away.mean_log
    probe = shipped_probe(options.model)
    for row in np.concatenate(others):
        found = probe.path_output([data.predictions[row]])
        largest[row], mean_log[row] = found.distance[0], found.mean_log_distance[0]
    seen = read_structures(probe, data.predictions)
    known = Known(
        mean_log,
        np.log(largest),
        data.errors <= probe.card.boundary,
        (seen.probability >= probe.card.suspect) & ~seen.weak,
        np.isin(np.arange(len(data)), fitting),
        np.array([name == "mpf-TP" for name in sets]),
        np.asarray(data.groups),
        candidates(data),
    )
    return known.some(np.flatnonzero(np.isfinite(mean_log)))


def candidates(data: Dataset) -> dict[str, np.ndarray]:
    """Return the numbers that a limit may follow, arrays (structures,)."""
    shares = [np.unique(z, return_counts=True)[1] / len(z) for z in data.numbers]
    distinct = np.array([distinct_atoms(p) for p in data.predictions], float)
    return {
        "nothing (one limit)": np.zeros(len(data)),
        "log of the elements": np.log([len(row) for row in shares]),
        "entropy of the composition": np.array(
            [-np.sum(x * np.log(x)) for x in shares]
        ),
        "log of the distinct atoms": np.log(distinct),
        "distinct atoms to the power -1/2": distinct**-0.5,
        "log of the atoms": np.log(data.sizes),
    }


def weights_of(groups: np.ndarray) -> np.ndarray:
    """Return weights, (structures,), with which each group counts the same."""
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return 1 / counts[place]


def limit_of(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, level: float
) -> tuple[float, float]:
    """Return slope and intercept of a limit on ``y`` that follows ``x``."""
    slope = quantile_slope(x, y, weights_of(groups), level)
    return slope, tail_limit(y - slope * x, groups.tolist(), level)


def losses(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, level: float
) -> np.ndarray:
    """Return the pinball loss of limits from other groups, (structures,)."""
    found = np.zeros(len(y))
    for seed in range(ROUNDS):
        fold = group_folds(groups.tolist(), FOLDS, seed)
        for k in range(FOLDS):
            rest, own = fold != k, fold == k
            slope, intercept = limit_of(x[rest], y[rest], groups[rest], level)
            over = y[own] - slope * x[own] - intercept
            found[own] += np.maximum(level * over, (level - 1) * over) / ROUNDS
    return found


def interval(gain: np.ndarray, groups: np.ndarray) -> list[float]:
    """Return the central 95 % of the mean over groups, from a bootstrap."""
    names, place = np.unique(groups, return_inverse=True)
    of_groups = np.bincount(place, gain * weights_of(groups))
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(names), size=(DRAWS, len(names)))
    return np.percentile(of_groups[drawn].mean(axis=1), (2.5, 97.5)).tolist()


def rows_of(known: Known, limit: str, y: np.ndarray, level: float) -> list[dict]:
    """Return one row for each number that the limit on ``y`` may follow."""
    judged = known.right & known.trusted
    fitted, new = judged & known.fitted, ~known.fitted & known.trusted
    groups, base, found = known.groups[judged], None, []
    for name, x in known.numbers.items():
        loss = losses(x[judged], y[judged], groups, level)
        base = loss if base is None else base
        slope, intercept = limit_of(x[fitted], y[fitted], known.groups[fitted], level)
        inside = y <= slope * x + intercept
        found.append(
            {
                "limit": limit,
                "follows": name,
                "slope": slope,
                "loss": float(np.average(loss, weights=weights_of(groups))),
                "gain": float(np.average(base - loss, weights=weights_of(groups))),
                "gain_interval": interval(base - loss, groups),
                "right_kept": int(np.sum(inside & new & known.right)),
                "right": int(np.sum(new & known.right)),
                "wrong_kept": int(np.sum(inside & new & ~known.right)),
                "wrong": int(np.sum(new & ~known.right)),
                "hot": int(np.sum(judged & known.hot)),
                "hot_outside": int(np.sum(~inside & judged & known.hot)),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(OPENERS), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    options = parser.parse_args()
    warnings.simplefilter("ignore", uqcalc.LabelWarning)
    known = read_labels(options)
    rows = [
        *rows_of(known, "mean over atoms", known.mean_log, MEAN_LEVEL),
        *rows_of(known, "largest distance", known.log_largest, LARGEST_LEVEL),
    ]
    print_table("limits of the scope", rows, COLUMNS)
    write_result(
        f"scope_limits_{options.model}",
        seeds=list(range(ROUNDS)),
        rows=rows,
        notes=[
            "loss: pinball loss of the limit on the logarithm of the distance, on well "
            "judged labels of other groups; gain: by how much it is below that of one "
            "limit, with the interval of a bootstrap over groups",
            "right_kept, wrong_kept: labels of guarantee and test with a P of RELIABLE "
            "and no doubtful atom, inside this limit",
            "hot_outside: well judged labels of mpf-TP (hot cells, of all parts) that "
            "are outside this limit",
        ],
    )


if __name__ == "__main__":
    main()
