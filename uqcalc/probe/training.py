"""`fit`: labelled frames in, a calibrated probe and its report out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError
from uqcalc.probe.calibration import Calibration
from uqcalc.probe.card import JOINED_ARCHITECTURE, RAW_ARCHITECTURE
from uqcalc.probe.checkpoint import Probe
from uqcalc.probe.dataset import Dataset, build_dataset
from uqcalc.probe.fitting.joining import fit_joined
from uqcalc.probe.fitting.optimise import margins
from uqcalc.probe.fitting.single import fit_single
from uqcalc.probe.labelling.chained import Chained
from uqcalc.probe.labelling.defects import check_frames
from uqcalc.probe.labelling.groups import group_names, refuse_shared_groups
from uqcalc.probe.labelling.labels import Labels, geometry_key
from uqcalc.probe.labelling.prospects import warn_of_prospects
from uqcalc.probe.labelling.seen import Seen
from uqcalc.probe.recipe import Recipe
from uqcalc.probe.released import released_energies
from uqcalc.probe.reporting.evaluation import Evaluation, evaluate_dataset
from uqcalc.probe.reporting.judged import judge
from uqcalc.probe.starts import held_out_logits
from uqcalc.probe.storage.featurecache import Cache


__all__ = ["FitReport", "Recipe", "fit", "fit_datasets"]


@dataclass(frozen=True, slots=True, eq=False)
class FitReport(Evaluation):
    """A fitted probe and how good it is on structures it never saw.

    Attributes
    ----------
    curve : list of (training loss, validation loss)
    """

    curve: list[tuple[float, float]]


def fit(  # noqa: PLR0913  (as many choices as the command has)
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    labels: Labels = Labels(),  # noqa: B008  (frozen)
    recipe: Recipe = Recipe(),  # noqa: B008  (frozen)
    *,
    calibration: Sequence[Atoms] | None = None,
    test: Sequence[Atoms] | None = None,
    exclude: Collection[str] = (),
    cache: str | os.PathLike[str] | Cache | None = None,
) -> FitReport:
    """Fit a probe for ``calculator`` on labelled frames.

    Parameters
    ----------
    frames : sequence of Atoms
        With labels as `Labels` says. Without ``test`` they are divided 85/15 by group;
        weights and calibration then rest on predictions for groups left out.
    calculator : ase calculator or Backbone
        The potential whose errors are to be foreseen; it is not changed.
    calibration, test : sequences of Atoms, optional
        Held-out frames, for the calibration and for the report. The architectures
        "standard" and "probe-2026" need the first; without it 15 % are taken for it.
    exclude : collection of str
        Defects of frames to leave out instead of refusing (see `build_dataset`).
    cache : path or Cache, optional
        A folder that keeps the features of this potential. Frames whose features are
        there already are not evaluated again, an interrupted evaluation goes on where
        it stopped, and training reads from there instead of holding all in memory.

    Raises
    ------
    LabelError
        For unusable labels, or where nothing that transfers can be learned.
    RecordError
        If the cache is of another potential.

    Warns
    -----
    LabelWarning
        Early, of what dooms a probe: too few labels, one molecule only, another unit or
        level of theory, frames of one run without a group key.
    """
    check_frames(frames, exclude)
    backbone = tap(calculator)
    if recipe.architecture == RAW_ARCHITECTURE:  # refused before any prediction
        released_energies(backbone, recipe.atomic_energies)
    build = partial(
        build_dataset, backbone=backbone, labels=labels, exclude=exclude, cache=cache
    )
    sets = (frames, calibration, test)
    train, held, unseen = _datasets(build, labels, sets, recipe)
    return fit_datasets(train, held, unseen, backbone, labels, recipe)


def fit_datasets(
    train: Dataset,
    calibration: Dataset | None,
    test: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
) -> FitReport:
    """Do what `fit` does, from datasets whose features are there already."""
    if calibration is None:
        _refuse_uncalibrated(recipe)
    for data in (train, calibration, test):
        if data is not None:
            data.check(backbone.fingerprint)
    train = train.crossed()
    boundary = labels.boundary
    if boundary is None:
        boundary = float(np.percentile(train.errors, labels.percentile))
    _refuse_one_class(train, boundary)
    _refuse_untestable(train, test)
    if recipe.architecture == JOINED_ARCHITECTURE:
        probe, curve = fit_joined(train, backbone, labels, recipe, boundary)
    else:
        probe, curve = fit_single(train, backbone, labels, recipe, boundary)
    if calibration is not None:
        probe = _recalibrated(probe, calibration, boundary)
    summary = _training_summary(train, calibration, test, recipe, curve)
    probe = probe.with_card(
        offsets=train.offsets, training=probe.card.training | summary
    ).with_seen(Seen.of([train, calibration]))
    seen = evaluate_dataset(probe, test)
    probe = probe.with_card(report=seen.report)
    return FitReport(
        probe, seen.report, seen.probability, seen.errors, seen.tested, curve
    )


def _recalibrated(probe: Probe, held: Dataset, boundary: float) -> Probe:
    """Calibrate on structures that were given for it."""
    score = margins(probe, held)
    calibration = Calibration.fit(score, held.errors, held.groups, boundary)
    probe = probe.with_card(calibration=calibration)
    logits = calibration.logits(torch.from_numpy(score)).numpy()
    outside = judge(probe, held.predictions).outside
    return probe.with_card(held_out=held_out_logits(logits, outside, held.groups))


def _datasets(
    build: Callable[..., Dataset],
    labels: Labels,
    sets: tuple[Sequence[Atoms], Sequence[Atoms] | None, Sequence[Atoms] | None],
    recipe: Recipe,
) -> tuple[Dataset, Dataset | None, Dataset]:
    frames, calibration, test = sets
    if calibration is not None and test is None:
        msg = "test frames must be given where calibration frames are, got none"
        raise LabelError(msg)
    given = [part for part in sets if part is not None]
    alone = recipe.architecture != JOINED_ARCHITECTURE
    if alone and test is not None and calibration is None:
        _refuse_uncalibrated(recipe)
    warn_of_prospects(Chained(given), labels)
    if not alone:
        _refuse_few_groups(frames, labels, recipe.folds + (test is None))
    if test is None:
        whole = build(frames)
        shares = (0.7, 0.15, 0.15) if alone else (0.85, 0.15)
        train, *held, unseen = whole.split(shares, recipe.seed)
        return train, held[0] if held else None, unseen
    _refuse_leaks(given)
    train = build(frames)
    others = [build(part, offsets=train.offsets or None) for part in given[1:]]
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
    """Refuse, before any prediction, what cannot be divided as the recipe asks."""
    names = sorted(set(group_names(frames, labels.group_key)))
    if 1 < len(names) < fewest:  # one alone has a message of its own
        msg = (
            f"frames must come in at least {fewest} groups for weights, calibration "
            f"and test to rest on groups left out, got {len(names)} "
            f"({', '.join(names)}); add molecules or materials, or name a group key "
            "that divides these"
        )
        raise LabelError(msg)


def _refuse_leaks(sets: Sequence[Sequence[Atoms]]) -> None:
    """Refuse a geometry that is in two of the sets: the report would flatter."""
    keys = [
        {geometry_key(a.numbers, a.positions, a.cell.array, a.pbc) for a in frames}
        for frames in sets
    ]
    if shared := sum(len(a & b) for a, b in combinations(keys, 2)):
        msg = (
            "training, calibration and test frames must be different structures, got "
            f"{shared} in two of them; divide them again"
        )
        raise LabelError(msg)


def _refuse_one_class(data: Dataset, boundary: float) -> None:
    reliable = data.errors <= boundary
    if reliable.all() or not reliable.any():
        low, middle, high = np.percentile(data.errors, (0, 50, 100))
        msg = (
            "training labels must hold reliable and unreliable structures, got "
            f"{int(reliable.sum())} of {len(data)} within {boundary:.4g} (errors from "
            f"{low:.3g} to {high:.3g}, median {middle:.3g}); choose another boundary"
        )
        raise LabelError(msg)


def _refuse_untestable(train: Dataset, test: Dataset) -> None:
    """Refuse, before training, a test that could say nothing of the probe."""
    known = {z for numbers in train.numbers for z in numbers.tolist()}
    if not any(known.issuperset(numbers.tolist()) for numbers in test.numbers):
        symbols = [chemical_symbols[z] for z in sorted(known)]
        msg = (
            f"at least one of the {len(test)} test structures must be made of the "
            f"training structures' elements ({' '.join(symbols)}), got none; divide by "
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
    }


def _choices(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe but the atomic energies, which have a place on the card."""
    return {k: v for k, v in asdict(recipe).items() if k != "atomic_energies"}


def _excluded(sets: Iterable[Dataset]) -> dict[str, int]:
    """Count the frames left out by defect; parts of one set share their counts."""
    distinct = {id(data.excluded): data.excluded for data in sets}
    counts: Counter[str] = Counter()
    for excluded in distinct.values():
        counts.update({defect: len(rows) for defect, rows in excluded.items()})
    return dict(counts)
