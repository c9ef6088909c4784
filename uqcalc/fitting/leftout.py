"""Feature distances of labelled structures from the labels of all other groups."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from uqcalc.fitting.crossfit import group_folds
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.inputs import SHRINKAGE, Moments, Ragged, chunks
from uqcalc.statistics.mahalanobis import squared_distances, whitening


# With more groups, several are left out together: a share of 1/200 of the labels hardly
# changes means and covariance, and each part costs a factorisation, dim^3 / 3.
_MOST_PARTS = 200
# As in the inputs of a probe: keeps the logarithm finite.
_FLOOR = 1e-6


class Away(NamedTuple):
    """Inputs of `uqcalc.probe.scope.Scope.novelty` for each structure.

    Attributes
    ----------
    largest : array (structures,)
        Largest squared Mahalanobis distance of an atom.
    mean_log : array (structures,)
        Mean over the atoms of the logarithm of their squared distances.
    elements : array (structures,)
        Number of elements.
    """

    largest: NDArray[np.float64]
    mean_log: NDArray[np.float64]
    elements: NDArray[np.float64]


@torch.no_grad()
def left_out_distances(data: Dataset, seed: int = 0) -> Away:
    """Return the distances of each structure from the labels of the other groups.

    The distances are those of `uqcalc.probe.inputs.Statistics`, with means and
    covariance without the structure's group. Both follow from sums over all labels
    minus the sums over the group, so nothing is fitted again and the result is exact:
    up to 200 groups it does not depend on ``seed``. With more groups, 200 parts of
    whole groups are left out.

    A structure with an element that no other group has gets distances of NaN.
    """
    moments = Moments(data.predictions)
    names, part = np.unique(np.asarray(data.groups), return_inverse=True)
    if len(names) > _MOST_PARTS:
        part = group_folds(data.groups, _MOST_PARTS, seed)
    largest, mean_log = np.full((2, len(data)), np.nan)
    for index in range(int(part.max()) + 1):
        rows = np.flatnonzero(part == index)
        largest[rows], mean_log[rows] = _away(data.subset(rows), moments)
    elements = np.array([len(np.unique(z)) for z in data.numbers], float)
    return Away(largest, mean_log, elements)


def _away(own: Dataset, moments: Moments) -> NDArray[np.float64]:
    """Return the distances of structures from all other labels, (2, structures).

    The rows are those of `Away`. ``moments`` are those of all labels, ``own`` included.
    """
    dim = len(moments.mean)
    counts = moments.counts.clone()
    sums = moments.counts[:, None] * moments.element_mean
    second = moments.atoms * moments.uncentred
    for chunk in chunks(own.predictions):
        numbers = torch.from_numpy(np.concatenate([p.numbers for p in chunk]))
        standard = _standard(torch.cat([p.features for p in chunk]), moments)
        counts -= torch.bincount(numbers, minlength=len(counts))
        sums.index_add_(0, numbers, standard, alpha=-1)
        second -= standard.T @ standard
    means = sums / counts.clamp(min=1)[:, None]
    within = (second - means.T @ (counts[:, None] * means)) / counts.sum().clamp(min=1)
    if not counts.sum() >= 1:
        within = torch.eye(dim, dtype=torch.float64)
    inverse = whitening(within, SHRINKAGE)
    parts = []
    for chunk in chunks(own.predictions):
        numbers = torch.from_numpy(np.concatenate([p.numbers for p in chunk]))
        standard = _standard(torch.cat([p.features for p in chunk]), moments)
        away = squared_distances(standard - means[numbers], inverse)
        away[counts[numbers] < 1] = torch.nan
        ragged = Ragged([len(p.numbers) for p in chunk], away.device)
        logs = ragged.mean((away + _FLOOR).log()[:, None])
        parts.append(torch.cat([ragged.max(away[:, None]), logs], dim=1))
    found: NDArray[np.float64] = torch.cat(parts).numpy().T
    return found


def _standard(features: torch.Tensor, moments: Moments) -> torch.Tensor:
    return (features.double() - moments.mean) / moments.scale
