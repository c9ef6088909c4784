"""The readout: equivariant by construction, whatever invariant features it reads."""

from __future__ import annotations

import math

import numpy as np
import torch
from ase.neighborlist import primitive_neighbor_list
from torch import nn


RADIAL = 8


class DirectNetwork(nn.Module):
    """Forces from features: pair terms along bonds, and a mix of vector features.

    ``F_i = sum_j g(h_i, h_j, |r_ij|) r_ij/|r_ij| + sum_c w_c(h_i) v_ic`` with h the
    invariant features, v those that turn with the structure (where there are any), g
    and w small networks. Rotating a structure rotates F; translating it changes
    nothing.

    Parameters
    ----------
    features, vectors : int
        Width of h, and channels of v (0 where there is none).
    cutoff : float
        In Å; g goes to zero there with two continuous derivatives.
    hidden : int
        Width of both networks.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    vector_scale: torch.Tensor
    force_scale: torch.Tensor

    def __init__(
        self, features: int, vectors: int, *, cutoff: float, hidden: int = 64
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.receiver = nn.Linear(features, hidden)
        self.sender = nn.Linear(features, hidden, bias=False)
        self.radial = nn.Linear(RADIAL, hidden)
        self.pair = nn.Sequential(
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
        self.mix: nn.Module | None = None
        if vectors:
            self.mix = nn.Sequential(
                nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, vectors)
            )
            self.linear = nn.Parameter(torch.zeros(vectors))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.register_buffer("vector_scale", torch.ones(max(vectors, 1)))
        self.register_buffer("force_scale", torch.ones(()))

    def forward(
        self,
        features: torch.Tensor,
        vectors: torch.Tensor | None,
        edges: tuple[torch.Tensor, torch.Tensor],
        bonds: torch.Tensor,
    ) -> torch.Tensor:
        """Return forces in eV/Å, (atoms, 3).

        ``edges`` are (receivers, senders), (edges,) each; ``bonds`` lead from receiver
        to sender, (edges, 3) in Å.
        """
        h = (features - self.mean) / self.deviation
        receivers, senders = edges
        lengths = bonds.norm(dim=1, keepdim=True)
        basis, envelope = _radial_basis(lengths, self.cutoff)
        mixed = self.receiver(h)[receivers] + self.sender(h)[senders]
        mixed = nn.functional.silu(mixed) * self.radial(basis)
        pulls = self.pair(mixed) * envelope * bonds / lengths
        forces = torch.zeros(len(h), 3).to(pulls).index_add(0, receivers, pulls)
        if self.mix is not None and vectors is not None:
            weights = (self.mix(h) + self.linear) / self.vector_scale
            forces = forces + (weights[..., None] * vectors).sum(dim=1)
        return forces * self.force_scale

    def standardise(
        self, features: torch.Tensor, vectors: torch.Tensor | None, forces: torch.Tensor
    ) -> None:
        """Learn the scales of inputs and output, (rows, ...) each."""
        self.mean.copy_(features.mean(dim=0))
        # a constant feature says nothing now, and must not shout when it moves later
        spread = features.std(dim=0)
        self.deviation.copy_(spread.clamp_min(1e-2 * float(spread.mean()) + 1e-12))
        self.force_scale.copy_(forces.square().mean().sqrt().clamp_min(1e-6))
        if vectors is not None:
            size = vectors.square().mean(dim=(0, 2)).sqrt()
            self.vector_scale.copy_(size.clamp_min(1e-6))


def neighbours(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return receivers, senders (edges,) and cell shifts of the senders, (edges, 3)."""
    receivers, senders, shifts = primitive_neighbor_list(
        "ijS", pbc, cell, positions, cutoff, use_scaled_positions=False
    )
    return receivers, senders, shifts


def _radial_basis(
    lengths: torch.Tensor, cutoff: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return spherical Bessel functions and a smooth envelope of lengths (edges, 1).

    Gasteiger et al. 2020 (arXiv:2003.03123), equations 7 and 8 with p = 6.
    """
    x = lengths / cutoff
    order = torch.arange(1, RADIAL + 1).to(lengths)
    basis = math.sqrt(2.0 / cutoff) * torch.sin(order * math.pi * x) / lengths
    envelope = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    return basis, envelope * (x < 1)
