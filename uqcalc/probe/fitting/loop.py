"""The training loop: batches in, the weights of the best epoch out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from uqcalc.backbones.prediction import Prediction
from uqcalc.probe.checkpoint import Probe
from uqcalc.probe.fitting.feeding import Feed, like_sized, passes
from uqcalc.probe.recipe import Recipe
from uqcalc.progress import progress_bar


_ROUND = 500  # steps after which a pass over many labels is interrupted and watched


class Engine(Protocol):
    """What the loop asks of where it runs: one process here, or several."""

    rank: int
    size: int
    device: torch.device

    def prepare(
        self, network: nn.Module, optimiser: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return both as they are to be used."""

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients, averaged over the processes."""

    def clip(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Bound the norm of the gradients by 1."""

    def total(self, values: torch.Tensor) -> list[float]:
        """Return values summed over the processes."""


class Alone:
    """One process, on the CPU."""

    rank, size = 0, 1
    device = torch.device("cpu")

    def prepare(
        self, network: nn.Module, optimiser: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return both as they are."""
        return network, optimiser

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients."""
        loss.backward()

    def clip(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """Bound the norm of the gradients by 1."""
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)

    def total(self, values: torch.Tensor) -> list[float]:
        """Return values as numbers."""
        return [float(value) for value in values]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What is to be learned.

    Attributes
    ----------
    targets : tensor (structures,)
        1 is unreliable.
    fitting, watching : arrays
        Structures that steps are made by, and others that tell when to stop.
    """

    targets: torch.Tensor
    fitting: NDArray[np.int64]
    watching: NDArray[np.int64]


def train(
    engine: Engine,
    probe: Probe,
    predictions: Sequence[Prediction],
    task: Task,
    recipe: Recipe,
) -> tuple[dict[str, torch.Tensor], list[tuple[float, float]]]:
    """Return the weights of the lowest validation loss, and the losses by epoch."""
    feed = Feed(probe, predictions)
    raw = probe.network.train().requires_grad_(requires_grad=True)
    optimiser = torch.optim.AdamW(
        raw.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=0.9, patience=5, min_lr=recipe.learning_rate / 10
    )
    network, stepper = engine.prepare(raw, optimiser)
    loss = _Loss(engine, feed, task, recipe)
    rng = np.random.default_rng([recipe.seed, 1])
    stream = passes(task.fitting, feed, recipe.batch_size, rng)
    watched_batches = like_sized(task.watching, feed.sizes, recipe.batch_size)
    best, best_state, curve = np.inf, _copy(raw), []
    since = 0
    with progress_bar() as progress:
        bar = progress.add_task("probe", total=recipe.epochs)
        for steps in _rounds(len(task.fitting), recipe):
            trained = _epoch(network, stepper, loss, islice(stream, steps))
            watched = _evaluate(network, loss, watched_batches)
            schedule.step(watched)
            curve.append((trained, watched))
            progress.update(bar, advance=1, description=f"probe, loss {watched:.4f}")
            since += 1
            if watched < best:
                best, since, best_state = watched, 0, _copy(raw)
            if since >= recipe.patience:
                break
    return best_state, curve


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}


def _rounds(structures: int, recipe: Recipe) -> list[int]:
    """Return the steps of each round; one is an epoch but where labels are many."""
    epoch = -(-structures // recipe.batch_size)
    if recipe.most_steps is None:
        return [epoch] * recipe.epochs
    steps = min(epoch, _ROUND, recipe.most_steps)
    return [steps] * min(recipe.epochs, max(1, recipe.most_steps // steps))


class _Loss:
    """Cross-entropy with inverse-frequency class weights, as in the paper.

    Each process takes its share of a batch. Its loss is scaled so that the average
    over the processes is that of the batch.
    """

    def __init__(self, engine: Engine, feed: Feed, task: Task, recipe: Recipe) -> None:
        self.engine, self.feed = engine, feed
        self.targets = task.targets
        counts = torch.bincount(task.targets, minlength=2).float()
        self.weights = (counts.sum() / (2 * counts)).to(engine.device)
        self.size_normalised = recipe.size_normalised

    def __call__(self, network: nn.Module, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return the mean loss of the structures at ``indices``, shape ()."""
        engine = self.engine
        mine = indices[engine.rank :: engine.size]
        absent = len(mine) == 0  # every process must take part in every step
        rows = indices[:1] if absent else mine
        batch = self.feed.batch(rows).to(engine.device)
        losses = nn.functional.cross_entropy(
            network(*batch).logits,
            self.targets[rows].to(engine.device),
            weight=self.weights,
            reduction="none",
        )
        if self.size_normalised:
            sizes = torch.tensor(batch.sizes, device=engine.device)
            losses = losses / sizes.sqrt()
        share = 0.0 if absent else engine.size / len(indices)
        return losses.sum() * share


def _epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: _Loss,
    batches: Iterable[NDArray[np.int64]],
) -> float:
    network.train()
    seen = _Mean(loss.engine)
    for batch in batches:
        optimiser.zero_grad()
        value = loss(network, batch)
        loss.engine.backward(value)
        loss.engine.clip(network, optimiser)
        optimiser.step()
        seen.add(value.detach(), len(batch))
    return seen.value()


def _evaluate(
    network: nn.Module, loss: _Loss, batches: Iterable[NDArray[np.int64]]
) -> float:
    network.eval()
    seen = _Mean(loss.engine)
    with torch.no_grad():
        for batch in batches:
            seen.add(loss(network, batch), len(batch))
    return seen.value()


class _Mean:
    """A mean over batches that stays on the device until it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sum = torch.zeros((), dtype=torch.float64, device=engine.device)
        self._count = 0

    def add(self, loss: torch.Tensor, count: int) -> None:
        self._sum += loss * count
        self._count += count

    def value(self) -> float:
        mean = self._sum / (self._count * self._engine.size)
        return self._engine.total(mean[None])[0]
