"""The loop that fits a probe's network to labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from uqcalc.errors import LabelError
from uqcalc.probe.checkpoint import Probe
from uqcalc.probe.dataset import Dataset
from uqcalc.probe.network import ProbeNetwork
from uqcalc.probe.recipe import Recipe
from uqcalc.progress import progress_bar


_WINDOW = 16  # batches


def optimise(
    probe: Probe, data: Dataset, reliable: NDArray[np.bool_], recipe: Recipe
) -> list[tuple[float, float]]:
    """Train the network in place, back to the epoch of the lowest validation loss.

    Returns
    -------
    list of (training loss, validation loss)
        One entry an epoch.

    Raises
    ------
    LabelError
        If labels come in one group, or no epoch had a finite loss.
    """
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
    sizes = np.array(loss.sizes)
    best, best_state, curve = np.inf, network.state_dict(), []
    since = 0
    with progress_bar() as progress:
        task = progress.add_task("probe", total=recipe.epochs)
        for _ in range(recipe.epochs):
            batches = _shuffled(fitting, sizes, rng, recipe)
            trained = _epoch(network, optimiser, loss, batches)
            batches = _shuffled(watching, sizes, rng, recipe)
            watched = _evaluate(network, loss, batches)
            schedule.step(watched)
            curve.append((trained, watched))
            progress.update(task, advance=1, description=f"probe, loss {watched:.4f}")
            since += 1
            if watched < best:
                best, since = watched, 0
                best_state = {k: v.clone() for k, v in network.state_dict().items()}
            if since >= recipe.patience:
                break
    if not np.isfinite(best):
        msg = (
            f"validation loss must become finite, got {curve[-1][1]} after "
            f"{len(curve)} epochs; lower the learning rate"
        )
        raise LabelError(msg)
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
    indices: NDArray[np.int64],
    sizes: NDArray[np.int64],
    rng: np.random.Generator,
    recipe: Recipe,
) -> Iterator[NDArray[np.int64]]:
    """Yield batches in random order, of structures of like size.

    Attention pads each batch to its largest structure. Sorting within a window of
    batches leaves little to pad, and who is beside whom stays random.
    """
    order = rng.permutation(indices)
    window = _WINDOW * recipe.batch_size
    batches = []
    for start in range(0, len(order), window):
        near = order[start : start + window]
        near = near[np.argsort(sizes[near], kind="stable")]
        batches += [
            near[first : first + recipe.batch_size]
            for first in range(0, len(near), recipe.batch_size)
        ]
    for i in rng.permutation(len(batches)):
        yield batches[i]


class _Loss:
    """Cross-entropy with inverse-frequency class weights, as in the paper.

    What enters the network is standardised once, not once an epoch.
    """

    def __init__(
        self, probe: Probe, data: Dataset, reliable: NDArray[np.bool_], recipe: Recipe
    ) -> None:
        features, self.sizes, self.scalars, charges = probe.inputs(data.predictions)
        self.features = features.split(self.sizes)
        self.charges = None if charges is None else charges.split(self.sizes)
        self.targets = torch.from_numpy((~reliable).astype(np.int64))
        counts = torch.bincount(self.targets, minlength=2).float()
        self.weights = counts.sum() / (2 * counts)
        self.size_normalised = recipe.size_normalised

    def __call__(
        self, network: ProbeNetwork, indices: NDArray[np.int64]
    ) -> torch.Tensor:
        """Return the mean loss of the structures at ``indices``, shape ()."""
        sizes = [self.sizes[i] for i in indices]
        features = torch.cat([self.features[i] for i in indices])
        charges = None
        if self.charges is not None:
            charges = torch.cat([self.charges[i] for i in indices])
        logits = network(features, sizes, self.scalars[indices], charges).logits
        losses = nn.functional.cross_entropy(
            logits, self.targets[indices], weight=self.weights, reduction="none"
        )
        if self.size_normalised:
            losses = losses / torch.tensor(sizes).sqrt()
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
        value.backward()
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


def margins(probe: Probe, data: Dataset) -> NDArray[np.float64]:
    """Return the scores that the calibration takes, (structures,)."""
    order = np.argsort([len(p.numbers) for p in data.predictions], kind="stable")
    found = np.empty(len(data))
    for start in range(0, len(data), 256):
        rows = order[start : start + 256]
        chosen = [data.predictions[i] for i in rows]
        found[rows] = probe.scores(chosen).double().numpy()
    return found
