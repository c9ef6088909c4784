"""Coordination and density of each element in a set of labelled structures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii

from uqcalc.geometry.bonds import named_atoms
from uqcalc.geometry.surroundings import Geometry, NearPairs, Pairs


# In units of the sum of the covalent radii.
PARTNER = 1.25
REACH = 1.4  # larger contacts are not distinguished
FEWEST = 100
SLACK = 0.03  # relative, of the closest contacts
_LIMITS = REACH * (covalent_radii[:, None] + covalent_radii)
_MOST_TOLD = 3


@dataclass(frozen=True, slots=True)
class Range:
    """Extremes of one element: partners within 1.25, and closest contacts.

    Contacts are distances in units of the sum of the covalent radii, at most 1.4.
    ``structures`` is the number of structures with this element.
    """

    partners: tuple[int, int]
    contacts: tuple[float, float]
    structures: int


class Environments:
    """The ranges of all elements, and the atoms outside them.

    An element counts from 100 structures on: of new structures like these, a share of
    about 4 / (n + 1) exceeds one of the four extremes of n structures.

    Parameters
    ----------
    ranges : mapping
        Element symbol -> range.
    """

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        self.ranges = dict(ranges)
        elements = len(chemical_symbols)
        self._fewest, self._most = np.zeros(elements), np.full(elements, np.inf)
        self._least, self._largest = np.zeros(elements), np.full(elements, np.inf)
        for symbol, found in self.ranges.items():
            if found.structures < FEWEST:
                continue
            z = atomic_numbers[symbol]
            self._fewest[z], self._most[z] = found.partners
            self._least[z] = found.contacts[0] * (1 - SLACK)
            most = found.contacts[1] * (1 + SLACK)
            self._largest[z] = most if found.contacts[1] < REACH else np.inf

    @classmethod
    def of(cls, structures: Iterable[Geometry]) -> Environments:
        """Return the ranges of these structures."""
        ranges: dict[int, Range] = {}
        for geometry in structures:
            numbers = geometry.numbers
            partners, contacts = Coordination()(geometry)
            for z in np.unique(numbers).tolist():
                mine = numbers == z
                few, many = int(partners[mine].min()), int(partners[mine].max())
                low, high = float(contacts[mine].min()), float(contacts[mine].max())
                old = ranges.get(z, Range((few, many), (low, high), 0))
                ranges[z] = Range(
                    (min(few, old.partners[0]), max(many, old.partners[1])),
                    (min(low, old.contacts[0]), max(high, old.contacts[1])),
                    old.structures + 1,
                )
        return cls({chemical_symbols[z]: found for z, found in sorted(ranges.items())})

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {
            symbol: {
                "partners": list(found.partners),
                "contacts": [round(x, 4) for x in found.contacts],
                "structures": found.structures,
            }
            for symbol, found in self.ranges.items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Environments:
        """Rebuild from `to_dict`."""
        return cls(
            {
                symbol: Range(
                    (int(row["partners"][0]), int(row["partners"][1])),
                    (float(row["contacts"][0]), float(row["contacts"][1])),
                    int(row["structures"]),
                )
                for symbol, row in data.items()
            }
        )

    def unseen(
        self, numbers: np.ndarray, partners: np.ndarray, contacts: np.ndarray
    ) -> list[tuple[str, np.ndarray]]:
        """Return reasons and atoms for what the labels never show.

        Elements with too few structures are left out.
        """
        reasons = []
        checks = (
            (partners < self._fewest[numbers], "fewer partners than in any label"),
            (partners > self._most[numbers], "more partners than in any label"),
            (contacts < self._least[numbers], "a closer neighbour than in any label"),
            (
                contacts > self._largest[numbers],
                "no neighbour as close as the labels",
            ),
        )
        for outside, words in checks:
            atoms = np.flatnonzero(outside)
            if not len(atoms):
                continue
            verb = "has" if len(atoms) == 1 else "have"
            reasons.append((f"{named_atoms(numbers, atoms)} {verb} {words}", atoms))
        return reasons


class Coordination:
    """Finds the coordination of one structure after another; it caches the pairs."""

    def __init__(self) -> None:
        self._pairs = NearPairs(_LIMITS)
        self._known: _Sorted | None = None

    def __call__(self, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
        """Return partners within 1.25, and closest contact up to 1.4, of each atom."""
        pairs, known = self._pairs.near(geometry), self._known
        if known is None or known.pairs is not pairs:
            known = self._known = _Sorted.of(pairs)
        count = len(geometry.numbers)
        contacts = REACH * pairs.distances(geometry.positions) / pairs.limits
        both = np.concatenate([contacts, contacts])[known.order]
        partners = np.bincount(known.ends[both <= PARTNER], minlength=count)
        closest = np.full(count, REACH)
        if len(both):
            least = np.minimum.reduceat(both, known.starts)
            closest[known.atoms] = np.minimum(least, REACH)
        return partners, closest


@dataclass(frozen=True, slots=True, eq=False)
class _Sorted:
    """The ends of all pairs, sorted by atom."""

    pairs: Pairs
    order: np.ndarray
    ends: np.ndarray
    atoms: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs) -> _Sorted:
        ends = np.concatenate([pairs.first, pairs.second])
        order = np.argsort(ends, kind="stable")
        atoms, starts = np.unique(ends[order], return_index=True)
        return cls(pairs, order, ends[order], atoms, starts)
