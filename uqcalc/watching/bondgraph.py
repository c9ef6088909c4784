"""The bonds of a run against those of its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from uqcalc.geometry.bonds import BONDED, Bonds, named_atoms
from uqcalc.geometry.surroundings import Geometry


# In units of a single bond: a bond of the first step is broken beyond, and two atoms
# that were not bonded there have a new bond below. Between them nothing has changed.
BROKEN, FORMED = 1.45, 1.2
CHANGED = "bonds changed since the first step"  # beginning of the finding
_MOST_TOLD = 4


class BondGraph:
    """Compares the bonds of each step with those of the first one.

    Bonds are those of `uqcalc.geometry.bonds.Bonds`: between non-metals of known
    valence, without atoms next to a metal.

    Parameters
    ----------
    find : callable
        Returns the bonds of a geometry, such as `uqcalc.Flags.bonds`.
    """

    def __init__(self, find: Callable[[Geometry], Bonds | None]) -> None:
        self._find = find
        self._first: np.ndarray | None = None
        self._limits: _Limits | None = None

    def __call__(self, atoms: Atoms) -> tuple[str, ...]:
        """Return what changed since the first step, with the atoms named."""
        geometry = Geometry(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        bonds = self._find(geometry)
        if bonds is None:
            return ()
        if self._first is None:
            self._first = _codes(bonds, BONDED)
            return ()
        if self._limits is None or self._limits.pairs is not bonds.first:
            self._limits = _Limits.of(bonds, self._first)
        if self._limits.hold(bonds):
            return ()
        broken = np.setdiff1d(self._first, _codes(bonds, BROKEN))
        formed = np.setdiff1d(_codes(bonds, FORMED), self._first)
        count = len(atoms)
        parts = [
            f"{what} {_named(codes, count, atoms.numbers)}"
            for what, codes in (("broken:", broken), ("formed:", formed))
            if len(codes)
        ]
        if not parts:
            return ()
        return (f"{CHANGED}, {'; '.join(parts)}",)


@dataclass(frozen=True, slots=True, eq=False)
class _Limits:
    """Limits of all pairs, for a quick check while the list of pairs is the same.

    ``bonded`` (pairs,) tells the bonds of the first step, ``largest`` (pairs,) is the
    stretch below which a pair counts as bonded, and ``complete`` is False if a bond of
    the first step is not among the pairs.
    """

    pairs: np.ndarray
    bonded: np.ndarray
    largest: np.ndarray
    complete: bool

    @classmethod
    def of(cls, bonds: Bonds, first: np.ndarray) -> _Limits:
        low = np.minimum(bonds.first, bonds.second)
        high = np.maximum(bonds.first, bonds.second)
        codes = low * len(bonds.numbers) + high
        bonded = np.isin(codes, first)
        largest = np.where(bonded, BROKEN, FORMED)
        return cls(bonds.first, bonded, largest, bool(np.isin(first, codes).all()))

    def hold(self, bonds: Bonds) -> bool:
        """Return whether no bond has changed; False if a full comparison is needed."""
        counts = bonds.counts
        now = bonds.stretch < self.largest
        if not counts.all():
            now &= counts[bonds.first] & counts[bonds.second]
        return self.complete and bool((now == self.bonded).all())


def _codes(bonds: Bonds, most: float) -> np.ndarray:
    """Return one number for each pair of counted atoms closer than ``most``, sorted."""
    counts, first, second = bonds.counts, bonds.first, bonds.second
    near = (bonds.stretch < most) & counts[first] & counts[second]
    one, other = first[near], second[near]
    low, high = np.minimum(one, other), np.maximum(one, other)
    return np.unique(low * len(bonds.numbers) + high)


def _named(codes: np.ndarray, count: int, numbers: np.ndarray) -> str:
    pairs = [divmod(int(code), count) for code in codes[:_MOST_TOLD]]
    shown = [named_atoms(numbers, pair).replace(", ", "-") for pair in pairs]
    more = len(codes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
