"""A region: the atoms of a structure that a verdict is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from ase.geometry import complete_cell
from numpy.typing import NDArray

from uqcalc.backbones.prediction import Prediction
from uqcalc.probe.inputs import on_device


if TYPE_CHECKING:
    Chosen: TypeAlias = Sequence[int] | Sequence[bool] | NDArray[np.generic]
else:
    Chosen = Sequence  # one name at run time, for signatures


# Å; the cutoff of usual potentials: farther atoms have no direct part in the features.
REACH = 6.0
_BLOCK = 64  # chosen atoms whose distances are in memory together


class Region:
    """Chosen atoms of each structure: an adsorbate, a defect, a QM zone.

    Parameters
    ----------
    atoms : sequence of int or of bool
        Distinct indices from 0, or a mask with one entry for each atom.

    Raises
    ------
    ValueError
        If no atom is chosen, or if an index is negative or given twice.
    """

    def __init__(self, atoms: Chosen) -> None:
        given = np.asarray(atoms)
        self._mask_size = len(given) if given.dtype == bool else None
        if given.ndim != 1 or not (given.size == 0 or given.dtype.kind in "iub"):
            msg = (
                "atoms must be a list of indices or a boolean mask, got an array of "
                f"shape {given.shape} and type {given.dtype}; write for example "
                "atoms=[12, 13, 14]"
            )
            raise ValueError(msg)
        chosen = np.flatnonzero(given) if given.dtype == bool else np.sort(given)
        if len(chosen) == 0:
            msg = "atoms must choose at least one atom, got none; leave atoms out"
            raise ValueError(msg)
        if chosen[0] < 0 or len(np.unique(chosen)) < len(chosen):
            msg = (
                "atoms must be distinct indices of at least 0, got "
                f"{given.tolist()[:20]}; count from the first atom, which is 0"
            )
            raise ValueError(msg)
        self._chosen = chosen.astype(np.int64)
        self.atoms: tuple[int, ...] = tuple(self._chosen.tolist())

    def __len__(self) -> int:
        """Return the number of chosen atoms."""
        return len(self.atoms)

    def check(self, count: int) -> None:
        """Refuse a structure of ``count`` atoms that does not fit.

        Raises
        ------
        ValueError
            If an index is out of range, or if a mask has another length.
        """
        if self._mask_size not in {None, count}:
            msg = (
                "mask of atoms must have one entry for each atom, got a mask of "
                f"{self._mask_size} entries for a structure of {count} atoms; give "
                "this structure a calculator with its own atoms"
            )
            raise ValueError(msg)
        if self.atoms[-1] >= count:
            msg = (
                f"atoms must be indices below the number of atoms, which is {count}, "
                f"got {self.atoms[-1]}; give this structure a calculator with its own "
                "atoms"
            )
            raise ValueError(msg)

    def around(self, prediction: Prediction) -> NDArray[np.int64]:
        """Return the atoms within 6 Å of a chosen atom, ascending.

        The nearest image counts along periodic directions (exact for cells that are not
        much skewed).

        Raises
        ------
        ValueError
            As `check`.
        """
        self.check(len(prediction.numbers))
        places, periodic = prediction.positions, prediction.pbc
        cell = complete_cell(prediction.cell)
        inverse = np.linalg.pinv(cell)
        near = np.zeros(len(places), dtype=bool)
        near[self._chosen] = True  # also at positions that are NaN
        for start in range(0, len(self._chosen), _BLOCK):
            block = self._chosen[start : start + _BLOCK]
            apart = places[block][:, None] - places[None]
            if periodic.any():
                scaled = apart @ inverse
                apart = (scaled - np.round(scaled) * periodic) @ cell
            near |= (np.einsum("ijk,ijk->ij", apart, apart) <= REACH**2).any(axis=0)
        return np.flatnonzero(near).astype(np.int64)

    def part(
        self,
        prediction: Prediction,
        atom_energies: np.ndarray,
        atoms: NDArray[np.int64] | None = None,
    ) -> Prediction:
        """Return the rows of the chosen or of other ``atoms`` as a prediction.

        Its energy is such that the energy per atom, after subtraction of
        ``atom_energies`` (119,) in eV, is that of the whole structure. Only what a
        probe reads is reduced.

        Raises
        ------
        ValueError
            As `check`.
        """
        numbers = prediction.numbers
        chosen = self._chosen if atoms is None else atoms
        self.check(len(numbers))
        rest = (prediction.energy - atom_energies[numbers].sum()) / len(numbers)
        own = numbers[chosen]
        features, charges = prediction.features, prediction.charges
        rows = on_device(features.device, chosen)
        return replace(
            prediction,
            numbers=own,
            positions=prediction.positions[chosen],
            forces=prediction.forces[chosen],
            features=features[rows],
            charges=None if charges is None else charges[rows.to(charges.device)],
            energy=float(rest * len(own) + atom_energies[own].sum()),
        )
