"""A distilled head: network and card in one safetensors file."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import primitive_neighbor_list
from torch import nn

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.differentiable import Differentiable, strained
from uqcalc.backbones.fingerprint import same_model
from uqcalc.distillation.card import HeadCard
from uqcalc.errors import ModelError
from uqcalc.files.emptyweights import EmptyWeights
from uqcalc.files.entries import ElementsSeen
from uqcalc.files.tensorfile import load_state


RADIAL = 8


class DirectNetwork(nn.Module):
    """Forces from features: pair terms along bonds, and a mix of vector features.

    ``F_i = sum_j g(h_i, h_j, |r_ij|) r_ij/|r_ij| + sum_c w_c(h_i) v_ic`` with h the
    invariant features, v those that rotate with the structure (if there are any), g
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
        # a constant feature must not dominate if it changes later
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


class DistilledHead:
    """Direct forces for a potential that has none; made by `uqcalc.distill`.

    Experimental: benchmarks/README.md shows where its difference from the conservative
    forces is a better signal than simpler ones, and where it is a worse one.
    """

    def __init__(self, card: HeadCard, network: DirectNetwork) -> None:
        self.card = card
        self.network = network.eval().float().requires_grad_(requires_grad=False)
        self._seen = ElementsSeen(card.elements)

    @property
    def requires(self) -> frozenset[str]:
        """Quantities of a `uqcalc.types.Prediction` that the head reads."""
        vectors = {"vectors"} if self.card.vectors else set()
        return frozenset({"features", *vectors})

    def __call__(self, prediction: Prediction) -> torch.Tensor:
        """Return direct forces in eV/Å, (atoms, 3), on the device of the features."""
        device = prediction.features.device
        geometry = (prediction.positions, prediction.cell, prediction.pbc)
        with torch.no_grad():
            return self._forces(
                prediction.features,
                prediction.vectors,
                torch.as_tensor(prediction.positions, device=device),
                torch.as_tensor(prediction.cell, device=device),
                geometry,
            )

    def differentiable(self, graph: Differentiable, atoms: Atoms) -> torch.Tensor:
        """Return the same forces, differentiable in the leaves of ``graph``."""
        cell = torch.as_tensor(atoms.cell.array).to(graph.positions)
        positions, cell = strained(graph.positions, graph.strain, cell)
        geometry = (atoms.positions, atoms.cell.array, atoms.pbc)
        return self._forces(graph.features, graph.vectors, positions, cell, geometry)

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that this head was not distilled from.

        Raises
        ------
        ModelError
            With both fingerprints.
        """
        if not same_model(backbone.fingerprint, self.card.fingerprint):
            msg = (
                "distilled head must belong to this backbone, got a head of "
                f"{self.card.fingerprint} and the backbone {backbone.fingerprint}; "
                "load the model it was distilled from, or distil another head"
            )
            raise ModelError(msg)

    def unseen_elements(self, numbers: np.ndarray) -> list[str]:
        """Return the symbols in ``numbers`` that it was not distilled on."""
        return self._seen.unseen(numbers)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all.

        Raises
        ------
        RecordError, ModelError
            If the folder does not exist, or the file is something else.
        """
        return self.card.write(path, self.network.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DistilledHead:
        """Read a head file.

        Raises
        ------
        ModelError
            If it is not a head, or is truncated.
        """
        card, tensors = HeadCard.read(path)
        with EmptyWeights():
            network = make_network(card)
        load_state(network, tensors, str(path), ModelError)
        return cls(card, network)

    def _forces(
        self,
        features: torch.Tensor,
        vectors: torch.Tensor | None,
        positions: torch.Tensor,
        cell: torch.Tensor,
        geometry: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> torch.Tensor:
        found = neighbours(*geometry, self.card.cutoff)
        to, of, shifts = (torch.as_tensor(e).to(positions.device) for e in found)
        network = self.network
        if network.mean.device != positions.device:
            network.to(positions.device)
        # bonds in the precision of the positions, all else in that of the head
        bonds = positions[of] - positions[to] + shifts.to(positions) @ cell
        dtype = network.mean.dtype
        if vectors is not None:
            vectors = vectors.to(dtype)
        forces: torch.Tensor = network(
            features.to(dtype), vectors, (to, of), bonds.to(dtype)
        )
        return forces


def make_network(card: HeadCard) -> DirectNetwork:
    """Return the untrained network of a card."""
    return DirectNetwork(
        card.features, card.vectors, cutoff=card.cutoff, hidden=card.hidden
    )
