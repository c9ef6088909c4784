"""An E(n)-equivariant graph network with velocities (Satorras et al. 2021).

arXiv:2102.09844, section 4.1: 4 layers of width 64. All graphs are complete graphs of
equal size, so that the pairs of a batch are one array.
"""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """One layer: messages on pairs, new positions and new features of the nodes."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.edge = nn.Linear(2 * width + 3, width)
        self.edge_out = nn.Sequential(
            nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.SiLU()
        )
        self.node = nn.Linear(2 * width, width)
        self.node_out = nn.Sequential(
            nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        last = nn.Linear(width, 1, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=0.001)
        self.shift = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)
        self.speed = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(
        self,
        features: torch.Tensor,
        places: torch.Tensor,
        velocities: torch.Tensor,
        pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new features (nodes, width) and positions (nodes, 3)."""
        to, of, given = pairs
        between = places[to] - places[of]
        square = (between**2).sum(1, keepdim=True)
        read = torch.cat([features[to], features[of], square, given], dim=1)
        messages = self.edge_out(self.edge(read))
        count = len(features)
        zero = torch.zeros(count, 3).to(places)
        moved = zero.index_add(0, to, between * self.shift(messages))
        degree = len(to) // count
        places = places + moved / degree + self.speed(features) * velocities
        gathered = torch.zeros(count, messages.shape[1]).to(messages)
        gathered = gathered.index_add(0, to, messages)
        update = self.node_out(self.node(torch.cat([features, gathered], dim=1)))
        return features + update, places


class EGNN(nn.Module):
    """Positions at a later time from positions, velocities and charges."""

    def __init__(self, width: int = 64, layers: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))

    def forward(
        self, charges: torch.Tensor, places: torch.Tensor, velocities: torch.Tensor
    ) -> torch.Tensor:
        """Return positions (systems, particles, 3) from arrays of these shapes.

        ``charges`` are (systems, particles).
        """
        systems, particles = charges.shape
        to, of = complete(systems, particles)
        x, v = places.reshape(-1, 3), velocities.reshape(-1, 3)
        q = charges.reshape(-1)
        distance = (x[to] - x[of]).pow(2).sum(1, keepdim=True)
        given = torch.cat([(q[to] * q[of])[:, None], distance], dim=1)
        features = self.embedding(v.norm(dim=1, keepdim=True))
        for block in self.blocks:
            features, x = block(features, x, v, (to, of, given))
        return x.view(systems, particles, 3)

    def perturbed(self) -> list[str]:
        """Return the names of the layers that take noise."""
        return [
            f"blocks.{index}.{part}"
            for index in range(len(self.blocks))
            for part in ("edge", "node")
        ]


def complete(systems: int, particles: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return receivers and senders of all pairs within each system."""
    one = [(i, j) for i in range(particles) for j in range(particles) if i != j]
    pairs = torch.tensor(one)
    starts = torch.arange(systems)[:, None] * particles
    to = (pairs[None, :, 0] + starts).reshape(-1)
    of = (pairs[None, :, 1] + starts).reshape(-1)
    return to, of
