"""Fit the default probe: its paths, then weights and calibration on left-out groups."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.prediction import Prediction
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.evaluation.riskcontrol import held_out_logits
from uqcalc.fitting.adapt import learn_spread
from uqcalc.fitting.atoms import NO_ERROR, held_out_shares
from uqcalc.fitting.crossfit import MOST, Unseen, cross_fit, slope_on_new_groups, stack
from uqcalc.fitting.leftout import left_out_distances
from uqcalc.fitting.network import fit_single
from uqcalc.fitting.recipe import Recipe
from uqcalc.labels.dataset import Dataset
from uqcalc.labels.labels import Labels
from uqcalc.labels.shards import evenly, taken
from uqcalc.probe.calibration import Calibration
from uqcalc.probe.card import JOINED_ARCHITECTURE
from uqcalc.probe.inputs import SHRINKAGE, Moments, Statistics, chunks
from uqcalc.probe.numbers import Described, PlainNumbers
from uqcalc.probe.probe import Probe
from uqcalc.probe.regressions import KernelPaths, LinearPath
from uqcalc.probe.scope import (
    FARTHEST,
    AtomFloor,
    Scope,
    held_out_limit,
    learn_floor,
    learn_scope,
)
from uqcalc.probe.stacked import (
    ATOM_CENTRES,
    CENTRES,
    PATHS,
    StackedPaths,
    StackedShape,
)
from uqcalc.statistics import scores
from uqcalc.statistics.mahalanobis import whitening
from uqcalc.targets import TARGETS


_ENOUGH = 20_000  # structures that suffice for scales and principal components


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
        Moments of the features of these structures.
    statistics : Statistics
        Statistics of these structures.
    atom_energies : array (119,)
        eV that are subtracted from the predicted energy.
    """
    dim = len(moments.mean)
    plain.rigidity.copy_(whitening(moments.uncentred, SHRINKAGE))
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
        )[:3]  # distances are not scaled
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
    """Return standardised features (atoms, dim) and squared distances (atoms,)."""
    standard = statistics.features(torch.cat([p.features for p in chunk]))
    index = torch.from_numpy(np.concatenate([p.numbers for p in chunk]))
    return standard, statistics.distances(standard, index)


# Largest number of structures and of atoms in the fit of the other paths: several for
# each centre. Each label costs centres squared, and more labels help only the
# attention.
_MOST_FITTED, _MOST_ATOMS = 20_000, 20_000


def fit_joined(
    data: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
    boundary: float,
) -> tuple[Probe, list[tuple[float, float]]]:
    """Return a calibrated probe, and the attention's losses by epoch."""

    def paths(part: Dataset) -> tuple[Probe, list[tuple[float, float]]]:
        return _fit_paths(part, backbone, labels, recipe, boundary)

    crossed = data.subset(_some(data, recipe.seed)) if len(data) > MOST else data
    unseen = cross_fit(crossed, recipe.folds, recipe.seed, lambda part: paths(part)[0])
    probe, curve = paths(data)
    return _weigh(probe, crossed, unseen, boundary, labels), curve


def _fit_paths(
    data: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
    boundary: float,
) -> tuple[Probe, list[tuple[float, float]]]:
    """Fit every path to the same structures; all weights stay 1.

    Exploded frames are labels for the attention only. In the regressions they would be
    outliers with a large effect.
    """
    single, curve = fit_single(data, backbone, labels, recipe, boundary)
    data = data.subset(np.flatnonzero(~data.exploded()))
    statistics, card = single.statistics, single.card
    if statistics is None:
        msg = "input statistics must be there for further paths, got None"
        raise ValueError(msg)
    some = data.subset(evenly(len(data), _MOST_FITTED))
    shape = StackedShape(
        card.feature_dim,
        min(CENTRES, len(data)),
        min(ATOM_CENTRES, int(_known_atoms(some).sum())),
        stress=labels.of == "stress",
    )
    stacked = StackedPaths(shape).float()  # independent of torch's default dtype
    moments = Moments(data.predictions)
    energies = card.element_energies()
    stacked.numbers.of_cells = None if card.sized else statistics.of_cells()
    learn_numbers(stacked.numbers, data.predictions, moments, statistics, energies)
    stacked = stacked.double().float()  # float32 for all buffers
    chosen = _some_atoms(some, recipe.seed) if shape.atom_centres else None
    seen = _describe(stacked.numbers, some, statistics, energies, chosen)
    errors = torch.from_numpy(some.errors)
    stacked.linear = LinearPath.fit(seen.pooled, errors)
    stacked.structure = KernelPaths.fit(
        stacked.structure.shape, seen.numbers, seen.components, errors, recipe.seed
    )
    if (
        stacked.atoms is not None
        and chosen is not None
        and some.atom_errors is not None
    ):
        errors = torch.from_numpy(np.concatenate(some.atom_errors))[chosen]
        stacked.atoms = KernelPaths.fit(
            stacked.atoms.shape, seen.atoms, seen.atom_features, errors, recipe.seed
        )
    card = replace(card, architecture=JOINED_ARCHITECTURE, joined=asdict(shape))
    return Probe(card, single.network, statistics, stacked), curve


@torch.no_grad()
def _describe(
    plain: PlainNumbers,
    data: Dataset,
    statistics: Statistics,
    energies: NDArray[np.float64],
    chosen: torch.Tensor | None,
) -> Described:
    """Return the numbers of all structures and of the chosen atoms, in chunks."""
    parts = []
    start = 0
    for chunk in chunks(data.predictions):
        standard, distances = standard_and_distances(chunk, statistics)
        host = plain.host(chunk, energies)
        seen = plain(host, standard, distances, statistics)
        stop = start + len(standard)
        if chosen is None:
            kept = torch.zeros(len(standard), dtype=torch.bool)
        else:
            kept = chosen[start:stop]
        parts.append(
            seen._replace(
                atoms=seen.atoms[kept], atom_features=seen.atom_features[kept]
            )
        )
        start = stop
    return Described(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _weigh(
    probe: Probe, data: Dataset, unseen: Unseen, boundary: float, labels: Labels
) -> Probe:
    """Set weights, calibration and scope from the outputs for left-out groups."""
    stacked = probe.stacked
    if stacked is None:
        msg = "probe must have several paths for path weights, got one"
        raise ValueError(msg)
    held = data.subset(unseen.rows)
    reliable = held.errors <= boundary
    sound = np.isfinite(unseen.paths).all(axis=1) & ~held.exploded()
    paths = unseen.paths[sound]
    weights = stack(paths, reliable[sound])
    stacked.weights.copy_(torch.from_numpy(weights))
    stacked.averages.copy_(torch.from_numpy(paths.mean(axis=0)))
    groups = [held.groups[i] for i in np.flatnonzero(sound)]
    stacked.limit.fill_(held_out_limit(unseen.distance[sound], groups)[0])
    stacked.known.fill_(held_out_limit(unseen.mean_log_distance[sound], groups)[0])
    score = _scores(stacked, unseen, sound)
    factor = slope_on_new_groups(paths, reliable[sound], groups)
    calibration = Calibration.fit(score, held.errors, held.groups, boundary, factor)
    logits = calibration.logits(torch.from_numpy(score)).numpy()
    judged = reliable & (1 / (1 + np.exp(-logits)) >= probe.card.suspect)
    scope, outside = _scope(held, sound, judged, labels.target)
    atom_boundary, of_atoms = _atom_calibration(held, unseen, sound, labels)
    probe = probe.with_card(
        calibration=calibration,
        held_out=held_out_logits(logits, outside, held.groups),
        scope=scope,
        atom_boundary=atom_boundary,
        atom_calibration=of_atoms,
    )
    shares, atoms = held_out_shares(probe.card, held, unseen.atoms, logits)
    probe = probe.with_card(atom_shares=shares)
    floor = _atom_floor(held, atoms, judged & ~outside)
    return probe.with_card(
        atom_floor=floor,
        training={
            "atom_floor_learned": floor is not None,
            "atom_shares_learned": shares is not None,
            "spread": learn_spread(calibration, score, held.errors, held.groups),
            "paths": [
                {
                    "path": name,
                    "weight": float(weight * spread),
                    "auroc": scores.auroc(reliable[sound], column),
                }
                for name, weight, spread, column in zip(
                    PATHS,
                    weights,
                    paths.std(axis=0),
                    paths.T,
                    strict=True,
                )
            ],
        },
    )


def _scope(
    held: Dataset,
    sound: NDArray[np.bool_],
    judged: NDArray[np.bool_],
    target: str,
) -> tuple[Scope, NDArray[np.bool_]]:
    """Return the scope, and which structures are farther than it, (structures,).

    Structures that are not ``sound`` (exploded) set no limits and are outside.
    """
    rows = np.flatnonzero(sound)
    some = held.subset(rows)
    away = left_out_distances(some)
    sums = [p.charges.sum().item() for p in some.predictions if p.charges is not None]
    scope = learn_scope(
        target, away, some.sizes.tolist(), some.groups, sums, judged[rows]
    )
    novelty = scope.novelty(*map(torch.from_numpy, away)).numpy()
    outside = np.ones(len(held), dtype=bool)
    outside[rows] = ~(novelty <= FARTHEST)
    return scope, outside


def _scores(
    stacked: StackedPaths, unseen: Unseen, sound: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the score of each structure, as the fitted probe computes it.

    Exploded structures count as unreliable and get the lowest score of the others:
    their true scores, which fall with the distance, would distort the calibration.
    """
    parts = stacked.double().join(
        *(
            torch.from_numpy(column)
            for column in (unseen.paths, unseen.distance, unseen.mean_log_distance)
        )
    )
    stacked.float()
    score = parts.sum(dim=1).numpy()
    lowest, highest = score[sound].min(), score[sound].max()
    return np.clip(np.where(sound, score, lowest), lowest, highest)


def _atom_floor(
    held: Dataset,
    atoms: list[NDArray[np.float64]] | None,
    judged: NDArray[np.bool_],
) -> AtomFloor | None:
    """Return the atom floor of right structures whose verdict would be RELIABLE.

    Other structures are left out, because the floor must only change this verdict.
    ``judged`` (structures,) says which are right, RELIABLE by P and inside the scope;
    ``atoms`` are the log-odds of the atoms of each structure.
    """
    if atoms is None:
        return None
    rows = np.flatnonzero(judged)
    return learn_floor(
        np.array([atoms[i].min() for i in rows]),
        held.sizes[rows],
        [held.groups[i] for i in rows],
    )


def _atom_calibration(
    held: Dataset, unseen: Unseen, sound: NDArray[np.bool_], labels: Labels
) -> tuple[float | None, Calibration | None]:
    """Return the boundary and the calibration of single atoms, or (None, None).

    Warns
    -----
    LabelWarning
        If a calibration of atoms is not possible with these labels.
    """
    if held.atom_errors is None:
        return None, None
    errors = np.concatenate(held.atom_errors)
    known = errors[errors > NO_ERROR]  # without NaN and rounding
    boundary, reason = None, "the forces on almost all atoms vanish by symmetry"
    if TARGETS[labels.target].of == "forces":
        boundary = labels.boundary
    if unseen.atoms is not None and len(known):
        if boundary is None or not known.min() <= boundary < known.max():
            boundary = replace(labels, boundary=None).chosen_boundary(known)
        groups = np.repeat(np.asarray(held.groups), held.sizes)
        score = np.concatenate(unseen.atoms)
        # atoms of exploded structures get at least the lowest score of the others:
        # lower scores would distort the calibration
        score = np.fmax(score, score[np.repeat(sound, held.sizes)].min())
        chosen = np.flatnonzero(_some_atoms(held, 0).numpy())
        try:
            return boundary, Calibration.fit(
                score[chosen], errors[chosen], groups[chosen].tolist(), boundary
            )
        except LabelError as error:
            reason = str(error)
    msg = (
        f"probabilities of single atoms cannot be calibrated: {reason}; this probe "
        "has no probe_reliabilities"
    )
    warnings.warn(msg, LabelWarning, stacklevel=2)
    return None, None


def _known_atoms(data: Dataset) -> torch.Tensor:
    """Return which atoms have an error above rounding, (atoms,) of bool."""
    if data.atom_errors is None:
        return torch.zeros(int(data.sizes.sum()), dtype=torch.bool)
    return torch.from_numpy(np.concatenate(data.atom_errors) > NO_ERROR)


def _some_atoms(data: Dataset, seed: int) -> torch.Tensor:
    """Return a random choice of these atoms for a fit, (atoms,) of bool."""
    known = _known_atoms(data)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(known), generator=generator)
    chosen = torch.zeros_like(known)
    chosen[order[known[order]][:_MOST_ATOMS]] = True
    return chosen


def _some(data: Dataset, seed: int) -> NDArray[np.int64]:
    """Return at most `MOST` random indices of structures, sorted."""
    order = np.random.default_rng(seed).permutation(len(data))
    return np.sort(order[:MOST])
