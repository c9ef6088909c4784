"""Predictions for groups left out: what weights, calibration and scope rest on."""

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
from uqcalc.probe.joined import PATHS
from uqcalc.probe.probe import Probe


# Weights and calibration are a handful of numbers: more structures would not help.
MOST = 20_000
_LEAST_READ = 0.5  # of the structures
# Groups below and above which the slope is taken as it is, and folds of those between.
_FOLDS, _MANY_GROUPS, _FOLDS_OF_GROUPS = 3, 100, 10
_LEAST_SLOPE = 0.7
_SHRINKAGE = 1.0  # of the standardised weights, in units of one label's loss


@dataclass(frozen=True, slots=True, eq=False)
class Unseen:
    """What a probe's paths say of structures that they were not fitted to.

    Attributes
    ----------
    rows : array (structures,)
        Which structures of the dataset.
    paths : array (structures, 4)
        What each of `PATHS` says; larger is more reliable.
    distance, remoteness : arrays (structures,)
        As in `uqcalc.probe.joined.JoinedOutput`.
    atoms : list of arrays (atoms,) or None
        Scores of atoms.
    """

    rows: NDArray[np.int64]
    paths: NDArray[np.float64]
    distance: NDArray[np.float64]
    remoteness: NDArray[np.float64]
    atoms: list[NDArray[np.float64]] | None


def cross_fit(
    data: Dataset, folds: int, seed: int, fit: Callable[[Dataset], Probe]
) -> Unseen:
    """Fit without one fold of the groups at a time, and read that fold.

    Structures with an element that no group of the other folds has are not read: in
    use such a structure gets no probability, and neither weights nor the scope are to
    rest on what is said of it.

    Raises
    ------
    LabelError
        If there are fewer groups than folds, or too few structures can be read.
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
            "elements of a training structure must be in other groups too, or weights "
            f"and calibration have nothing to rest on, got {len(data) - read} of "
            f"{len(data)} structures with an element of their group's own; add groups "
            "that share their elements, or leave those out"
        )
        raise LabelError(msg)
    order = np.argsort(np.concatenate([part.rows for part in found]), kind="stable")
    atoms = [a for part in found for a in part.atoms or ()]
    return Unseen(
        np.concatenate([part.rows for part in found])[order],
        np.concatenate([part.paths for part in found])[order],
        np.concatenate([part.distance for part in found])[order],
        np.concatenate([part.remoteness for part in found])[order],
        [atoms[i] for i in order] if len(atoms) == read else None,
    )


def group_folds(groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each structure; a group is in one, folds are of like size."""
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
    for name in order:  # largest first, each to the fold that has least
        fold_of[name] = int(np.argmin(held))
        held[fold_of[name]] += counts[name]
    return fold_of[inverse]


def read_paths(probe: Probe, data: Dataset, rows: NDArray[np.int64]) -> Unseen:
    """Return what the paths of ``probe``, not weighted yet, say of ``rows``."""
    rows = rows[np.argsort(data.sizes[rows], kind="stable")]  # little to pad
    paths, distances, remote, atoms = [], [], [], []
    for chunk in chunks(data.subset(rows).predictions):
        joined = probe.joined_output(chunk)
        paths.append(joined.parts.double())
        distances.append(joined.distance)
        remote.append(joined.remoteness)
        if joined.atoms is not None:
            pieces = joined.atoms.split([len(p.numbers) for p in chunk])
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
    """Return the weight of each path: logistic regression, no weight below 0.

    A path that would have to count against its own direction counts for nothing. The
    penalty draws the weights of the standardised paths towards each other's mean, so
    that few labels cannot play one against another.

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
            f"the probe must rank held-out structures better than chance, got no "
            f"weight for any of its paths {PATHS}; it learned nothing that transfers: "
            "add labels closer to what it will see"
        )
        raise LabelError(msg)
    return np.asarray(found / scale)


def slope_on_new_groups(
    paths: NDArray[np.float64], reliable: NDArray[np.bool_], groups: Sequence[str]
) -> float:
    """Return what to multiply the calibration's slope by, for groups not among these.

    Structures of one group are right or wrong together, so that few groups fix weights
    and slope less well than their structures count: fitted to 6 groups of 150, the
    log-odds of new groups are too far from each other by a tenth. Weights and slope
    are fitted without a fold of the groups at a time; the slope of the truth on the
    log-odds that this gives for the fold shows about twice what is lost (its fits rest
    on still fewer groups, and differ from each other), so that its root is taken.
    benchmarks/few_groups.py has the figures.

    Returns
    -------
    float
        At most 1; 1 with more groups than 100, which need no such help.
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
        except LabelError:  # of one kind, or without skill: it says nothing
            continue
        found[held] = slope * (paths[held] @ weights) + level
    known = np.isfinite(found)
    try:
        outside, _ = platt(found[known], reliable[known])
    except LabelError:
        return _LEAST_SLOPE
    return float(np.sqrt(np.clip(outside, _LEAST_SLOPE**2, 1.0)))
