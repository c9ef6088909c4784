"""Checks before a pass: structures that no model can evaluate are refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from uqcalc.errors import BackboneError


DENSEST = 10  # atoms/Å³
FARTHEST = 1e6  # Å; in single precision neighbouring numbers are 0.06 Å apart here
# Å; two atoms whose distance is beyond a cutoff of 2 Å or more come so little closer
# that the number of neighbours at most doubles.
_LITTLE_MOVED = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """A structure that passed all checks with a wide margin.

    A step of dynamics moves it a little, and the slower checks need not run again.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    masses: np.ndarray | None

    @classmethod
    def of(cls, atoms: Atoms) -> Passed:
        """Return a copy of what the checks read."""
        masses = atoms.arrays.get("masses")
        return cls(
            atoms.numbers.copy(),
            atoms.positions.copy(),
            atoms.cell.array.copy(),
            atoms.pbc.copy(),
            None if masses is None else masses.copy(),
        )

    def covers(self, atoms: Atoms) -> bool:
        """Return whether ``atoms`` differ only by displacements of at most 0.25 Å."""
        masses = atoms.arrays.get("masses")
        if not (
            len(self.numbers) == len(atoms)
            and (self.numbers == atoms.numbers).all()
            and (self.cell == atoms.cell.array).all()
            and (self.pbc == atoms.pbc).all()
            and _same(self.masses, masses)
        ):
            return False
        apart = atoms.positions - self.positions
        return bool(np.einsum("ij,ij->i", apart, apart).max() <= _LITTLE_MOVED**2)


def _same(ours: np.ndarray | None, theirs: np.ndarray | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return np.array_equal(ours, theirs)


def check_finite(atoms: Atoms) -> None:
    """Raise BackboneError if positions or cell are NaN, infinite or far too large."""
    # otherwise some models give results, and neighbour lists may fill the memory
    if not np.all(np.isfinite(atoms.cell.array)):
        msg = "cell must be finite, got NaN or infinity; take an earlier frame"
        raise BackboneError(msg)
    if not np.all(np.isfinite(atoms.positions)):
        broken = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
        msg = (
            "positions must be finite, got NaN or infinity at atoms "
            f"{broken[:5].tolist()}; take an earlier frame"
        )
        raise BackboneError(msg)
    reach = float(np.abs(atoms.positions).max(initial=0.0))
    if reach > FARTHEST:
        msg = (
            f"coordinates must be at most {FARTHEST:g} Å, got {reach:.3g} Å: single "
            "precision has no digits left for distances; call atoms.wrap() for a "
            "crystal, atoms.center(about=0) for a molecule, or give lengths in Å"
        )
        raise BackboneError(msg)


def check_atoms(atoms: Atoms) -> None:
    """Raise BackboneError for invalid atomic numbers and masses."""
    numbers = atoms.numbers
    odd = np.flatnonzero((numbers < 1) | (numbers >= len(chemical_symbols)))
    if len(odd):
        got = [int(numbers[i]) for i in odd[:5]]
        ghosts = " (0 is a ghost atom, 'X')" if 0 in got else ""
        msg = (
            f"atomic numbers must be 1 to {len(chemical_symbols) - 1}, got {got} at "
            f"atoms {odd[:5].tolist()}{ghosts}; remove these atoms"
        )
        raise BackboneError(msg)
    if not atoms.has("masses"):
        return
    masses = atoms.get_masses()
    odd = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
    if len(odd):
        named = [f"{chemical_symbols[numbers[i]]}{i}" for i in odd[:5]]
        msg = (
            f"masses must be positive, got {masses[odd[:5]].tolist()} u at atoms "
            f"{', '.join(named)}; call atoms.set_masses() to set the standard masses "
            "of the elements"
        )
        raise BackboneError(msg)


def check_cell(atoms: Atoms) -> None:
    """Raise BackboneError for a flat periodic cell, or one that is far too small."""
    vectors = atoms.cell.array[atoms.pbc]
    lengths = np.linalg.norm(vectors, axis=1)
    gram = vectors @ vectors.T
    spanned = np.sqrt(max(float(np.linalg.det(gram)), 0.0))
    if not np.all(lengths > 0) or spanned < 1e-6 * np.prod(lengths):
        msg = (
            "cell must span the periodic directions, got "
            f"{atoms.cell.array.tolist()} with pbc {atoms.pbc.tolist()}; set the cell, "
            "or pbc=False for a molecule"
        )
        raise BackboneError(msg)
    # otherwise neighbour lists would fill the memory before the model runs
    atoms_within = len(atoms) if atoms.pbc.all() else 1  # slabs may be thick
    if atoms_within > DENSEST * spanned:
        unit = "Å" + {1: "", 2: "²", 3: "³"}[len(vectors)]
        msg = (
            f"cell must hold at most {DENSEST} atoms/{unit} (diamond: 0.18/Å³), got "
            f"{atoms_within} in {spanned:.3g} {unit}; give lengths in Å"
        )
        raise BackboneError(msg)


def check_pbc_alike(atoms: Atoms, model: str) -> None:
    """Raise BackboneError for films and wires, which ``model`` does not support."""
    if atoms.pbc.any() and not atoms.pbc.all():
        msg = (
            f"pbc must be True or False in all three directions for {model}, got "
            f"{atoms.pbc.tolist()}; pad the open directions with vacuum and set "
            "pbc=True"
        )
        raise BackboneError(msg)
