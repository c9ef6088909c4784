"""What plain numbers need to know of labelled structures, learnt while streaming."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from uqcalc.backbones.prediction import Prediction
from uqcalc.labels.shards import evenly, taken
from uqcalc.probe.inputs import Statistics
from uqcalc.probe.moments import Moments, chunks
from uqcalc.probe.numbers import PlainNumbers


_ENOUGH = 20_000  # structures that scales and principal components are taken from


@torch.no_grad()
def learn_numbers(
    plain: PlainNumbers,
    predictions: Sequence[Prediction],
    moments: Moments,
    statistics: Statistics,
    atom_energies: np.ndarray,
) -> None:
    """Set every buffer of ``plain``.

    Parameters
    ----------
    plain : PlainNumbers
    predictions : sequence of Prediction
        Labelled structures.
    moments : Moments
        Of the same.
    statistics : Statistics
        Learnt from the same.
    atom_energies : array (119,)
        eV that are taken off the predicted energy.
    """
    dim = len(moments.mean)
    ridge = 1e-3 * torch.eye(dim, dtype=torch.float64)
    factor = torch.linalg.cholesky(moments.uncentred + ridge)
    plain.rigidity.copy_(torch.linalg.inv(factor).T)
    plain.set_counts(moments.counts)
    values, vectors = torch.linalg.eigh(moments.uncentred)
    top = min(plain.components, dim)
    basis = vectors.flip(1)[:, :top] / (values.flip(0)[:top] + 1e-6).sqrt()
    plain.atom_basis.zero_()
    plain.atom_basis[:, :top] = basis.float()
    _learn_energies(plain, predictions, statistics, atom_energies)
    _learn_scales(plain, predictions, statistics, atom_energies)


def _learn_energies(
    plain: PlainNumbers,
    predictions: Sequence[Prediction],
    statistics: Statistics,
    atom_energies: np.ndarray,
) -> None:
    dim = len(plain.energy_weights)
    gram = 10.0 * torch.eye(dim, dtype=torch.float64)
    right = torch.zeros(dim, dtype=torch.float64)
    for chunk in chunks(predictions):
        sums = torch.stack([statistics.features(p.features).sum(dim=0) for p in chunk])
        rest = [p.energy - atom_energies[p.numbers].sum() for p in chunk]
        gram += sums.T.double() @ sums.double()
        right += sums.T.double() @ torch.tensor(rest, dtype=torch.float64)
    plain.energy_weights.copy_(torch.linalg.solve(gram, right))


def _learn_scales(
    plain: PlainNumbers,
    predictions: Sequence[Prediction],
    statistics: Statistics,
    atom_energies: np.ndarray,
) -> None:
    chosen = taken(predictions, evenly(len(predictions), _ENOUGH))
    parts = [
        plain.raw(
            plain.host(chunk, atom_energies),
            *standard_and_distances(chunk, statistics),
            statistics,
        )[:3]  # nothing of the distances is scaled
        for chunk in chunks(chosen)
    ]
    numbers, atoms, pooled = (torch.cat(column) for column in zip(*parts, strict=True))
    for name, rows in (("", numbers), ("atom_", atoms)):
        spread = rows.std(dim=0)
        getattr(plain, f"{name}mean").copy_(rows.mean(dim=0))
        getattr(plain, f"{name}scale").copy_(torch.where(spread > 1e-6, spread, 1.0))
    centre = pooled.double().mean(dim=0)
    _, scales, rows = torch.linalg.svd(pooled.double() - centre, full_matrices=False)
    top = min(plain.components, len(scales), max(1, len(chosen) // 10))
    plain.pooled_mean.copy_(centre)
    plain.pooled_basis.zero_()
    whole = scales[:top] / math.sqrt(len(chosen)) + 1e-6
    plain.pooled_basis[:, :top] = (rows[:top] / whole[:, None]).T.float()


def standard_and_distances(
    chunk: Sequence[Prediction], statistics: Statistics
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return standardised features and distances of all atoms."""
    standard = statistics.features(torch.cat([p.features for p in chunk]))
    index = torch.from_numpy(np.concatenate([p.numbers for p in chunk]))
    return standard, statistics.distances(standard, index)
