"""The training loop of the network: from batches to the weights of the best epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import nn

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.prediction import Prediction
from uqcalc.errors import LabelError
from uqcalc.fitting.batches import Feed, passes
from uqcalc.fitting.recipe import Recipe
from uqcalc.labels.dataset import Dataset
from uqcalc.labels.labels import Labels
from uqcalc.labels.shards import like_sized
from uqcalc.probe.card import RAW_ARCHITECTURE, Card
from uqcalc.probe.inputs import Moments, Statistics, chunks
from uqcalc.probe.network import ProbeNetwork, Shape
from uqcalc.probe.official import released_energies
from uqcalc.probe.probe import Probe
from uqcalc.progress import progress_bar


def fit_single(
    data: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
    boundary: float,
) -> tuple[Probe, list[tuple[float, float]]]:
    """Return an uncalibrated probe with attention only, and its losses by epoch."""
    with torch.random.fork_rng(devices=[]):  # torch.manual_seed would seed GPUs too
        torch.default_generator.manual_seed(recipe.seed)
        probe = new_probe(data, backbone, labels, recipe, boundary)
        curve = optimise(probe, data, data.errors <= boundary, recipe)
    return probe, curve


def new_probe(
    data: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
    boundary: float,
) -> Probe:
    """Return a probe with random weights and the input statistics of ``data``.

    Exploded frames are excluded from the statistics, elements and sizes.
    """
    data = data.subset(np.flatnonzero(~data.exploded()))
    raw = recipe.architecture == RAW_ARCHITECTURE
    architecture = RAW_ARCHITECTURE if raw else "standard"
    card = new_card(data, backbone, labels, recipe, boundary, architecture)
    network = ProbeNetwork(Shape.from_dict(card.shape))
    statistics = None
    if not raw:
        statistics = Statistics(card.feature_dim)
        moments = Moments(data.predictions)
        statistics.learn(
            data.predictions,
            moments,
            card.element_energies(),
            sized=card.sized,
        )
    return Probe(card, network, statistics)


def new_card(
    data: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
    boundary: float,
    architecture: str,
) -> Card:
    """Return the card of a probe before the fit."""
    width = data.predictions[0].features.shape[1]
    elements = sorted({int(z) for atoms in data.numbers for z in np.unique(atoms)})
    if architecture == RAW_ARCHITECTURE:
        energies = released_energies(backbone, recipe.atomic_energies)
        _refuse_unknown(energies, elements)
    else:
        energies = atom_energies(data.predictions)
    return Card(
        fingerprint=backbone.fingerprint,
        target=labels.target,
        boundary=boundary,
        percentile=labels.percentile if labels.boundary is None else None,
        architecture=architecture,
        shape=recipe.shape(width, charges="charges" in backbone.provides).to_dict(),
        elements=elements,
        sizes=[int(data.sizes.min()), int(data.sizes.max())],
        suspect=recipe.suspect,
        unreliable=recipe.unreliable,
        atom_energies=energies,
        uqcalc_version=version("uqcalc"),
    )


def _refuse_unknown(energies: dict[str, float], elements: list[int]) -> None:
    missing = [chemical_symbols[z] for z in elements if str(z) not in energies]
    if energies and missing:
        msg = (
            "atomic_energies must hold every element of the labels, got none for "
            f"{missing}; add them to the recipe"
        )
        raise LabelError(msg)


def atom_energies(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return the least-squares energy of each element in the *predicted* energies.

    Atomic number (as a string) -> eV. The fit uses the normal equations, whose size
    does not depend on the number of structures.
    """
    gram, right = np.zeros((119, 119)), np.zeros(119)
    for chunk in chunks(predictions):
        counts = np.array([np.bincount(p.numbers, minlength=119) for p in chunk], float)
        gram += counts.T @ counts
        right += counts.T @ np.array([p.energy for p in chunk])
    present = np.flatnonzero(gram.diagonal())
    # shrinkage makes the solution unique if elements occur only in fixed proportions
    shrunk = gram[np.ix_(present, present)] + 1e-6 * np.eye(len(present))
    solution = np.linalg.solve(shrunk, right[present])
    return {str(z): float(e) for z, e in zip(present, solution, strict=True)}


_MOST_WATCHED = 8192  # largest number of validation structures
_BATCH = 256  # structures in one evaluation
_ROUND = 500  # largest number of steps between two validations


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Classes of the structures, and their split into training and validation.

    Attributes
    ----------
    targets : tensor (structures,)
        0 is reliable, 1 is unreliable.
    fitting, watching : arrays
        Indices of the structures for gradient steps, and of those for validation.
    """

    targets: torch.Tensor
    fitting: NDArray[np.int64]
    watching: NDArray[np.int64]


def train(
    probe: Probe,
    predictions: Sequence[Prediction],
    task: Task,
    recipe: Recipe,
) -> tuple[dict[str, torch.Tensor], list[tuple[float, float]]]:
    """Return the weights with the lowest validation loss, and the losses by epoch."""
    feed = Feed(probe, predictions)
    network = probe.network.train().requires_grad_(requires_grad=True)
    optimiser = torch.optim.AdamW(
        network.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=0.9, patience=5, min_lr=recipe.learning_rate / 10
    )
    loss = _Loss(feed, task, recipe)
    rng = np.random.default_rng([recipe.seed, 1])
    stream = passes(task.fitting, feed, recipe.batch_size, rng)
    watched_batches = like_sized(task.watching, feed.sizes, recipe.batch_size)
    best, best_state, curve = np.inf, _copy(network), []
    since = 0
    with progress_bar() as progress:
        bar = progress.add_task("probe", total=recipe.epochs)
        for steps in _rounds(len(task.fitting), recipe):
            trained = _epoch(network, optimiser, loss, islice(stream, steps))
            watched = _evaluate(network, loss, watched_batches)
            schedule.step(watched)
            curve.append((trained, watched))
            progress.update(bar, advance=1, description=f"probe, loss {watched:.4f}")
            since += 1
            if watched < best:
                best, since, best_state = watched, 0, _copy(network)
            if since >= recipe.patience:
                break
    return best_state, curve


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}


def _rounds(structures: int, recipe: Recipe) -> list[int]:
    """Return the steps of each round: an epoch, or fewer steps with many labels."""
    epoch = -(-structures // recipe.batch_size)
    if recipe.most_steps is None:
        return [epoch] * recipe.epochs
    steps = min(epoch, _ROUND, recipe.most_steps)
    return [steps] * min(recipe.epochs, max(1, recipe.most_steps // steps))


class _Loss:
    """Cross-entropy with inverse-frequency class weights, as in the paper."""

    def __init__(self, feed: Feed, task: Task, recipe: Recipe) -> None:
        self.feed, self.targets = feed, task.targets
        counts = torch.bincount(task.targets, minlength=2).float()
        self.weights = counts.sum() / (2 * counts)
        self.size_normalised = recipe.size_normalised

    def __call__(self, network: nn.Module, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return the mean loss of the structures at ``indices``, shape ()."""
        batch = self.feed.batch(indices)
        losses = nn.functional.cross_entropy(
            network(*batch).logits,
            self.targets[indices],
            weight=self.weights,
            reduction="none",
        )
        if self.size_normalised:
            losses = losses / torch.tensor(batch.sizes).sqrt()
        return losses.sum() / len(indices)


def _epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: _Loss,
    batches: Iterable[NDArray[np.int64]],
) -> float:
    """Make one gradient step for each batch; return the mean loss."""
    network.train()
    values, counts = [], []
    for batch in batches:
        optimiser.zero_grad()
        value = loss(network, batch)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        values.append(value.item())
        counts.append(len(batch))
    return float(np.average(values, weights=counts))


def _evaluate(
    network: nn.Module, loss: _Loss, batches: Sequence[NDArray[np.int64]]
) -> float:
    network.eval()
    with torch.no_grad():
        values = [loss(network, batch).item() for batch in batches]
    return float(np.average(values, weights=[len(batch) for batch in batches]))


def optimise(
    probe: Probe, data: Dataset, reliable: NDArray[np.bool_], recipe: Recipe
) -> list[tuple[float, float]]:
    """Train the network in place; keep the weights of the lowest validation loss.

    Returns
    -------
    list of (training loss, validation loss)
        One entry for each epoch; with many labels, one for each 500 steps.

    Raises
    ------
    LabelError
        If all labels are in one group, or no epoch had a finite validation loss.
    """
    fitting, watching = validation_split(data, np.random.default_rng(recipe.seed))
    task = Task(torch.from_numpy((~reliable).astype(np.int64)), fitting, watching)
    state, curve = train(probe, data.predictions, task, recipe)
    if not np.isfinite([watched for _, watched in curve]).any():
        msg = (
            f"validation loss must become finite, got {curve[-1][1]} after "
            f"{len(curve)} epochs; lower the learning rate"
        )
        raise LabelError(msg)
    probe.network.load_state_dict(state)
    probe.network.eval().requires_grad_(requires_grad=False)
    return curve


def validation_split(
    data: Dataset, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return structures for gradient steps, and those of a tenth of the groups."""
    groups = sorted(set(data.groups))
    if len(groups) < 2:
        msg = (
            f"training labels must come in at least 2 groups, got {len(groups)}; pass "
            "no group key where frames are independent"
        )
        raise LabelError(msg)
    chosen = rng.permutation(len(groups))[: max(1, len(groups) // 10)]
    held = {groups[i] for i in chosen}
    watched = np.array([group in held for group in data.groups])
    watching = np.flatnonzero(watched)
    if len(watching) > _MOST_WATCHED:
        watching = np.sort(rng.permutation(watching)[:_MOST_WATCHED])
    return np.flatnonzero(~watched), watching


def margins(probe: Probe, data: Dataset) -> NDArray[np.float64]:
    """Return the uncalibrated scores, (structures,): larger is more reliable."""
    found = np.empty(len(data))
    for rows in like_sized(np.arange(len(data)), data.sizes, _BATCH):
        chosen = [data.predictions[i] for i in rows]
        found[rows] = probe.scores(chosen).double().numpy()
    return found
