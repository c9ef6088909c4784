"""A distilled head: network and card in one safetensors file."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.differentiable import Differentiable, strained
from uqcalc.backbones.fingerprint import same_model
from uqcalc.distillation.card import FILE, SCHEMA, HeadCard
from uqcalc.distillation.network import DirectNetwork, neighbours
from uqcalc.errors import ModelError
from uqcalc.files.entries import ElementsSeen
from uqcalc.files.nodraws import NoDraws
from uqcalc.files.tensorfile import load_state


class DistilledHead:
    """Direct forces for a potential that has none; made by `uqcalc.distill`.

    Experimental: see benchmarks/README.md for where its disagreement with the
    conservative forces tells more, and where less, than simpler signals.
    """

    def __init__(self, card: HeadCard, network: DirectNetwork) -> None:
        self.card = card
        self.network = network.eval().float().requires_grad_(requires_grad=False)
        self._seen = ElementsSeen(card.elements)

    @property
    def requires(self) -> frozenset[str]:
        """What it reads of a `uqcalc.Prediction`."""
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
        """Return the same with the graph to ``graph``'s leaves."""
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
        card = asdict(self.card)
        card["schema"] = max(self.card.schema, SCHEMA)  # of the file that is written
        return FILE.write(path, self.network.state_dict(), card)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DistilledHead:
        """Read a head file.

        Raises
        ------
        ModelError
            If it is not a head, or is truncated.
        """
        tensors, entries = FILE.read(path)
        card = HeadCard.from_dict(entries)
        with NoDraws():
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
        # bonds in the precision of the positions, the rest in the head's
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
