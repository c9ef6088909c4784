"""Training of EGNNs: deterministic with the squared error, perturbed with the CRPS."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from particles.egnn import EGNN
from uqcalc.perturbation.layers import Layer
from uqcalc.perturbation.noise import Noise
from uqcalc.statistics.crps import fair_crps


BATCH = 100
DIMENSION = 32


@dataclass(frozen=True)
class Task:
    """Start and end of some systems: inputs of the network, and its target."""

    charges: torch.Tensor
    places: torch.Tensor
    velocities: torch.Tensor
    target: torch.Tensor

    def __len__(self) -> int:
        return len(self.charges)

    def take(self, rows: torch.Tensor) -> Task:
        """Return some systems."""
        return Task(
            self.charges[rows],
            self.places[rows],
            self.velocities[rows],
            self.target[rows],
        )


@dataclass(frozen=True)
class Settings:
    """How long and how fast a network is trained."""

    epochs: int
    members: int = 4
    rate: float = 3e-3  # the largest; it falls to zero along a cosine
    decay: float = 1e-12
    dropout: float = 0.0
    check_every: int = 10


class Perturbed(nn.Module):
    """An EGNN with one noise vector for each system and member."""

    def __init__(self, network: EGNN) -> None:
        super().__init__()
        self.network = network
        found = dict(network.named_modules())
        self.layers = [
            Layer(name, found[name], slice(0, found[name].out_features))
            for name in network.perturbed()
        ]
        self.noise = Noise(DIMENSION, [layer.width for layer in self.layers])

    def members(
        self, task: Task, count: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the members, (members, systems, particles, 3)."""
        systems = len(task)
        # each system of each member has its own vector: "members" of the batch
        draws = torch.randn(count * systems, DIMENSION, generator=generator)
        with self.noise.added(self.layers, draws):
            out = self.network(
                task.charges.repeat(count, 1),
                task.places.repeat(count, 1, 1),
                task.velocities.repeat(count, 1, 1),
            )
        return out.view(count, systems, *out.shape[1:])


def batches(task: Task, generator: torch.Generator) -> Iterator[Task]:
    """Yield the systems in random order."""
    for rows in torch.randperm(len(task), generator=generator).split(BATCH):
        yield task.take(rows)


def train_deterministic(
    train: Task, held: Task, settings: Settings, seed: int
) -> tuple[EGNN, dict[str, float]]:
    """Return a network trained with the squared error, and facts of the training."""
    with seeded(seed):
        network = EGNN(dropout=settings.dropout)

        def loss(batch: Task, _: torch.Generator) -> torch.Tensor:
            out = network(batch.charges, batch.places, batch.velocities)
            return (out - batch.target).pow(2).mean()

        facts = _optimise(network, loss, (train, held), settings, seed)
    return network, facts


def train_perturbed(
    train: Task, held: Task, settings: Settings, seed: int
) -> tuple[Perturbed, dict[str, float]]:
    """Return a perturbed network trained with the fair CRPS from the start."""
    with seeded(seed):
        network = Perturbed(EGNN())

        def loss(batch: Task, generator: torch.Generator) -> torch.Tensor:
            count = settings.members if network.training else 10
            members = network.members(batch, count, generator)
            return fair_crps(members, batch.target).mean()

        facts = _optimise(network, loss, (train, held), settings, seed)
    return network, facts


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw the initial weights from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _optimise(network, loss, sets, settings: Settings, seed: int) -> dict[str, float]:
    """Train with Adam; keep the weights of the best score on the held-out systems."""
    train, held = sets
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(
        network.parameters(), lr=settings.rate, weight_decay=settings.decay
    )
    steps = settings.epochs * math.ceil(len(train) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=settings.rate, total_steps=steps, pct_start=0.1
    )
    best, kept = float("inf"), copy.deepcopy(network.state_dict())
    start = time.perf_counter()
    for epoch in range(1, settings.epochs + 1):
        network.train()
        for batch in batches(train, generator):
            optimiser.zero_grad()
            loss(batch, generator).backward()
            optimiser.step()
            schedule.step()
        if epoch % settings.check_every:
            continue
        score = _score(network, loss, held, seed)
        if score < best:
            best = score
            kept = copy.deepcopy(network.state_dict())
        if epoch % (5 * settings.check_every) == 0:
            print(f"  epoch {epoch}: {score:.5f}, best {best:.5f}", flush=True)
    network.load_state_dict(kept)
    network.eval()
    return {
        "epochs": settings.epochs,
        "held_out": best,
        "minutes": (time.perf_counter() - start) / 60,
    }


def _score(network, loss, held: Task, seed: int) -> float:
    network.eval()
    fixed = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        rows = torch.arange(len(held)).split(4 * BATCH)
        scores = [(float(loss(held.take(r), fixed)), len(r)) for r in rows]
    return sum(s * n for s, n in scores) / len(held)
