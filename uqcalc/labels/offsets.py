"""Energy offsets per element between two levels of theory."""

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
# Smallest number of structures for a fit per element, and smallest error that matters:
# the accuracy of reference calculations [eV/atom].
FEWEST = 20
SMALLEST = 1e-3
# Share of the mean error that offsets must remove for a warning. Errors smaller by a
# factor 0.7 mean squared errors smaller by half.
MOST = 0.3
_RIDGES = (1e-6, 1e-3, 1e-2, 0.1, 0.3, 1.0)
_CROSSED = 10  # folds of `crossed_energies`
# Relative to the largest singular value, and to the composition: smaller values are
# rounding, or too small to fit an energy.
_SPANNED, _OUTSIDE = 1e-3, 1e-2
_MOST_ROWS = 5000  # structures that suffice to choose the ridge


@dataclass(frozen=True, slots=True)
class Explained:
    """Energy errors before and after a fit of one energy per element.

    Attributes
    ----------
    before, after : float
        Mean absolute error in eV/atom. ``after`` is on held-out structures, of other
        compositions if there are enough compositions.
    """

    before: float
    after: float

    @property
    def share(self) -> float:
        """Share of the mean absolute error that is removed; negative if it grew."""
        return 1 - self.after / self.before if self.before > 0 else 0.0

    @property
    def telling(self) -> bool:
        """Whether large errors fall much, as with another level of theory."""
        return self.before >= SMALLEST and self.share >= MOST


def composition(numbers: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return the number of atoms of each atomic number, (structures, 119)."""
    return np.array([np.bincount(z, minlength=119) for z in numbers], dtype=float)


def fit_offsets(
    numbers: Sequence[NDArray[np.int64]], residuals: NDArray[np.float64]
) -> dict[str, float]:
    """Return the energy of each element that best fits ``residuals``.

    The fit is least squares of the residual per atom on the fractions of the elements.
    Iterative reweighting (Huber 1964, doi:10.1214/aoms/1177703732) limits the effect of
    outliers. A ridge draws the elements towards one common energy per atom. Its
    strength is chosen by cross-validation. With 85 elements and 280 frames, plain least
    squares makes new structures worse. If composition explains everything, the ridge
    is close to zero.

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
    """Return the span of the fitted compositions if it lacks some compositions.

    With fewer independent compositions than elements (one molecule only, water in every
    frame) the fit does not determine the energy of each element. It determines only
    the sums for compositions in the span.

    Returns
    -------
    dict or None
        ``elements``: atomic numbers. ``basis``: orthonormal directions of composition,
        (rank, elements). None if the span contains every composition.
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
    """Warn of structures whose composition is outside the span of the fit.

    Warns
    -----
    LabelWarning
        If there are such structures; the message names one.
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
        "energy offsets should be applied to compositions that their fit determines, "
        f"but {len(outside)} of {len(numbers)} structures (such as {first}) have "
        f"other compositions: the fit determines {len(basis)} combinations of "
        f"{len(span['elements'])} elements, and the errors of these structures may be "
        "wrong by any amount; fit offsets to more compositions, or leave these "
        "structures out"
    )
    warnings.warn(msg, LabelWarning, stacklevel=3)


def without_elements(
    numbers: Sequence[NDArray[np.int64]], energies: ArrayLike
) -> NDArray[np.float64]:
    """Return energies minus the best energy of each element, in eV, (structures,).

    The energies of the elements are fitted as in `fit_offsets`, almost without ridge.
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
            "energies of structures with these elements are compared without offsets"
        )
        warnings.warn(msg, LabelWarning, stacklevel=3)
    return energies


def crossed_energies(
    numbers: Sequence[NDArray[np.int64]],
    residuals: NDArray[np.float64],
    groups: Sequence[str],
) -> NDArray[np.float64]:
    """Return the sum of offsets of each structure, fitted to other groups, in eV.

    An element that no other group contains has the offset of the fit to all groups.
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
    """Return the errors before and after a fit per element, on held-out structures."""
    rows, values, _ = _per_atom(numbers, residuals)
    _, after = _choose_ridge(rows, values)
    return Explained(float(np.abs(values).mean()), after)


def warn_of_offsets(
    numbers: Sequence[NDArray[np.int64]], residuals: NDArray[np.float64]
) -> None:
    """Warn if one energy per element explains a large part of the energy errors.

    Warns
    -----
    LabelWarning
        The level of theory of the labels then seems to differ from the potential's.
    """
    if len(residuals) < FEWEST:
        return
    found = explained_by_composition(numbers, residuals)
    if not found.telling:
        return
    msg = (
        "energy labels should have the level of theory of the potential, but seem to "
        "have another: an energy offset for each element, fitted to other "
        f"structures, reduces the mean error from {1000 * found.before:.3g} to "
        f"{1000 * found.after:.3g} meV/atom. Without offsets a fit learns "
        "composition instead of reliability; use Labels(offsets=True) or "
        "--fit-offsets"
    )
    warnings.warn(msg, LabelWarning, stacklevel=3)


def _per_atom(
    numbers: Sequence[NDArray[np.int64]], residuals: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """Return element fractions, residuals per atom, and the elements present."""
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
    """Return a robust fit of the energy of each element, drawn to the median."""
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
    """Return the best ridge by cross-validation and its mean error [eV/atom]."""
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
    """Return the fold of each row; folds hold whole compositions if there are enough.

    If a composition is in the fit, the fit contains its mean error even without an
    offset. But with few compositions, a fit without one of them is not possible.
    """
    _, which = np.unique(np.round(rows, 6), axis=0, return_inverse=True)
    which = which.ravel()
    kinds = int(which.max()) + 1
    if kinds < 2 * FOLDS:
        which, kinds = np.arange(len(rows)), len(rows)
    return np.asarray(rng.permutation(np.arange(kinds) % FOLDS)[which])
