"""`fit`: from labelled frames to a calibrated probe and its report."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.cluster import RayWorkers
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.evaluation.evaluation import Evaluation, evaluate_dataset
from uqcalc.evaluation.readings import read_structures
from uqcalc.evaluation.riskcontrol import held_out_logits
from uqcalc.fitting.network import fit_single, margins
from uqcalc.fitting.prior import add_labels, opened_prior, refuse_frames
from uqcalc.fitting.recipe import Recipe
from uqcalc.fitting.stacking import fit_joined
from uqcalc.labels.dataset import Dataset, build_dataset, held_out_dataset
from uqcalc.labels.defects import check_frames, drop_leaks, usable_rows
from uqcalc.labels.groups import Chained, group_names, refuse_shared_groups
from uqcalc.labels.labels import Labels
from uqcalc.labels.offsets import missing_span, warn_of_span
from uqcalc.labels.regimes import limits_of_labels
from uqcalc.labels.setchecks import (
    check_both_classes,
    check_spread_of_errors,
    warn_of_rare_class,
    warn_of_weak_set,
)
from uqcalc.probe.calibration import Calibration
from uqcalc.probe.card import JOINED_ARCHITECTURE, RAW_ARCHITECTURE
from uqcalc.probe.official import released_energies
from uqcalc.probe.probe import Probe
from uqcalc.probe.seen import Seen
from uqcalc.targets import TARGETS


__all__ = ["FitReport", "Recipe", "fit", "fit_datasets"]


_DRAWS, _FURTHER = 20, 1000  # number of divisions to try, and step between their seeds


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FitReport(Evaluation):
    """A fitted probe and its scores on held-out structures.

    Attributes
    ----------
    curve : list of (training loss, validation loss)
        One entry for each epoch.
    """

    curve: list[tuple[float, float]]


def fit(  # noqa: PLR0913  (same options as the command)
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    labels: Labels = Labels(),  # noqa: B008  (frozen)
    recipe: Recipe = Recipe(),  # noqa: B008  (frozen)
    *,
    calibration: Sequence[Atoms] | None = None,
    test: Sequence[Atoms] | None = None,
    prior: Probe | str | os.PathLike[str] | None = None,
    exclude: Collection[str] = (),
    cache: str | os.PathLike[str] | None = None,
    workers: RayWorkers | None = None,
) -> FitReport:
    """Fit a probe for ``calculator`` on labelled frames.

    With a ``prior`` the labels of one system, about 50 to some hundred, are added to a
    probe that exists. Its log-odds of structures and atoms enter without a penalty, a
    correction from the features with one, chosen on left-out groups
    (`uqcalc.fitting.prior`). Elements and scope are those of both. Far from the new
    labels the probabilities are those of the prior. The groups are the runs of the
    system. With fewer labels use `uqcalc.adapt`.

    Parameters
    ----------
    frames : sequence of Atoms
        Labelled frames, with keys as in ``labels``. Without ``test`` they are divided
        85/15 by group into training and test. Weights and calibration use predictions
        for left-out groups.
    calculator : ase calculator or Backbone
        The potential whose errors the probe predicts; it is not changed.
    calibration, test : sequences of Atoms, optional
        Held-out frames for the calibration and for the report. The architectures
        "standard" and "probe-2026" need calibration frames: without ``test`` the frames
        are divided 70/15/15, with ``test`` they must be given.
    prior : Probe or path, optional
        Probe of the same potential and target, to which the labels are added. Frames
        that it was fitted on are refused. Its boundary counts if ``labels`` give none.
        Of the recipe only the seed is used.
    exclude : collection of str
        Frames with these defects are left out instead of an error (`build_dataset`).
    cache : path, optional
        Folder that stores the features of this potential. Stored features are not
        computed again, an interrupted evaluation continues, and training reads from
        the folder instead of memory.
    workers : RayWorkers, optional
        Workers of a Ray cluster that evaluate the frames, with calculators like
        ``calculator``; the results are the same. By default they are evaluated here.

    Raises
    ------
    LabelError
        If labels are unusable, or the probe has no skill on held-out groups. With a
        prior also if there are fewer than 30 labels, or frames that it was fitted on.
    ProbeError
        If the prior is of another potential or of another architecture, is adapted, or
        has a prior itself.
    RecordError
        If the cache is of another potential.

    Warns
    -----
    LabelWarning
        Before training, of problems with the labels: too few labels, one molecule only,
        another unit or level of theory, frames of one run without a group key.
    """
    check_frames(frames, exclude)
    backbone = tap(calculator)
    if prior is not None:
        known = opened_prior(prior, backbone, labels)
        _refuse_calibration(calibration)
        return _fit_with_prior(
            known, (frames, test), backbone, labels, recipe, exclude, (cache, workers)
        )
    if recipe.architecture == RAW_ARCHITECTURE:  # raises before any prediction
        released_energies(backbone, recipe.atomic_energies)
    build = partial(
        build_dataset,
        backbone=backbone,
        labels=labels,
        exclude=exclude,
        cache=cache,
        workers=workers,
    )
    sets = (frames, calibration, test)
    train, held, unseen = _datasets(build, labels, sets, recipe, exclude)
    return fit_datasets(train, held, unseen, backbone, labels, recipe)


def fit_datasets(
    train: Dataset,
    calibration: Dataset | None,
    test: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
) -> FitReport:
    """Fit as in `fit`, from datasets with features."""
    if calibration is None:
        _refuse_uncalibrated(recipe)
    for data in (train, calibration, test):
        if data is not None:
            data.check(backbone.fingerprint)
    train = train.crossed()
    boundary = labels.chosen_boundary(train.errors)
    check_spread_of_errors(train.errors, boundary, labels)
    check_both_classes(train.errors, boundary, TARGETS[labels.target].unit)
    _refuse_untestable(train, test)
    warn_of_rare_class(train.errors, boundary, labels)
    span = missing_span(train.numbers, train.offsets)
    warn_of_offset_span(span, (calibration, test))
    if recipe.architecture == JOINED_ARCHITECTURE:
        probe, curve = fit_joined(train, backbone, labels, recipe, boundary)
    else:
        probe, curve = fit_single(train, backbone, labels, recipe, boundary)
    if calibration is not None:
        probe = _recalibrated(probe, calibration, boundary)
    summary = _training_summary(train, calibration, test, recipe, curve)
    summary["boundary_rule"] = labels.boundary_rule
    if span is not None:
        summary["offset_span"] = span
    probe = probe.with_card(
        offsets=train.offsets, training=probe.card.training | summary
    ).with_seen(Seen.of([train, calibration]))
    seen = evaluate_dataset(probe, test)
    probe = probe.with_card(report=seen.report)
    return FitReport(
        probe, seen.report, seen.probability, seen.errors, seen.tested, curve
    )


def _refuse_calibration(frames: Sequence[Atoms] | None) -> None:
    if frames is not None:
        msg = (
            "calibration frames must be left out with a prior, got "
            f"{len(frames)}: left-out groups are used for the calibration; add these "
            "frames to the others"
        )
        raise LabelError(msg)


def _fit_with_prior(
    prior: Probe,
    sets: tuple[Sequence[Atoms], Sequence[Atoms] | None],
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
    exclude: Collection[str],
    features: tuple[str | os.PathLike[str] | None, RayWorkers | None],
) -> FitReport:
    """Add the labels to a prior, and test on a share of the groups or on ``test``."""
    wanted = replace(labels, boundary=prior.card.boundary, percentile=None)
    given = [part for part in sets if part is not None]
    warn_of_weak_set(Chained(given), wanted, added=True)
    refuse_frames(prior, sets[0], usable_rows(sets[0], backbone, wanted, exclude))
    dropped = drop_leaks(given, exclude)
    data = [
        held_out_dataset(
            prior.card,
            [f for i, f in enumerate(part) if i not in rows],
            backbone,
            wanted,
            exclude,
            *features,
        )
        for part, rows in zip(given, dropped, strict=True)
    ]
    if len(data) == 1:
        data = _both_kinds(data[0], (0.85, 0.15), wanted, recipe.seed)
    refuse_shared_groups(*data)
    train, unseen = data
    probe = add_labels(prior, train, recipe.seed)
    seen = evaluate_dataset(probe, unseen)
    probe = probe.with_card(report=seen.report)
    return FitReport(probe, seen.report, seen.probability, seen.errors, seen.tested, [])


def _recalibrated(probe: Probe, held: Dataset, boundary: float) -> Probe:
    """Calibrate on the calibration structures."""
    score = margins(probe, held)
    calibration = Calibration.fit(score, held.errors, held.groups, boundary)
    probe = probe.with_card(calibration=calibration)
    logits = calibration.logits(torch.from_numpy(score)).numpy()
    outside = read_structures(probe, held.predictions).outside
    return probe.with_card(held_out=held_out_logits(logits, outside, held.groups))


def _datasets(
    build: Callable[..., Dataset],
    labels: Labels,
    sets: tuple[Sequence[Atoms], Sequence[Atoms] | None, Sequence[Atoms] | None],
    recipe: Recipe,
    exclude: Collection[str],
) -> tuple[Dataset, Dataset | None, Dataset]:
    frames, calibration, test = sets
    if calibration is not None and test is None:
        msg = "test frames must be given with calibration frames, got none; pass test="
        raise LabelError(msg)
    given = [part for part in sets if part is not None]
    alone = recipe.architecture != JOINED_ARCHITECTURE
    if alone and test is not None and calibration is None:
        _refuse_uncalibrated(recipe)
    warn_of_weak_set(Chained(given), labels)
    if not alone:
        _refuse_few_groups(frames, labels, recipe.folds + (test is None))
    if test is None:
        whole = build(frames)
        shares = (0.7, 0.15, 0.15) if alone else (0.85, 0.15)
        train, *held, unseen = _both_kinds(whole, shares, labels, recipe.seed)
        return train, held[0] if held else None, unseen
    dropped = drop_leaks(given, exclude)
    kept = [f for i, f in enumerate(frames) if i not in dropped[0]]
    train = build(kept if dropped[0] else frames)
    others = []
    for part, rows in zip(given[1:], dropped[1:], strict=True):
        left = [f for i, f in enumerate(part) if i not in rows] if rows else part
        others.append(build(left, offsets=train.offsets or None))
    refuse_shared_groups(train, *others)
    return train, others[0] if calibration is not None else None, others[-1]


def _refuse_uncalibrated(recipe: Recipe) -> None:
    if recipe.architecture != JOINED_ARCHITECTURE:
        msg = (
            "calibration structures must be given for the architecture "
            f"{recipe.architecture!r}, got none; pass calibration="
        )
        raise LabelError(msg)


def _refuse_few_groups(frames: Sequence[Atoms], labels: Labels, fewest: int) -> None:
    """Raise LabelError, before any prediction, if there are too few groups."""
    names = sorted(set(group_names(frames, labels.group_key)))
    if 1 < len(names) < fewest:  # one group has another message
        msg = (
            f"frames must come in at least {fewest} groups so that weights, "
            f"calibration and test use held-out groups, got {len(names)} "
            f"({', '.join(names)}); add molecules or materials, or name a group key "
            "that divides these"
        )
        raise LabelError(msg)


def warn_of_offset_span(
    span: dict[str, Any] | None, held: Iterable[Dataset | None]
) -> None:
    """Warn if the offsets were fitted to fewer compositions than elements.

    Warns
    -----
    LabelWarning
        Once for the fit, and once for each held-out set with other compositions.
    """
    if span is None:
        return
    msg = (
        f"energy offsets of {len(span['elements'])} elements should be fitted to as "
        f"many independent compositions, got {len(span['basis'])}: the offset of "
        "other compositions is unknown; add frames of other compositions"
    )
    warnings.warn(msg, LabelWarning, stacklevel=3)
    for data in held:
        if data is not None:
            warn_of_span(data.numbers, span)


def _both_kinds(
    whole: Dataset, shares: Sequence[float], labels: Labels, seed: int
) -> list[Dataset]:
    """Divide by group; try other seeds until each part has labels of both kinds.

    Warns
    -----
    LabelWarning
        If no division gives each part reliable and unreliable structures. The first
        division is then used.
    """
    first: list[Dataset] | None = None
    for attempt in range(_DRAWS):
        parts = whole.split(shares, seed + _FURTHER * attempt)
        first = first or parts
        boundary = labels.chosen_boundary(parts[0].crossed().errors)
        counts = [int(np.sum(part.errors <= boundary)) for part in parts]
        if all(0 < n < len(part) for n, part in zip(counts, parts, strict=True)):
            return parts
    msg = (
        "test labels should have reliable and unreliable structures, but none of "
        f"{_DRAWS} random splits by group has both, so the scores mean little; add "
        "groups, pass test frames, or choose another boundary"
    )
    warnings.warn(msg, LabelWarning, stacklevel=4)
    return first or []


def _refuse_untestable(train: Dataset, test: Dataset) -> None:
    """Raise LabelError if each test structure has an element unknown in training."""
    known = {z for numbers in train.numbers for z in numbers.tolist()}
    if not any(known.issuperset(numbers.tolist()) for numbers in test.numbers):
        symbols = [chemical_symbols[z] for z in sorted(known)]
        msg = (
            f"at least one of the {len(test)} test structures must be made of the "
            f"training structures' elements ({' '.join(symbols)}), got none; use "
            "another seed, pass test frames, or add groups that share their elements"
        )
        raise LabelError(msg)


def _training_summary(
    train: Dataset,
    calibration: Dataset | None,
    test: Dataset,
    recipe: Recipe,
    curve: list[tuple[float, float]],
) -> dict[str, Any]:
    sets = {"train": train, "calibration": calibration, "test": test}
    present = {name: data for name, data in sets.items() if data is not None}
    return {
        "recipe": _choices(recipe),
        "epochs_run": len(curve),
        "validation_loss": min(watched for _, watched in curve),
        "structures": {name: len(data) for name, data in present.items()},
        "groups": {name: len(set(data.groups)) for name, data in present.items()},
        "group_key": train.group_key,
        "excluded": _excluded(present.values()),
        "torch": torch.__version__,
        **limits_of_labels(train.predictions, train.conditions),
    }


def _choices(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe without atomic energies, which are elsewhere on the card."""
    return {k: v for k, v in asdict(recipe).items() if k != "atomic_energies"}


def _excluded(sets: Iterable[Dataset]) -> dict[str, int]:
    """Return the number of excluded frames by defect; count shared records once."""
    distinct = {id(data.excluded): data.excluded for data in sets}
    counts: Counter[str] = Counter()
    for excluded in distinct.values():
        counts.update({defect: len(rows) for defect, rows in excluded.items()})
    return dict(counts)
