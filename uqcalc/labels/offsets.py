"""Energies per element that set two levels of theory apart, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.symbols import Symbols
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import GroupKFold

from uqcalc.errors import LabelWarning


FOLDS = 5
# Below these a fit per element says nothing, and an offset is below the accuracy of
# reference calculations themselves [eV/atom].
FEWEST = 20
SMALLEST = 1e-3
# Errors smaller by a factor 0.7 are squares smaller by half: that is most of them.
MOST = 0.3
_RIDGES = (1e-6, 1e-3, 1e-2, 0.1, 0.3, 1.0)
_CROSSED = 10  # folds of `crossed_energies`
# Of the largest singular value, and of the composition: less is rounding or too little
# to fit an energy to.
_SPANNED, _OUTSIDE = 1e-3, 1e-2
_MOST_ROWS = 5000  # enough to choose one number by


@dataclass(frozen=True, slots=True)
class Explained:
    """How much of the energy errors a fit per element takes away.

    Attributes
    ----------
    before, after : float
        Mean absolute error in eV/atom; ``after`` on structures the fit never saw, of
        other compositions where there are enough of them.
    """

    before: float
    after: float

    @property
    def share(self) -> float:
        """Share of the mean absolute error that is gone; negative if it grew."""
        return 1 - self.after / self.before if self.before > 0 else 0.0


def composition(numbers: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return how many atoms of each atomic number there are, (structures, 119)."""
    return np.array([np.bincount(z, minlength=119) for z in numbers], dtype=float)


def fit_offsets(
    numbers: Sequence[NDArray[np.int64]], residuals: NDArray[np.float64]
) -> dict[str, float]:
    """Return the energy of each element that takes ``residuals`` nearest to zero.

    Least squares of the residual per atom on the fractions of the elements. Iterative
    reweighting (Huber 1964, doi:10.1214/aoms/1177703732) keeps single blunders from
    deciding. Elements are drawn towards one common energy per atom (ridge), as far as
    cross-validation asks for it: with 85 elements and 280 frames plain least squares
    makes new structures worse, not better; where composition explains everything, the
    ridge vanishes.

    Parameters
    ----------
    numbers : sequence of arrays (atoms,)
    residuals : array (structures,)
        Reference minus prediction, in eV.

    Returns
    -------
    dict
        Atomic number (as a string, for JSON) -> eV.
    """
    rows, values, present = _per_atom(numbers, residuals)
    ridge, _ = _choose_ridge(rows, values)
    solution = _solve(rows, values, ridge)
    return {str(z): float(e) for z, e in zip(present, solution, strict=True)}


def missing_span(
    numbers: Sequence[NDArray[np.int64]], offsets: Mapping[str, float]
) -> dict[str, Any] | None:
    """Return which compositions offsets were fitted to, where those are not all.

    With fewer independent compositions than elements (one molecule only, water in every
    frame) the energies of the elements are not determined one by one, but only sums
    over what the fitted compositions span.

    Returns
    -------
    dict or None
        ``elements``, atomic numbers, and ``basis``, orthonormal directions of
        composition, (rank, elements); None where every composition is spanned.
    """
    elements = sorted(int(z) for z in offsets)
    if not elements:
        return None
    counts = composition(numbers)[:, elements]
    shares = counts / np.linalg.norm(counts, axis=1, keepdims=True).clip(min=1)
    _, values, directions = np.linalg.svd(shares, full_matrices=False)
    rank = int(np.sum(values > _SPANNED * values[0]))
    if rank == len(elements):
        return None
    return {"elements": elements, "basis": directions[:rank].tolist()}


def warn_of_span(
    numbers: Sequence[NDArray[np.int64]], span: Mapping[str, Any] | None
) -> None:
    """Warn of structures whose composition the offsets were not fitted to.

    Warns
    -----
    LabelWarning
        Naming one.
    """
    if span is None or not len(numbers):
        return
    basis = np.asarray(span["basis"], dtype=float)
    counts = composition(numbers)[:, span["elements"]]
    away = np.linalg.norm(counts - counts @ basis.T @ basis, axis=1)
    outside = np.flatnonzero(away > _OUTSIDE * np.linalg.norm(counts, axis=1))
    if not len(outside):
        return
    first = Symbols(numbers[int(outside[0])]).formula.format("hill")
    msg = (
        "energy offsets should be applied to compositions like those they were fitted "
        f"to, but {len(outside)} of {len(numbers)} structures (such as {first}) are "
        f"none: the fit determines {len(basis)} combinations of "
        f"{len(span['elements'])} elements, and the errors of these structures may be "
        "off by any amount; fit to more compositions, or leave them out"
    )
    warnings.warn(msg, LabelWarning, stacklevel=3)


def without_elements(
    numbers: Sequence[NDArray[np.int64]], energies: ArrayLike
) -> NDArray[np.float64]:
    """Return what no energy of each element explains, in eV, (structures,).

    The energies of the elements are fitted as by `fit_offsets`, without its ridge.
    """
    values = np.asarray(energies, dtype=float)
    rows, each, _ = _per_atom(numbers, values)
    left = each - rows @ _solve(rows, each, _RIDGES[0])
    return np.asarray(left * [len(atoms) for atoms in numbers])


def offset_energies(
    numbers: Sequence[NDArray[np.int64]], offsets: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return the sum of the offsets of each structure's atoms in eV, (structures,).

    Warns
    -----
    LabelWarning
        If an element has no offset; it counts as 0.
    """
    table = np.zeros(119)
    for z, energy in offsets.items():
        table[int(z)] = energy
    present: set[int] = set()
    energies = np.empty(len(numbers))
    for index, atoms in enumerate(numbers):
        present.update(atoms.tolist())
        energies[index] = table[atoms].sum()
    if unknown := sorted(present - {int(z) for z in offsets}):
        symbols = ", ".join(chemical_symbols[z] for z in unknown)
        msg = (
            f"energy offsets should cover every element, but have none for {symbols}; "
            "energies of structures with them are compared as they are"
        )
        warnings.warn(msg, LabelWarning, stacklevel=3)
    return energies


def crossed_energies(
    numbers: Sequence[NDArray[np.int64]],
    residuals: NDArray[np.float64],
    groups: Sequence[str],
) -> NDArray[np.float64]:
    """Return the sum of offsets of each structure, fitted to other groups, in eV.

    An element that no other group holds has the offset of the fit to all.
    """
    everything = fit_offsets(numbers, residuals)
    energies = np.empty(len(numbers))
    folds = min(_CROSSED, len(set(groups)))
    if folds < 2:
        return offset_energies(numbers, everything)
    for rest, held in GroupKFold(folds).split(residuals, groups=groups):
        found = fit_offsets([numbers[i] for i in rest], residuals[rest])
        chosen = [numbers[i] for i in held]
        energies[held] = offset_energies(chosen, everything | found)
    return energies


def explained_by_composition(
    numbers: Sequence[NDArray[np.int64]], residuals: NDArray[np.float64]
) -> Explained:
    """Return what a fit per element achieves on structures that it never saw."""
    rows, values, _ = _per_atom(numbers, residuals)
    _, after = _choose_ridge(rows, values)
    return Explained(float(np.abs(values).mean()), after)


def warn_of_offsets(
    numbers: Sequence[NDArray[np.int64]], residuals: NDArray[np.float64]
) -> None:
    """Warn where energies per element explain most of the energy errors.

    Warns
    -----
    LabelWarning
        Then the labels look like another level of theory than the potential's.
    """
    if len(residuals) < FEWEST:
        return
    found = explained_by_composition(numbers, residuals)
    if found.before < SMALLEST or found.share < MOST:
        return
    msg = (
        "energy labels should be of the potential's own level of theory, but look like "
        "another: an energy for each element, fitted to other structures, takes the "
        f"mean error from {1000 * found.before:.3g} to {1000 * found.after:.3g} "
        "meV/atom; a probe would learn composition instead of reliability. Let "
        "Labels(offsets=True), or --fit-offsets, remove it"
    )
    warnings.warn(msg, LabelWarning, stacklevel=3)


def _per_atom(
    numbers: Sequence[NDArray[np.int64]], residuals: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """Return fractions of the elements present, residual per atom, and which ones."""
    present = sorted({int(z) for atoms in numbers for z in np.unique(atoms)})
    rows = np.empty((len(numbers), len(present)))
    sizes = np.empty(len(numbers))
    for index, atoms in enumerate(numbers):
        sizes[index] = len(atoms)
        rows[index] = np.bincount(atoms, minlength=119)[present] / len(atoms)
    return rows, np.asarray(residuals, float) / sizes, present


def _solve(
    rows: NDArray[np.float64], values: NDArray[np.float64], ridge: float
) -> NDArray[np.float64]:
    """Return the energy per atom of each element, robustly, near their median."""
    centre = float(np.median(values))
    rest = values - centre
    weights = np.ones(len(values))
    penalty = ridge * np.eye(rows.shape[1])
    for _ in range(10):
        weighted = rows.T * weights
        solution = np.linalg.solve(weighted @ rows + penalty, weighted @ rest)
        left = np.abs(rest - rows @ solution)
        usual = max(float(np.median(left)), 1e-9)
        weights = 1 / np.maximum(left / usual, 1.0)
    return np.asarray(centre + solution)


def _choose_ridge(
    rows: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the ridge that predicts best, and its mean absolute error [eV/atom]."""
    if len(values) < 2 * FOLDS:
        return _RIDGES[0], float(np.abs(values).mean())
    rng = np.random.default_rng(0)
    if len(values) > _MOST_ROWS:
        chosen = rng.choice(len(values), _MOST_ROWS, replace=False)
        rows, values = rows[chosen], values[chosen]
    fold = _folds(rows, rng)
    errors = [
        np.concatenate(
            [
                np.abs(
                    values[mine] - rows[mine] @ _solve(rows[~mine], values[~mine], r)
                )
                for mine in (fold == k for k in range(FOLDS))
            ]
        ).mean()
        for r in _RIDGES
    ]
    best = int(np.argmin(errors))
    return _RIDGES[best], float(errors[best])


def _folds(rows: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the fold of each row: by composition where there are enough of them.

    A fit that has seen a composition knows its mean error, offset or not; but with few
    compositions there would be no fit for the one left out.
    """
    _, which = np.unique(np.round(rows, 6), axis=0, return_inverse=True)
    which = which.ravel()
    kinds = int(which.max()) + 1
    if kinds < 2 * FOLDS:
        which, kinds = np.arange(len(rows)), len(rows)
    return np.asarray(rng.permutation(np.arange(kinds) % FOLDS)[which])
