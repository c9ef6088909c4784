"""Bond orders and valences from distances alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from uqcalc.geometry.surroundings import Geometry, NearPairs, Pairs


# In units of the single bond (`SINGLE`).
BONDED = 1.25
FARTHEST = 1.8
_TO_METAL = 1.6
_SOFTNESS = 0.31  # Å; order n shortens a bond by 0.31 ln n (doi:10.1021/ja01195a024)

_VALENCES = {"H": 1, "C": 4, "N": 3, "O": 2, "F": 1}
# In crystals the valence of these says little: many have metallic or ionic phases.
_OF_MOLECULES = {"Cl": 1, "Br": 1, "I": 1, "S": 2, "P": 3, "Si": 4}
_INERT = ("He", "Ne", "Ar", "Kr", "Xe", "Rn")
# Å, where the sum of the covalent radii is not the length of a single bond.
_LENGTHS = {
    "H H": 0.74, "C H": 1.09, "N H": 1.01, "O H": 0.96, "C C": 1.54, "C N": 1.47,
    "C O": 1.43, "N N": 1.45, "N O": 1.43, "O O": 1.46, "N F": 1.39, "O F": 1.41,
    "F F": 1.42, "N Cl": 1.9, "Si Si": 2.34, "P P": 2.22,
}  # fmt: skip


def _by_element(values: Mapping[str, float]) -> np.ndarray:
    table = np.zeros(len(chemical_symbols))
    for symbol, value in values.items():
        table[atomic_numbers[symbol]] = value
    return table


def _single_bonds() -> np.ndarray:
    lengths: np.ndarray = covalent_radii[:, None] + covalent_radii
    for pair, length in _LENGTHS.items():
        one, other = (atomic_numbers[symbol] for symbol in pair.split())
        lengths[one, other] = lengths[other, one] = length
    return lengths


# Length of a single bond in Å, (elements, elements): the sum of the covalent radii of
# doi:10.1039/b801115j, apart from the pairs in `_LENGTHS`.
SINGLE = _single_bonds()
_CRYSTAL, _MOLECULE = _by_element(_VALENCES), _by_element(_VALENCES | _OF_MOLECULES)
_MOST_NAMED = 5
_IS_INERT = _by_element(dict.fromkeys(_INERT, 1.0)) > 0
# By atomic number: hydrogen, halogens, noble gases, B to O, Si, P, S, Se.
NONMETAL = (_MOLECULE > 0) | _IS_INERT | (_by_element({"B": 1, "Se": 1}) > 0)


def _limits() -> np.ndarray:
    """Return the largest distances that matter in Å; 0 between two metals."""
    valent = _MOLECULE > 0
    both = valent[:, None] & valent
    one = (valent[:, None] | valent) & ~(_IS_INERT[:, None] | _IS_INERT)
    return SINGLE * np.where(both, FARTHEST, np.where(one, _TO_METAL, 0.0))


_LIMITS = _limits()


@dataclass(frozen=True, eq=False)
class Bonds:
    """Pairs of one structure, and the valence of its atoms.

    Attributes
    ----------
    numbers : array (atoms,)
    periodic : bool
    counts : array (atoms,) of bool
        Atoms of known valence, without those bonded to a metal or a metalloid.
    first, second, distances : arrays (pairs,)
        Two atoms, and their distance in Å.
    stretch, order : arrays (pairs,)
        Distance in units of a single bond; bond order exp((d_1 - d) / 0.31 Å).
    lacks : array (atoms,)
        Valence minus the sum of the bond orders; 0 where ``counts`` is False.
    counted : dict
        Cache of `fragments` by which pairs are bonded; shared along a run.
    """

    numbers: np.ndarray
    periodic: bool
    counts: np.ndarray
    first: np.ndarray
    second: np.ndarray
    distances: np.ndarray
    stretch: np.ndarray
    order: np.ndarray
    lacks: np.ndarray
    counted: dict[bytes, int]

    @property
    def of_nonmetals(self) -> bool:
        """Whether there are no metals."""
        return bool(NONMETAL[self.numbers].all())

    @cached_property
    def partners(self) -> np.ndarray:
        """Number of bonded atoms of each atom, (atoms,)."""
        bonded = self.stretch < BONDED
        ends = np.concatenate([self.first[bonded], self.second[bonded]])
        return np.bincount(ends, minlength=len(self.numbers))

    @cached_property
    def strongest(self) -> np.ndarray:
        """Largest bond order of each atom, (atoms,); 0 without pairs."""
        largest = np.zeros(len(self.numbers))
        np.maximum.at(largest, self.first, self.order)
        np.maximum.at(largest, self.second, self.order)
        return largest

    @cached_property
    def nearest(self) -> np.ndarray:
        """Smallest stretch of each atom, (atoms,); infinite without pairs."""
        return self._two[0]

    @cached_property
    def seconds(self) -> np.ndarray:
        """Second smallest stretch of each atom, (atoms,); infinite if missing."""
        return self._two[1]

    @cached_property
    def _two(self) -> tuple[np.ndarray, np.ndarray]:
        ends = np.concatenate([self.first, self.second])
        both = np.concatenate([self.stretch, self.stretch])
        order = np.lexsort((both, ends))
        ends, both = ends[order], both[order]
        place = np.arange(len(ends)) - np.searchsorted(ends, ends)
        rows = []
        for rank in (0, 1):
            row = np.full(len(self.numbers), np.inf)
            row[ends[place == rank]] = both[place == rank]
            rows.append(row)
        return rows[0], rows[1]

    def closest_two(self, atom: int) -> tuple[int, int]:
        """Return the two atoms of smallest stretch to an atom that has two pairs."""
        rows = np.flatnonzero((self.first == atom) | (self.second == atom))
        one, other = rows[np.argsort(self.stretch[rows], kind="stable")[:2]]
        return self._other_end(one, atom), self._other_end(other, atom)

    def text(self, atom: int, partner: int) -> str:
        """Return the shortest distance of two atoms, with its unit."""
        rows = ((self.first == atom) & (self.second == partner)) | (
            (self.first == partner) & (self.second == atom)
        )
        return f"{self.distances[rows].min():.3g} Å"

    @cached_property
    def _neighbours(self) -> defaultdict[int, set[int]]:
        """The bonded atoms of each atom; sets are faster than a matrix for few."""
        bonded = self.stretch < BONDED
        found: defaultdict[int, set[int]] = defaultdict(set)
        ends = self.first[bonded].tolist(), self.second[bonded].tolist()
        for one, other in zip(*ends, strict=True):
            found[one].add(other)
            found[other].add(one)
        return found

    @cached_property
    def fragments(self) -> int:
        """Number of molecules; 0 with atoms that have no known valence."""
        if not (self.of_nonmetals and self.counts.all()):
            return 0
        key = (self.stretch < BONDED).tobytes()
        if key not in self.counted:
            self.counted.clear()
            count, bonded = len(self.numbers), self.stretch < BONDED
            ends = self.first[bonded], self.second[bonded]
            graph = csr_array((np.ones(len(ends[0])), ends), shape=(count, count))
            found = connected_components(graph, directed=False)
            self.counted[key] = int(found[0])
        return self.counted[key]

    def share_a_partner(self, rows: np.ndarray) -> np.ndarray:
        """Return whether the two atoms of these pairs are bonded to a common third."""
        near, pairs = self._neighbours, (self.first[rows], self.second[rows])
        ends = zip(*(atoms.tolist() for atoms in pairs), strict=True)
        return np.array([bool(near[i] & near[j]) for i, j in ends], dtype=bool)

    def _other_end(self, row: int, atom: int) -> int:
        first = int(self.first[row])
        return int(self.second[row]) if first == atom else first


class BondFinder:
    """Finds the bonds of one structure after another.

    It caches the pairs, and the bonds of the last structure.
    """

    def __init__(self) -> None:
        self._pairs = NearPairs(_LIMITS)
        self._known: _Constants | None = None
        self._last: tuple[Geometry, Bonds | None] | None = None

    def __call__(self, geometry: Geometry) -> Bonds | None:
        """Return the bonds of a structure; None if no atom has a known valence."""
        last = self._last  # read once: another thread may replace it
        if last is None or not all(map(np.array_equal, last[0], geometry)):
            own = Geometry(*(array.copy() for array in geometry))
            last = self._last = own, self._bonds(own)
        return last[1]

    def _bonds(self, geometry: Geometry) -> Bonds | None:
        known = self._known
        pairs = None if known is None else self._pairs.near(geometry)
        if known is None or known.pairs is not pairs:
            valences = _valences(geometry)
            if not valences.any():
                return None
            known = self._known = _Constants.of(self._pairs.near(geometry), valences)
        return known.bonds(geometry)


@dataclass(frozen=True, slots=True, eq=False)
class _Constants:
    """Values that depend only on the listed pairs."""

    pairs: Pairs
    ends: np.ndarray
    single: np.ndarray
    valences: np.ndarray
    to_metals: tuple[np.ndarray, np.ndarray] | None
    counted: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def of(cls, pairs: Pairs, valences: np.ndarray) -> _Constants:
        first, second = pairs.first, pairs.second
        numbers = pairs.geometry.numbers
        simple = (valences > 0) | _IS_INERT[numbers]
        to_metals = None
        if not simple.all():
            to_metals = (~simple[first], ~simple[second])
        return cls(
            pairs,
            np.concatenate([first, second]),
            SINGLE[numbers[first], numbers[second]],
            valences,
            to_metals,
        )

    def bonds(self, geometry: Geometry) -> Bonds:
        pairs, valences = self.pairs, self.valences
        distances = pairs.distances(geometry.positions)
        stretch = distances / self.single
        order = np.exp((self.single - distances) / _SOFTNESS)
        # a sum must not depend on which further pairs are listed
        order *= distances <= pairs.limits
        used = np.bincount(self.ends, np.concatenate([order, order]), len(valences))
        counts = valences > 0
        if self.to_metals is not None:
            touching = stretch < _TO_METAL
            counts[pairs.second[touching & self.to_metals[0]]] = False
            counts[pairs.first[touching & self.to_metals[1]]] = False
        return Bonds(
            geometry.numbers,
            bool(geometry.pbc.any()),
            counts,
            pairs.first,
            pairs.second,
            distances,
            stretch,
            order,
            np.where(counts, valences - used, 0.0),
            self.counted,
        )


def _valences(geometry: Geometry) -> np.ndarray:
    table = _CRYSTAL if geometry.pbc.any() else _MOLECULE
    found: np.ndarray = table[geometry.numbers]
    return found


def named_atoms(numbers: np.ndarray, indices: Sequence[int] | np.ndarray) -> str:
    """Return atoms by element and index, such as "H3, O0 and 2 more"."""
    shown = [f"{chemical_symbols[numbers[i]]}{i}" for i in indices[:_MOST_NAMED]]
    more = len(indices) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
