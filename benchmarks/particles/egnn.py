"""An E(n)-equivariant graph network with velocities (Satorras et al. 2021).

arXiv:2102.09844, section 4.1: 4 layers of width 64. All graphs are complete graphs of
equal size, so that the pairs of a batch are one array: the first linear layer of the
edges is a sum of a layer of receivers, one of senders and one of pairs.
"""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """One layer: messages on pairs, new positions and new features of the nodes."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.receiver = nn.Linear(width, width)
        self.sender = nn.Linear(width, width, bias=False)
        self.pair = nn.Linear(3, width, bias=False)
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
        _as_one_layer(self.receiver, self.sender, self.pair)

    def forward(
        self,
        features: torch.Tensor,
        places: torch.Tensor,
        velocities: torch.Tensor,
        given: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new features and positions.

        ``features`` are (systems, particles, width), ``places`` and ``velocities``
        (systems, particles, 3), ``given`` (systems, particles, others, 2).
        """
        systems, particles, width = features.shape
        rows = features.flatten(0, 1)  # layers with noise give one row for each node
        between = places[:, :, None] - others(places)
        square = between.square().sum(-1, keepdim=True)
        messages = self.edge_out(
            self.receiver(rows).view(systems, particles, 1, width)
            + others(self.sender(features))
            + self.pair(torch.cat([square, given], -1))
        )
        moved = (between * self.shift(messages)).mean(2)
        gathered = messages.sum(2).flatten(0, 1)
        update = self.node_out(self.node(torch.cat([rows, gathered], 1)))
        places = places + moved + self.speed(features) * velocities
        return features + update.view_as(features), places


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
        between = places[:, :, None] - others(places)
        product = charges[:, :, None, None] * others(charges[..., None])
        given = torch.cat([product, between.square().sum(-1, keepdim=True)], -1)
        features = self.embedding(velocities.norm(dim=-1, keepdim=True))
        x = places
        for block in self.blocks:
            features, x = block(features, x, velocities, given)
        return x

    def perturbed(self) -> list[str]:
        """Return the names of the layers that take noise.

        The noise of the layer of receivers reaches each pair once.
        """
        return [
            f"blocks.{index}.{part}"
            for index in range(len(self.blocks))
            for part in ("receiver", "node")
        ]


def others(values: torch.Tensor) -> torch.Tensor:
    """Return the values of all other particles, (systems, particles, others, ...)."""
    particles = values.shape[1]
    index = [[j for j in range(particles) if j != i] for i in range(particles)]
    chosen = torch.tensor(index, device=values.device).flatten()
    return values.index_select(1, chosen).unflatten(1, (particles, particles - 1))


def _as_one_layer(*parts: nn.Linear) -> None:
    """Draw the weights of layers that are summed as those of one layer."""
    bound = sum(part.in_features for part in parts) ** -0.5
    for part in parts:
        nn.init.uniform_(part.weight, -bound, bound)
        if part.bias is not None:
            nn.init.uniform_(part.bias, -bound, bound)
