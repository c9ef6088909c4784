"""`fit`: labelled frames in, a calibrated probe and its report out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError
from uqcalc.probe.calibration import calibrate
from uqcalc.probe.card import RAW_ARCHITECTURE, Card
from uqcalc.probe.checkpoint import Probe
from uqcalc.probe.dataset import Dataset, build_dataset
from uqcalc.probe.evaluation import Evaluation, evaluate_dataset
from uqcalc.probe.inputs import Statistics, host_scalars
from uqcalc.probe.labels import Labels, geometry_key
from uqcalc.probe.network import ProbeNetwork, Shape
from uqcalc.probe.optimise import margins, optimise
from uqcalc.probe.recipe import Recipe


__all__ = ["FitReport", "Recipe", "fit", "fit_datasets"]


@dataclass(frozen=True, slots=True, eq=False)
class FitReport(Evaluation):
    """A fitted probe and how good it is on structures it never saw.

    Attributes
    ----------
    curve : list of (training loss, validation loss)
    """

    curve: list[tuple[float, float]]


def fit(
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    labels: Labels = Labels(),  # noqa: B008  (frozen)
    recipe: Recipe = Recipe(),  # noqa: B008  (frozen)
    *,
    calibration: Sequence[Atoms] | None = None,
    test: Sequence[Atoms] | None = None,
    exclude: Collection[str] = (),
) -> FitReport:
    """Fit a probe for ``calculator`` on labelled frames.

    Parameters
    ----------
    frames : sequence of Atoms
        With labels as `Labels` says. Without ``calibration`` and ``test`` they are
        divided 70/15/15 by group.
    calculator : ase calculator or Backbone
        The potential whose errors are to be foreseen; it is not changed.
    calibration, test : sequences of Atoms, optional
        Held-out frames, for the two calibration parameters and for the report.
    exclude : collection of str
        Defects of frames to leave out instead of refusing (see `build_dataset`).

    Raises
    ------
    LabelError
        For unusable labels, or where nothing that transfers can be learned.
    """
    if isinstance(frames, (str, Path, Atoms)) or isinstance(exclude, str):
        msg = (
            "frames must be a list of Atoms and exclude a tuple of defects, got "
            f"{type(frames).__name__} and {exclude!r}; read files first: "
            'ase.io.read("labelled.xyz", ":")'
        )
        raise LabelError(msg)
    backbone = tap(calculator)
    train, held, unseen = _datasets(
        backbone, labels, (frames, calibration, test), recipe.seed, exclude
    )
    return fit_datasets(train, held, unseen, backbone, labels, recipe)


def fit_datasets(
    train: Dataset,
    calibration: Dataset,
    test: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
) -> FitReport:
    """Do what `fit` does, from datasets whose features are there already."""
    boundary = labels.boundary
    if boundary is None:
        boundary = float(np.percentile(train.errors, labels.percentile))
    probe, curve = _train(train, backbone, labels, recipe, boundary)
    calibrated = calibrate(margins(probe, calibration), calibration.errors <= boundary)
    summary = _training_summary(train, calibration, test, recipe, curve)
    probe = _with(probe, calibration=calibrated, training=summary)
    seen = evaluate_dataset(probe, test)
    probe = _with(probe, report=seen.report)
    return FitReport(probe, seen.report, seen.probability, seen.errors, curve)


def _with(probe: Probe, **entries: Any) -> Probe:
    """Return the same network with more on its card."""
    return Probe(replace(probe.card, **entries), probe.network, probe.statistics)


def _datasets(
    backbone: Backbone,
    labels: Labels,
    sets: tuple[Sequence[Atoms], Sequence[Atoms] | None, Sequence[Atoms] | None],
    seed: int,
    exclude: Collection[str],
) -> tuple[Dataset, Dataset, Dataset]:
    frames, calibration, test = sets
    if (calibration is None) != (test is None):
        msg = "calibration and test frames must be given together, got one of them"
        raise LabelError(msg)
    if calibration is None or test is None:
        whole = build_dataset(frames, backbone, labels, exclude=exclude)
        train, held, unseen = whole.split((0.7, 0.15, 0.15), seed)
        return train, held, unseen
    _refuse_leaks(frames, calibration, test)
    train, held, unseen = (
        build_dataset(part, backbone, labels, exclude=exclude)
        for part in (frames, calibration, test)
    )
    return train, held, unseen


def _refuse_leaks(*sets: Sequence[Atoms]) -> None:
    """Refuse a geometry that is in two of the sets: the report would flatter."""
    train, held, unseen = (
        {geometry_key(a.numbers, a.positions, a.cell.array, a.pbc) for a in frames}
        for frames in sets
    )
    if shared := len(train & held) + len(train & unseen) + len(held & unseen):
        msg = (
            "training, calibration and test frames must be different structures, got "
            f"{shared} in two of them; divide them again"
        )
        raise LabelError(msg)


def _train(
    data: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
    boundary: float,
) -> tuple[Probe, list[tuple[float, float]]]:
    reliable = data.errors <= boundary
    if reliable.all() or not reliable.any():
        msg = (
            "training labels must hold reliable and unreliable structures, got "
            f"{int(reliable.sum())} of {len(data)} within {boundary:.4g}; choose "
            "another boundary"
        )
        raise LabelError(msg)
    width = data.predictions[0].features.shape[1]
    charges = "charges" in backbone.provides
    raw = recipe.architecture == RAW_ARCHITECTURE
    numbers = sorted({int(z) for p in data.predictions for z in np.unique(p.numbers)})
    counts = [len(p.numbers) for p in data.predictions]
    card = Card(
        fingerprint=backbone.fingerprint,
        target=labels.target,
        boundary=boundary,
        percentile=labels.percentile if labels.boundary is None else None,
        architecture=recipe.architecture,
        shape=recipe.shape(width, charges=charges).to_dict(),
        elements=numbers,
        sizes=[min(counts), max(counts)],
        suspect=recipe.suspect,
        unreliable=recipe.unreliable,
        atom_energies={} if raw else _atom_energies(data),
        uqcalc_version=version("uqcalc"),
    )
    with torch.random.fork_rng(devices=[]):  # torch.manual_seed would seed GPUs too
        torch.default_generator.manual_seed(recipe.seed)
        network = ProbeNetwork(Shape.from_dict(card.shape))
        probe = Probe(card, network, None if raw else _statistics(data, card))
        curve = optimise(probe, data, reliable, recipe)
    return probe, curve


def _atom_energies(data: Dataset) -> dict[str, float]:
    """Return the least-squares energy of each element in the *predicted* energies."""
    present = sorted({int(z) for p in data.predictions for z in np.unique(p.numbers)})
    counts = np.array(
        [[np.sum(p.numbers == z) for z in present] for p in data.predictions], float
    )
    energies = np.array([p.energy for p in data.predictions])
    solution, *_ = np.linalg.lstsq(counts, energies, rcond=None)
    return {str(z): float(e) for z, e in zip(present, solution, strict=True)}


def _statistics(data: Dataset, card: Card) -> Statistics:
    energies = card.element_energies()
    host = [
        host_scalars(p.numbers, p.energy, p.forces, energies) for p in data.predictions
    ]
    statistics = Statistics(card.feature_dim)
    statistics.learn(
        torch.cat([p.features for p in data.predictions]),
        torch.from_numpy(np.concatenate([p.numbers for p in data.predictions])),
        torch.from_numpy(np.stack(host)),
        [len(p.numbers) for p in data.predictions],
    )
    return statistics


def _training_summary(
    train: Dataset,
    calibration: Dataset,
    test: Dataset,
    recipe: Recipe,
    curve: list[tuple[float, float]],
) -> dict[str, Any]:
    sets = {"train": train, "calibration": calibration, "test": test}
    return {
        "recipe": asdict(recipe),
        "epochs_run": len(curve),
        "validation_loss": min(watched for _, watched in curve),
        "structures": {name: len(data) for name, data in sets.items()},
        "groups": {name: len(set(data.groups)) for name, data in sets.items()},
        "excluded": {k: len(v) for k, v in train.excluded.items()},
        "torch": torch.__version__,
    }
