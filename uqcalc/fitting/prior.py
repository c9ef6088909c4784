"""Add labels of one system to a fitted probe, the prior (`uqcalc.fit`, ``prior=``).

The log-odds of the prior enter without a penalty, a correction from the features with
one (`uqcalc.fitting.correction`), for structures and for single atoms. The added labels
have their own scope, learned as in any fit. `uqcalc.probe.addedpaths` says how the
probabilities of the added labels and of the prior join.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.special import expit

from uqcalc.backbones.base import Backbone
from uqcalc.errors import LabelError, ProbeError
from uqcalc.evaluation.riskcontrol import held_out_logits
from uqcalc.fitting.adapt import check_original, refuse_seen, warn_of_level
from uqcalc.fitting.correction import Correction, Rows, fit_correction
from uqcalc.fitting.leftout import left_out_distances
from uqcalc.labels.dataset import Dataset, labels_for
from uqcalc.labels.labels import Labels
from uqcalc.labels.shards import evenly
from uqcalc.probe.added import Added
from uqcalc.probe.addedpaths import AddedPaths
from uqcalc.probe.inputs import Moments, chunks
from uqcalc.probe.numbers import Described
from uqcalc.probe.probe import Probe
from uqcalc.probe.reading import atom_log_odds
from uqcalc.probe.regressions import KernelPaths, standardised
from uqcalc.probe.scope import Scope, learn_scope
from uqcalc.probe.seen import Seen
from uqcalc.probe.stacked import StackedPaths
from uqcalc.statistics.systems import Spread, learn_runs, posterior, residuals


Array = NDArray[np.float64]
# Labels, and labels without a test set. With fewer, `adapt` is as good.
FEWEST, _FEWEST_KEPT = 30, 20
_MOST_ATOMS, _ATOM_CENTRES = 600, 150


def opened_prior(
    prior: Probe | str | os.PathLike[str], backbone: Backbone, labels: Labels
) -> Probe:
    """Return the prior of a fit, at the boundary of the labels if they give one.

    Raises
    ------
    ProbeError
        As `check_prior`, or if it is of another potential, or does not cover the
        boundary.
    LabelError
        If the labels are of another target or have a percentile.
    """
    probe = prior if isinstance(prior, Probe) else Probe.load(prior)
    check_prior(probe)
    probe.check(backbone)
    labels_for(probe.card, labels)
    if labels.percentile is not None:
        msg = (
            "percentile must be left out with a prior, which has a boundary, got "
            f"{labels.percentile}; choose a boundary"
        )
        raise LabelError(msg)
    if labels.boundary is None:
        return probe
    moved = probe.at(labels.boundary)
    moved.file = probe.file
    return moved


def check_prior(prior: Probe) -> None:
    """Raise ProbeError if labels cannot be added to this probe."""
    check_original(prior)
    if prior.stacked is None:
        msg = (
            "prior must be a probe of the default architecture, got "
            f"{prior.card.architecture!r}; fit one with uqcalc.fit"
        )
        raise ProbeError(msg)


def refuse_frames(prior: Probe, frames: Sequence[Atoms], rows: Sequence[int]) -> None:
    """Raise LabelError if ``rows`` are too few, or the prior was fitted on some."""
    _refuse_few(len(rows), FEWEST)
    refuse_seen(prior, frames, rows)


def _refuse_few(count: int, fewest: int) -> None:
    if count < fewest:
        msg = (
            f"at least {fewest} labelled frames must be given for a fit with a prior, "
            f"got {count}; add labels, or use uqcalc.adapt (uqcalc adapt): it needs 5"
        )
        raise LabelError(msg)


def add_labels(prior: Probe, data: Dataset, seed: int = 0) -> Probe:
    """Return ``prior`` with the labels of a system added; its groups are the runs.

    Raises
    ------
    ProbeError
        As `check_prior`.
    LabelError
        With fewer than 20 labels or 2 groups, or of another potential.

    Warns
    -----
    LabelWarning
        As `uqcalc.adapt`, if the labels may be of another level of theory.
    """
    check_prior(prior)
    card = prior.card
    data.check(card.fingerprint)
    sound = data.subset(np.flatnonzero(~data.exploded()))
    _refuse_few(len(sound), _FEWEST_KEPT)
    spread = Spread.of_card(card.training)
    structures = _structures(prior, sound)
    if not any(prior.unseen_elements(numbers) for numbers in sound.numbers):
        _warn_of_level(structures, spread)
    fitted = fit_correction(structures, spread, seed)
    atoms = _atoms(prior, sound)
    of_atoms = None
    if atoms is not None:
        of_atoms = fit_correction(atoms, spread, seed, _ATOM_CENTRES)
    own = replace(card.calibration, system=fitted.knots, labels=len(sound))
    logits = fitted.left_out
    right = sound.errors <= card.boundary
    scope = _scope(card.target, sound, right & (expit(logits) >= card.suspect))
    atom_calibration = None
    if of_atoms is not None and card.atom_calibration is not None:
        atom_calibration = replace(card.atom_calibration, system=of_atoms.knots)
    name, checksum = prior.file or ("", "")
    added = Added(
        len(fitted.weights),
        0 if of_atoms is None else len(of_atoms.weights),
        own,
        scope,
        atom_calibration,
        name,
        checksum,
    )
    changed = replace(
        card,
        added=added,
        scope=_both(card.scope, scope),
        elements=sorted({*card.elements, *_elements(sound)}),
        sizes=_range(card.sizes, sound),
        promise=None,
        held_out=held_out_logits(logits, np.zeros(len(sound), bool), sound.groups),
        training=card.training
        | {"prior": _summary(prior, sound, structures, fitted, spread)},
    )
    paths = _paths(prior, sound, added, (structures, fitted), (atoms, of_atoms))
    seen = Seen(
        np.union1d(prior.seen.geometries, Seen.of([data]).geometries),
        np.union1d(prior.seen.groups, Seen.of([data]).groups),
    )
    return Probe(changed, prior.network, prior.statistics, prior.stacked, seen, paths)


@torch.inference_mode()
def _structures(prior: Probe, data: Dataset) -> Rows:
    known = prior.card.calibration
    parts = [prior.path_output(chunk) for chunk in chunks(data.predictions)]
    described = [part.described for part in parts if part.described is not None]
    logits = known.logits(torch.cat([part.score for part in parts]).double()).numpy()
    return Rows(
        torch.cat([part.numbers for part in described]),
        torch.cat([part.components for part in described]),
        _stacked(prior).structure,
        logits,
        residuals(logits, data.errors, known.boundaries, known.shifts),
        data.groups,
        data.groups,
        _pooled(prior, described),
    )


def _pooled(prior: Probe, described: Sequence[Described]) -> torch.Tensor:
    """Return the inputs of the linear path of the prior, (structures, 2 dim)."""
    path = _stacked(prior).linear
    pooled = torch.cat([part.pooled for part in described])
    return standardised(pooled, path.centre, path.scale)


@torch.inference_mode()
def _atoms(prior: Probe, data: Dataset) -> Rows | None:
    """Return some of the atoms; None if the prior or the labels have no atoms."""
    known, paths = prior.card.atom_calibration, _stacked(prior).atoms
    if known is None or paths is None or data.atom_errors is None:
        return None
    if len(known.boundaries) < 2:
        return None
    errors = np.concatenate([np.asarray(e, float) for e in data.atom_errors])
    said = np.flatnonzero(np.isfinite(errors))  # NaN: the force vanishes by symmetry
    if len(said) < _FEWEST_KEPT:
        return None
    rows = said[evenly(len(said), _MOST_ATOMS)]
    some = list(chunks(data.predictions))
    parts = [prior.path_output(chunk) for chunk in some]
    described = [part.described for part in parts if part.described is not None]
    sizes = [[len(p.numbers) for p in chunk] for chunk in some]
    scores = [
        atom_log_odds(prior.card, part, counts, None)
        for part, counts in zip(parts, sizes, strict=True)
    ]
    logits = torch.cat([s for s in scores if s is not None]).double().numpy()[rows]
    index = torch.from_numpy(rows)
    which = np.repeat(np.arange(len(data)), data.sizes)[rows]
    return Rows(
        torch.cat([part.atoms for part in described])[index],
        torch.cat([part.atom_features for part in described])[index],
        paths,
        logits,
        residuals(logits, errors[rows], known.boundaries, known.shifts),
        [data.groups[i] for i in which],
        [str(i) for i in which],  # errors of the atoms of one structure are correlated
    )


def _stacked(prior: Probe) -> StackedPaths:
    if prior.stacked is None:
        msg = "prior must have several paths, got one"
        raise ValueError(msg)
    return prior.stacked


def _warn_of_level(rows: Rows, spread: Spread) -> None:
    """Warn as `adapt` does if errors are much larger or smaller than expected."""
    own = replace(spread, run=learn_runs(rows.found, rows.runs, spread))
    warn_of_level(posterior(rows.found, rows.runs, own), own)


def _scope(target: str, data: Dataset, judged: NDArray[np.bool_]) -> Scope:
    sums = [p.charges.sum().item() for p in data.predictions if p.charges is not None]
    away = left_out_distances(data)
    return learn_scope(target, away, data.sizes.tolist(), data.groups, sums, judged)


def _both(prior: Scope | None, own: Scope) -> Scope | None:
    """Return the scope of the prior, with the sizes and charges of both."""
    if prior is None:
        return None
    return replace(
        prior,
        smallest=min(prior.smallest, own.smallest),
        largest=max(prior.largest, own.largest),
        charges=tuple(sorted({*prior.charges, *own.charges})),
    )


def _elements(data: Dataset) -> list[int]:
    return sorted({int(z) for numbers in data.numbers for z in numbers})


def _range(known: Sequence[int], data: Dataset) -> list[int]:
    sizes = [*known, int(data.sizes.min()), int(data.sizes.max())]
    return [min(sizes), max(sizes)] if known else []


@torch.no_grad()
def _paths(
    prior: Probe,
    data: Dataset,
    added: Added,
    structures: tuple[Rows, Correction],
    atoms: tuple[Rows | None, Correction | None],
) -> AddedPaths:
    stacked = _stacked(prior)
    shape = replace(
        stacked.shape, centres=added.centres, atom_centres=added.atom_centres
    )
    paths = AddedPaths(shape, stacked.numbers.components)
    moments = Moments(data.predictions)
    energies = prior.card.element_energies()
    paths.statistics.learn(data.predictions, moments, energies)
    paths.counts.copy_(moments.counts)
    paths.prior_counts.copy_(stacked.numbers.element_counts)
    _fill(paths.structure, *structures)
    paths.linear.centre.copy_(stacked.linear.centre)
    paths.linear.scale.copy_(stacked.linear.scale)
    paths.linear.slope.copy_(torch.from_numpy(structures[1].slope))
    if paths.atoms is not None and atoms[0] is not None and atoms[1] is not None:
        _fill(paths.atoms, atoms[0], atoms[1])
    return paths


def _fill(machine: KernelPaths, rows: Rows, fitted: Correction) -> None:
    index = torch.from_numpy(fitted.rows)
    machine.centres.copy_(rows.numbers[index])
    machine.near.copy_(rows.features[index])
    machine.narrow_weights.copy_(torch.from_numpy(fitted.weights))


def _summary(
    prior: Probe, data: Dataset, rows: Rows, fitted: Correction, spread: Spread
) -> dict[str, Any]:
    """Return what the labels showed, for the card."""
    name, checksum = prior.file or ("", "")
    right = data.errors <= prior.card.boundary
    losses = [
        float(np.logaddexp(0.0, np.where(right, -logits, logits)).mean())
        for logits in (rows.logits, fitted.left_out)
    ]
    symbols = [chemical_symbols[z] for z in _elements(data)]
    statement = (
        f"{len(data)} labels of {' '.join(symbols)} in {len(set(data.groups))} runs "
        f"added to the prior {name or '(not read from a file)'}: log loss on left-out "
        f"runs {losses[0]:.3f} before and {losses[1]:.3f} after; {right.mean():.0%} "
        f"are right, mean P {expit(rows.logits).mean():.2f} before and "
        f"{expit(fitted.left_out).mean():.2f} after"
    )
    return {
        "name": name,
        "checksum": checksum,
        "labels": len(data),
        "runs": len(set(data.groups)),
        "elements": symbols,
        "scale": fitted.scale,
        "penalty": None if np.isinf(fitted.penalty) else fitted.penalty,
        "gain": fitted.gain,
        "log_loss_before": losses[0],
        "log_loss_after": losses[1],
        "spread": {"system": spread.system, "run": fitted.run},
        "statement": statement,
    }
