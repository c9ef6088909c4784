"""Fit the shares of atoms in the error of their structure, on held-out groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from uqcalc.labels.dataset import Dataset
from uqcalc.probe.atomshares import AtomShares
from uqcalc.probe.card import Card
from uqcalc.probe.numbers import log_forces
from uqcalc.targets import TARGETS


# Smaller force errors are rounding, as in perfect crystals [eV/Å].
NO_ERROR = 1e-6
_LEVELS = np.array(
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99]
)
# Weight of pairs of structures in the fit of the shares. In a pair the level of each
# structure is part of the shares, as for two molecules far apart in one cell.
_PAIRS = 0.3
_FEWEST = 200  # labelled atoms


def held_out_shares(
    card: Card,
    held: Dataset,
    scores: Sequence[NDArray[np.float64]] | None,
    structures: NDArray[np.float64],
) -> tuple[AtomShares | None, list[NDArray[np.float64]] | None]:
    """Return the shares of atoms, and the log-odds of the atoms of each structure.

    The shares are None if they do not give a smaller log loss of the held-out atoms
    than the calibration of single atoms. Then this calibration gives the log-odds.

    Parameters
    ----------
    card : Card
        With the calibrations of structures and of atoms.
    held : Dataset
        Held-out structures.
    scores : sequence of arrays (atoms,), or None
        Scores of the atoms of each structure.
    structures : array (structures,)
        Log-odds of the structures.
    """
    single, boundary = card.atom_calibration, card.atom_boundary
    if scores is None or single is None or boundary is None:
        return None, None
    score, sizes = np.concatenate(scores), held.sizes.tolist()
    alone = single.logits(torch.from_numpy(score)).numpy()
    cuts = np.cumsum(sizes)[:-1]
    known = _known_errors(held)
    forces = np.concatenate([log_forces(p) for p in held.predictions])
    shares = None
    if TARGETS[card.target].of == "forces" and len(set(card.calibration.shifts)) > 1:
        shares = learn_atom_shares(score, forces, known, held.errors, sizes)
    if shares is None:
        return None, np.split(alone, cuts)
    together = shares.logits(
        card.calibration,
        torch.from_numpy(structures),
        shares.shares(torch.from_numpy(score), torch.from_numpy(forces), sizes),
        sizes,
        boundary,
    ).numpy()
    if _loss(together, known, boundary) < _loss(alone, known, boundary):
        return shares, np.split(together, cuts)
    return None, np.split(alone, cuts)


def _known_errors(held: Dataset) -> NDArray[np.float64]:
    """Return errors (atoms,); NaN for rounding and for exploded structures."""
    errors = np.concatenate(held.atom_errors or [])
    away = np.repeat(held.exploded(), held.sizes)
    return np.where((errors > NO_ERROR) & ~away, errors, np.nan)


def _loss(
    logits: NDArray[np.float64], errors: NDArray[np.float64], boundary: float
) -> float:
    """Return the mean log loss of the atoms whose error is not NaN."""
    some = np.isfinite(errors)
    sign = np.where(errors[some] <= boundary, 1.0, -1.0)
    return float(np.logaddexp(0, -sign * logits[some]).mean())


def learn_atom_shares(
    scores: NDArray[np.float64],
    log_forces: NDArray[np.float64],
    errors: NDArray[np.float64],
    of_structures: NDArray[np.float64],
    sizes: Sequence[int],
) -> AtomShares | None:
    """Fit shares and the distribution of r to atoms of held-out structures.

    The weights minimise the squared deviation of the log errors from the means over
    their structures (within estimator), and over random pairs of structures.

    Parameters
    ----------
    scores, log_forces, errors : arrays (atoms,)
        Atoms without a label have the error NaN.
    of_structures : array (structures,)
        True errors of the structures.
    sizes : sequence of int

    Returns
    -------
    AtomShares or None
        None with fewer than 200 labelled atoms.
    """
    structure = np.repeat(np.arange(len(sizes)), sizes)
    level = of_structures[structure]
    known = np.isfinite(errors) & (errors > 0) & np.isfinite(scores) & (level > 0)
    if known.sum() < _FEWEST:
        return None
    pairs = np.random.default_rng(0).permutation(len(sizes)) // 2
    rows = np.column_stack([-scores, log_forces])[known]
    logs = np.log(errors[known])
    gram, right = np.zeros((2, 2)), np.zeros(2)
    for weight, part in ((1 - _PAIRS, structure), (_PAIRS, pairs[structure])):
        centred = _centred(np.column_stack([rows, logs]), part[known])
        gram += weight * centred[:, :2].T @ centred[:, :2]
        right += weight * centred[:, :2].T @ centred[:, 2]
    score, force = _not_negative(gram, right)
    model = AtomShares(score, force, ((0.0, 0.0), (1.0, 1.0)))
    shares = model.shares(
        torch.from_numpy(scores), torch.from_numpy(log_forces), sizes
    ).numpy()
    rest = logs - np.log(level[known]) - shares[known]
    places, first = np.unique(np.quantile(rest, _LEVELS), return_index=True)
    if len(places) < 2:
        return None
    odds = np.log(_LEVELS / (1 - _LEVELS))[first]
    return AtomShares(
        score, force, tuple(zip(places.tolist(), odds.tolist(), strict=True))
    )


def _centred(rows: NDArray[np.float64], part: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the rows minus the mean over their part."""
    count = np.maximum(np.bincount(part), 1)
    means = [np.bincount(part, column) / count for column in rows.T]
    centred: NDArray[np.float64] = rows - np.column_stack(means)[part]
    return centred


def _not_negative(
    gram: NDArray[np.float64], right: NDArray[np.float64]
) -> tuple[float, ...]:
    """Return the weights >= 0 of a least-squares problem."""
    root = np.linalg.cholesky(gram + 1e-6 * np.trace(gram) * np.eye(len(gram)))
    found, _ = nnls(root.T, np.linalg.solve(root, right))
    return tuple(found.tolist())
