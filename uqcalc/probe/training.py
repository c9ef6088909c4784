"""`fit`: labelled frames in, a calibrated probe and its report out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray
from rich.progress import Progress
from torch import nn

from uqcalc import scores
from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError
from uqcalc.probe.calibration import calibrate
from uqcalc.probe.card import Card
from uqcalc.probe.checkpoint import RAW_ARCHITECTURE, Probe
from uqcalc.probe.dataset import Dataset, Labels, build_dataset
from uqcalc.probe.inputs import SCALARS, Statistics, host_scalars
from uqcalc.probe.network import ProbeNetwork, Shape


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a probe is trained.

    The defaults are for hundreds to tens of thousands of labels;
    ``Recipe.published()`` is the paper's (arXiv:2605.00640, section 4.1).

    Attributes
    ----------
    architecture : {"standard", "probe-2026"}
    suspect, unreliable : float
        Cutoffs on P(reliable) that the default policy takes: by default SUSPECT when
        more than one in five such predictions is wrong, UNRELIABLE when more than
        half are.
    """

    architecture: str = "standard"
    epochs: int = 200
    patience: int = 20
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 64
    dropout: float = 0.1
    size_normalised: bool = False
    suspect: float = 0.8
    unreliable: float = 0.5
    seed: int = 0

    @classmethod
    def published(cls, **changes: Any) -> Recipe:
        """Return the published recipe with ``changes``."""
        recipe = cls(
            architecture=RAW_ARCHITECTURE,
            epochs=200,
            patience=25,
            learning_rate=5e-5,
            weight_decay=1e-4,
            size_normalised=True,
        )
        return replace(recipe, **changes)

    def shape(self, features: int, *, charges: bool) -> Shape:
        """Return the sizes of the network."""
        if self.architecture == RAW_ARCHITECTURE:
            return Shape(features, charges=charges, dropout=self.dropout)
        if self.architecture == "standard":
            return Shape(
                features,
                scalars=SCALARS,
                width=64,
                heads=8,
                encoder=(128,),
                classifier=(64,),
                embedding=64,
                charges=charges,
                dropout=self.dropout,
            )
        msg = (
            "architecture must be 'standard' or 'probe-2026', got "
            f"{self.architecture!r}"
        )
        raise ValueError(msg)


@dataclass(frozen=True, slots=True, eq=False)
class FitReport:
    """A fitted probe and how good it is on structures it never saw.

    Attributes
    ----------
    probe : Probe
    report : dict
        `uqcalc.scores.classification_report` on the test frames.
    probability, errors : arrays (test structures,)
        P(reliable), and the true errors in the unit of the boundary.
    curve : list of (training loss, validation loss)
    """

    probe: Probe
    report: dict[str, Any]
    probability: NDArray[np.float64]
    errors: NDArray[np.float64]
    curve: list[tuple[float, float]]

    def __str__(self) -> str:
        r = self.report
        lines = [
            str(self.probe.card),
            f"test: {r['structures']} structures, {r['prevalence']:.3f} reliable",
            f"accuracy {r['accuracy']:.3f} (majority class {r['majority_accuracy']:.3f})"
            f"  MCC {r['mcc']:.3f}  F1 {r['f1']:.3f}  AUROC {r['auroc']:.3f}",
            f"ECE {r['ece']:.3f} (noise floor {r['ece_noise_floor']:.3f})"
            f"  Brier {r['brier']:.3f}  Spearman(error, risk) {r['spearman']:.3f}",
            "P(reliable) at least:  kept   of them right",
        ]
        lines += [
            f"{row['cutoff']:>20.2f}  {row['coverage']:>5.1%}  {row['precision']:>6.1%}"
            for row in r["coverage"]
        ]
        return "\n".join(lines)


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
    calibrated = calibrate(_margins(probe, calibration), calibration.errors <= boundary)
    probability = _sigmoid(calibrated[0] * _margins(probe, test) + calibrated[1])
    report = scores.classification_report(test.errors <= boundary, probability)
    report["spearman"] = scores.spearman(test.errors, 1 - probability)
    report["median_error"] = float(np.median(test.errors))
    card = replace(
        probe.card,
        calibration=calibrated,
        report=report,
        training=_training_summary(train, calibration, test, recipe, curve),
    )
    final = Probe(card, probe.network, probe.statistics)
    return FitReport(final, report, probability, test.errors, curve)


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
    main = build_dataset(frames, backbone, labels, exclude=exclude)
    if calibration is None or test is None:
        train, held, unseen = main.split((0.7, 0.15, 0.15), seed)
        return train, held, unseen
    held = build_dataset(calibration, backbone, labels, exclude=exclude)
    return main, held, build_dataset(test, backbone, labels, exclude=exclude)


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = ProbeNetwork(Shape.from_dict(card.shape))
        probe = Probe(card, network, None if raw else _statistics(data, card))
        curve = _optimise(probe, data, reliable, recipe)
    return Probe(card, probe.network, probe.statistics), curve


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
    energies = np.zeros(119)
    for z, energy in card.atom_energies.items():
        energies[int(z)] = energy
    host = np.stack(
        [host_scalars(p.numbers, p.energy, p.forces, energies) for p in data.predictions]
    )
    statistics = Statistics(card.feature_dim)
    statistics.learn(
        torch.cat([p.features for p in data.predictions]),
        torch.from_numpy(np.concatenate([p.numbers for p in data.predictions])),
        torch.from_numpy(host),
        [len(p.numbers) for p in data.predictions],
    )
    return statistics


def _optimise(
    probe: Probe, data: Dataset, reliable: NDArray[np.bool_], recipe: Recipe
) -> list[tuple[float, float]]:
    """Train the network in place, back to the epoch of the lowest validation loss."""
    rng = np.random.default_rng(recipe.seed)
    fitting, watching = _validation_split(data, rng)
    network = probe.network.train().requires_grad_(requires_grad=True)
    optimiser = torch.optim.AdamW(
        network.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=0.9, patience=5, min_lr=recipe.learning_rate / 10
    )
    loss = _Loss(probe, data, reliable, recipe)
    best, best_state, curve = np.inf, network.state_dict(), []
    since = 0
    with Progress(transient=True) as progress:
        task = progress.add_task("probe", total=recipe.epochs)
        for _ in range(recipe.epochs):
            trained = _epoch(network, optimiser, loss, _shuffled(fitting, rng, recipe))
            watched = _evaluate(network, loss, _shuffled(watching, rng, recipe))
            schedule.step(watched)
            curve.append((trained, watched))
            progress.update(task, advance=1, description=f"probe, loss {watched:.4f}")
            since += 1
            if watched < best:
                best, since = watched, 0
                best_state = {k: v.clone() for k, v in network.state_dict().items()}
            if since >= recipe.patience:
                break
    network.load_state_dict(best_state)
    network.eval().requires_grad_(requires_grad=False)
    return curve


def _validation_split(
    data: Dataset, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold a tenth of the groups out of the gradient steps."""
    groups = sorted(set(data.groups))
    if len(groups) < 2:
        msg = (
            f"training labels must come in at least 2 groups, got {len(groups)}; pass "
            "no group key where frames are independent"
        )
        raise LabelError(msg)
    chosen = rng.permutation(groups)[: max(1, len(groups) // 10)]
    watching = np.isin(data.groups, chosen)
    return np.flatnonzero(~watching), np.flatnonzero(watching)


def _shuffled(
    indices: NDArray[np.int64], rng: np.random.Generator, recipe: Recipe
) -> Iterator[NDArray[np.int64]]:
    order = rng.permutation(indices)
    for start in range(0, len(order), recipe.batch_size):
        yield order[start : start + recipe.batch_size]


class _Loss:
    """Cross-entropy with inverse-frequency class weights, as in the paper."""

    def __init__(
        self, probe: Probe, data: Dataset, reliable: NDArray[np.bool_], recipe: Recipe
    ) -> None:
        self.predictions = data.predictions
        self.probe = probe
        self.targets = torch.from_numpy((~reliable).astype(np.int64))
        counts = torch.bincount(self.targets, minlength=2).float()
        self.weights = counts.sum() / (2 * counts)
        self.size_normalised = recipe.size_normalised

    def __call__(
        self, network: ProbeNetwork, indices: NDArray[np.int64]
    ) -> torch.Tensor:
        chosen = [self.predictions[i] for i in indices]
        logits = network(*self.probe.inputs(chosen)).logits
        losses = nn.functional.cross_entropy(
            logits, self.targets[indices], weight=self.weights, reduction="none"
        )
        if self.size_normalised:
            losses = losses / torch.tensor([len(p.numbers) for p in chosen]).sqrt()
        return losses.mean()


def _epoch(
    network: ProbeNetwork,
    optimiser: torch.optim.Optimizer,
    loss: _Loss,
    batches: Iterator[NDArray[np.int64]],
) -> float:
    network.train()
    values, seen = 0.0, 0
    for batch in batches:
        optimiser.zero_grad()
        value = loss(network, batch)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        values, seen = values + value.item() * len(batch), seen + len(batch)
    return values / seen


def _evaluate(
    network: ProbeNetwork, loss: _Loss, batches: Iterator[NDArray[np.int64]]
) -> float:
    network.eval()
    values, seen = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            values += loss(network, batch).item() * len(batch)
            seen += len(batch)
    return values / seen


def _margins(probe: Probe, data: Dataset) -> NDArray[np.float64]:
    pieces = []
    with torch.no_grad():
        for start in range(0, len(data), 256):
            chosen = data.predictions[start : start + 256]
            logits = probe.network(*probe.inputs(chosen)).logits
            pieces.append((logits[:, 0] - logits[:, 1]).double().numpy())
    return np.concatenate(pieces)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))


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
