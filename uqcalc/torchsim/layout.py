"""Which atoms belong to which system: on the host while a batch stays the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch


class Layout:
    """Sizes, elements and fixed atoms of the systems of a batch.

    Integrators and optimisers of TorchSim change positions and cells of a state, but
    not these; so they are copied to the host once for each batch.

    Parameters
    ----------
    state : torch_sim SimState

    Attributes
    ----------
    system, numbers : integer tensors (atoms,)
        Index of the system, and atomic number, of each atom; on the device.
    sizes : tuple of int
        Atoms of each system.
    rows : list of slice
        Rows of the atoms of each system.
    elements : list of array
        Atomic numbers of each system, on the host.
    pbc : array (3,) of bool
        TorchSim has one for all systems of a batch.
    fixed : list of array or None
        Mask of the fixed atoms of each system; None if none is fixed.
    """

    def __init__(self, state: Any) -> None:
        self._of = _marks(state)
        self.system = state.system_idx.long()
        self.numbers = state.atomic_numbers.long()
        counts = np.bincount(self.system.cpu().numpy())
        self.sizes = tuple(int(n) for n in counts)
        ends = np.cumsum([0, *self.sizes]).tolist()
        self.rows = [slice(*pair) for pair in pairwise(ends)]
        numbers = self.numbers.cpu().numpy()
        self.elements = [numbers[rows] for rows in self.rows]
        self.pbc = state.pbc.cpu().numpy().astype(bool)
        held = np.zeros(len(numbers), dtype=bool)
        for constraint in state.constraints:
            if type(constraint).__name__ == "FixAtoms":
                held[constraint.atom_idx.cpu().numpy()] = True
        self.fixed = [held[rows] if held[rows].any() else None for rows in self.rows]

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def atoms(self) -> int:
        """Atoms of all systems."""
        return sum(self.sizes)

    def fits(self, state: Any) -> bool:
        """Return whether this is still the layout of a state, without a transfer."""
        return all(
            one is other and version == now
            for (one, version), (other, now) in zip(
                self._of, _marks(state), strict=True
            )
        )


def _marks(state: Any) -> list[tuple[Any, int]]:
    """Return what a layout depends on, each with a count of its changes in place."""
    tensors = (state.system_idx, state.atomic_numbers, state.pbc)
    marks: list[tuple[Any, int]] = [(t, _version(t)) for t in tensors]
    return [*marks, (state.constraints, len(state.constraints))]


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else int(tensor._version)
