"""Passes that keep their graph, for gradients by positions or by parameters.

The steps of a simulation do not use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from ase import Atoms


@dataclass(frozen=True, slots=True, eq=False)
class Differentiable:
    """Results of a model for one geometry, as functions of positions and strain.

    Attributes
    ----------
    positions : tensor (atoms, 3)
        In Å, a leaf of the graph.
    strain : tensor (3, 3)
        Zero, a leaf of the graph: positions and cell are multiplied by the identity
        plus its symmetric part.
    energy : tensor ()
        In eV.
    features : tensor (atoms, dim)
    conservative_forces : tensor (atoms, 3)
        -dE/dr in eV/Å, which can be differentiated once more.
    direct_forces : tensor (atoms, 3) or None
        In eV/Å, if the model has a head for them.
    vectors : tensor (atoms, channels, 3) or None
        Features that rotate with the structure.
    projected : frozenset of str
        Parts that the head removes from the direct forces, as in a `Prediction`.
    """

    positions: torch.Tensor
    strain: torch.Tensor
    energy: torch.Tensor
    features: torch.Tensor
    conservative_forces: torch.Tensor
    direct_forces: torch.Tensor | None = None
    vectors: torch.Tensor | None = None
    projected: frozenset[str] = frozenset()


@runtime_checkable
class CanDifferentiate(Protocol):
    """A backbone whose results can be differentiated."""

    def differentiable(self, atoms: Atoms) -> Differentiable:
        """Evaluate ``atoms`` and keep the graph."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Trainable:
    """Results of a batch of structures, as functions of the model's parameters.

    Attributes
    ----------
    energies : tensor (copies, structures)
        In eV.
    forces : tensor (copies, atoms, 3)
        In eV/Å, of all structures in order.
    stresses : tensor (copies, structures, 3, 3) or None
        In eV/Å³, if they were requested.
    """

    energies: torch.Tensor
    forces: torch.Tensor
    stresses: torch.Tensor | None = None

    def detached(self) -> Trainable:
        """Return the same numbers without their graph."""
        stresses = None if self.stresses is None else self.stresses.detach()
        return Trainable(self.energies.detach(), self.forces.detach(), stresses)

    @staticmethod
    def joined(
        parts: Sequence[Trainable], *, of: Literal["copies", "structures"]
    ) -> Trainable:
        """Join the results of passes for further copies, or further structures."""
        if len(parts) == 1:
            return parts[0]
        axis = 0 if of == "copies" else 1
        stresses = [part.stresses for part in parts if part.stresses is not None]
        return Trainable(
            torch.cat([part.energies for part in parts], dim=axis),
            torch.cat([part.forces for part in parts], dim=axis),
            torch.cat(stresses, dim=axis) if len(stresses) == len(parts) else None,
        )


@runtime_checkable
class CanTrain(Protocol):
    """A backbone whose results can be differentiated by the model's parameters."""

    def trainable(
        self, frames: Sequence[Atoms], *, copies: int = 1, stress: bool = False
    ) -> Trainable:
        """Evaluate ``copies`` of all ``frames`` in one batch and keep the graph.

        The rows of the batch are those of all frames for the first copy, then for the
        second copy, and so on.
        """
        ...


def strained(
    positions: torch.Tensor, strain: torch.Tensor, *vectors: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Apply the symmetric part of ``strain`` to row vectors, each (..., 3)."""
    symmetric = (strain + strain.mT) / 2
    return tuple(rows + rows @ symmetric for rows in (positions, *vectors))
