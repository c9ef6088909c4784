"""Predictions for left-out groups: input of weights, calibration and scope."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.model_selection import GroupKFold

from uqcalc.errors import LabelError
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.calibration import platt
from uqcalc.probe.inputs import chunks
from uqcalc.probe.probe import Probe
from uqcalc.probe.stacked import PATHS


# Weights and calibration are only a few numbers: more structures would not help.
MOST = 20_000
_LEAST_READ = 0.5  # smallest share of structures that must get a prediction
# The slope is corrected above the first and up to the second number of groups. Third:
# number of folds.
_FOLDS, _MANY_GROUPS, _FOLDS_OF_GROUPS = 3, 100, 10
_LEAST_SLOPE = 0.7
_SHRINKAGE = 1.0  # penalty on standardised weights, in units of the loss of one label


@dataclass(frozen=True, slots=True, eq=False)
class Unseen:
    """Outputs of a probe's paths for held-out structures.

    Attributes
    ----------
    rows : array (structures,)
        Indices of the structures in the dataset.
    paths : array (structures, 4)
        Output of each of `PATHS`; larger is more reliable.
    distance, mean_log_distance : arrays (structures,)
        As in `uqcalc.probe.stacked.StackedOutput`.
    atoms : list of arrays (atoms,) or None
        Scores of the atoms of each structure.
    """

    rows: NDArray[np.int64]
    paths: NDArray[np.float64]
    distance: NDArray[np.float64]
    mean_log_distance: NDArray[np.float64]
    atoms: list[NDArray[np.float64]] | None


def cross_fit(
    data: Dataset, folds: int, seed: int, fit: Callable[[Dataset], Probe]
) -> Unseen:
    """Leave out one fold of the groups at a time, fit to the rest, predict the fold.

    Structures with an element that the other folds lack are skipped. In use such a
    structure gets no probability, so it must not affect weights and scope.

    Raises
    ------
    LabelError
        If there are fewer groups than folds, or more than half of the structures are
        skipped.
    """
    fold = group_folds(data.groups, folds, seed)
    numbers = data.numbers
    found = []
    for k in range(folds):
        probe = fit(data.subset(np.flatnonzero(fold != k)))
        held = [
            i
            for i in np.flatnonzero(fold == k).tolist()
            if not probe.unseen_elements(numbers[i])
        ]
        if held:
            found.append(read_paths(probe, data, np.array(held)))
    read = sum(len(part.rows) for part in found)
    if read < _LEAST_READ * len(data):
        msg = (
            "each element of the training structures must occur in at least two "
            "groups, because weights and calibration are fitted on held-out groups, "
            f"got {len(data) - read} of {len(data)} structures with an element that "
            "no other group has; add groups with these elements, or leave these "
            "structures out"
        )
        raise LabelError(msg)
    order = np.argsort(np.concatenate([part.rows for part in found]), kind="stable")
    atoms = [a for part in found for a in part.atoms or ()]
    return Unseen(
        np.concatenate([part.rows for part in found])[order],
        np.concatenate([part.paths for part in found])[order],
        np.concatenate([part.distance for part in found])[order],
        np.concatenate([part.mean_log_distance for part in found])[order],
        [atoms[i] for i in order] if len(atoms) == read else None,
    )


def group_folds(groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each structure: whole groups, folds of similar size."""
    names, inverse, counts = np.unique(
        np.asarray(groups), return_inverse=True, return_counts=True
    )
    if len(names) < folds:
        msg = (
            f"training labels must come in at least {folds} groups, got {len(names)}; "
            "add molecules or materials, or pass no group key where frames are "
            "independent"
        )
        raise LabelError(msg)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    held = np.zeros(folds)
    fold_of = np.empty(len(names), dtype=int)
    for name in order:  # largest first, each to the smallest fold
        fold_of[name] = int(np.argmin(held))
        held[fold_of[name]] += counts[name]
    return fold_of[inverse]


def read_paths(probe: Probe, data: Dataset, rows: NDArray[np.int64]) -> Unseen:
    """Return the outputs of the unweighted paths of ``probe`` for ``rows``."""
    rows = rows[np.argsort(data.sizes[rows], kind="stable")]  # less padding
    paths, distances, remote, atoms = [], [], [], []
    for chunk in chunks(data.subset(rows).predictions):
        output = probe.path_output(chunk)
        paths.append(output.parts.double())
        distances.append(output.distance)
        remote.append(output.mean_log_distance)
        if output.atoms is not None:
            pieces = output.atoms.split([len(p.numbers) for p in chunk])
            atoms += [piece.double().numpy() for piece in pieces]
    return Unseen(
        rows,
        torch.cat(paths).numpy(),
        torch.cat(distances).double().numpy(),
        torch.cat(remote).double().numpy(),
        atoms or None,
    )


def stack(
    paths: NDArray[np.float64], reliable: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the weight of each path: logistic regression with weights >= 0.

    A path that would get a negative weight gets 0. A penalty draws the weights of the
    standardised paths towards their mean; without it, a few labels could give
    similar paths very different weights.

    Raises
    ------
    LabelError
        If no path ranks the structures better than chance.
    """
    scale = paths.std(axis=0) + 1e-12
    rows = (paths - paths.mean(axis=0)) / scale
    sign = np.where(reliable, 1.0, -1.0)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slopes, level = weights[:-1], weights[-1]
        margin = sign * (rows @ slopes + level)
        pull = sign / (1 + np.exp(np.clip(margin, -500, 500)))
        away = slopes - slopes.mean()
        value = np.logaddexp(0, -margin).sum() + 0.5 * _SHRINKAGE * away @ away
        down = -rows.T @ pull + _SHRINKAGE * away
        return float(value), np.append(down, -pull.sum())

    start = np.append(np.full(rows.shape[1], 0.5), 0.0)
    bounds = [(0.0, None)] * rows.shape[1] + [(None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x[:-1]
    if not found.any():
        msg = (
            "the probe must rank held-out structures better than chance, got weight "
            f"0 for all of its paths {PATHS}; add labels like the structures that it "
            "will judge"
        )
        raise LabelError(msg)
    return np.asarray(found / scale)


def slope_on_new_groups(
    paths: NDArray[np.float64], reliable: NDArray[np.bool_], groups: Sequence[str]
) -> float:
    """Return a factor for the calibration's slope that corrects it for new groups.

    Errors within one group are correlated, so with few groups weights and slope are
    less certain than the number of structures suggests. For example, after a fit to 6
    groups of 150 structures the spread of the log-odds of new groups is too large by a
    tenth. To measure this, weights and slope are fitted without one fold of the groups
    at a time, and give log-odds for the fold. The calibration slope of these log-odds
    shows about twice the effect, because these fits have fewer groups and differ from
    each other; so the factor is its square root (`benchmarks/few_groups.py`).

    Returns
    -------
    float
        From 0.7 to 1; 1 with more than 100 groups, or at most 3.
    """
    names = sorted(set(groups))
    if not _FOLDS < len(names) <= _MANY_GROUPS:
        return 1.0
    found = np.full(len(reliable), np.nan)
    folds = GroupKFold(min(len(names), _FOLDS_OF_GROUPS))
    for rest, held in folds.split(paths, groups=np.asarray(groups)):
        try:
            weights = stack(paths[rest], reliable[rest])
            slope, level = platt(paths[rest] @ weights, reliable[rest])
        except LabelError:  # labels of one kind, or no skill: skip
            continue
        found[held] = slope * (paths[held] @ weights) + level
    known = np.isfinite(found)
    try:
        outside, _ = platt(found[known], reliable[known])
    except LabelError:
        return _LEAST_SLOPE
    return float(np.sqrt(np.clip(outside, _LEAST_SLOPE**2, 1.0)))
