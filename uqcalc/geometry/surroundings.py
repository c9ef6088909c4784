"""The nearest neighbour and the closest contact of each atom.

`surroundings` searches any structure from scratch. `SamePairs` is for a structure that
moves little per step, as in molecular dynamics: it uses the pairs of the last search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii
from ase.geometry import complete_cell
from scipy.spatial import cKDTree


# Neighbours that are searched per atom if radii differ. The closest contact is among
# them unless eight atoms are nearer, and these contacts are then as bad. For atoms of
# one radius the nearest neighbour has the closest contact.
_NEAREST = 9
_NEAREST_OF_ONE_RADIUS = 2
# Reach of the first search, in units of the longest possible covalent bond.
_FIRST_LOOK = 1.3
_MOST_PAIRS = 4096  # up to here all pairs at once are faster than a tree


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """The nearest neighbour of each atom, periodic images included.

    Contacts are distances in units of the sum of the covalent radii of both atoms
    (doi:10.1039/b801115j, as in ASE).

    Attributes
    ----------
    nearest : array (atoms,)
        Distance to the nearest atom in Å; infinite if no atom is within reach.
    contacts, seconds : array (atoms,)
        The closest and the second closest contact of each atom; infinite if missing.
    partners : array (atoms,) of int
        The other atom of the closest contact; -1 if missing.
    distances : array (atoms,)
        Distance of the closest contact in Å; infinite if missing.
    """

    nearest: np.ndarray
    contacts: np.ndarray
    seconds: np.ndarray
    partners: np.ndarray
    distances: np.ndarray


def surroundings(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    reach: float,
) -> Surroundings:
    """Return the neighbours of each atom within ``reach`` in Å.

    Memory grows linearly with the number of atoms. Periodic images of an atom count as
    its neighbours.
    """
    radii = covalent_radii[numbers]
    first = min(reach, _FIRST_LOOK * 2 * float(radii.max()))
    found = _look(radii, positions, cell, pbc, first)
    if first < reach and np.isinf(found.nearest).any():
        return _look(radii, positions, cell, pbc, reach)
    return found


def _look(
    radii: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    reach: float,
) -> Surroundings:
    pairs = _all_pairs(positions, cell, pbc, reach)
    distances, partners = pairs or _by_tree(radii, positions, cell, pbc, reach)
    distances[distances > reach] = np.inf
    contacts = distances / (radii[:, None] + radii[partners])
    atoms = np.arange(len(radii))
    best = contacts.argmin(axis=1)
    own, apart = contacts[atoms, best], distances[atoms, best]
    with_ = np.where(np.isinf(own), -1, partners[atoms, best])
    contacts[atoms, best] = np.inf
    return Surroundings(distances.min(axis=1), own, contacts.min(axis=1), with_, apart)


def _all_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return distances and partners of each atom; None if there are too many pairs."""
    count = len(positions)
    if count**2 > _MOST_PAIRS:
        return None
    apart = (positions - positions[:, None])[:, None]
    own = 0
    if pbc.any():
        whole = cell if cell.any(axis=1).all() else complete_cell(cell)
        inverse = np.linalg.inv(whole)
        # fractional differences are wrapped into [-1/2, 1/2]; images within reach are
        # then at most this many cells away
        fractions = reach * np.sqrt((inverse * inverse).sum(axis=0))
        most = ((fractions + 0.5 + 1e-9) * pbc).astype(int)
        shifts = int((2 * most + 1).prod())
        if shifts * count**2 > _MOST_PAIRS:
            return None
        scaled = apart @ inverse
        scaled -= scaled.round() * pbc
        if shifts > 1:
            images = np.indices(2 * most + 1).reshape(3, -1).T - most
            scaled = scaled + images[None, :, None]
            own = shifts // 2
        apart = scaled @ whole
    distances = np.sqrt(np.einsum("ijkx,ijkx->ijk", apart, apart))
    atoms = np.arange(count)
    distances[atoms, own, atoms] = np.inf
    partners = np.broadcast_to(atoms, distances.shape).reshape(count, -1)
    return distances.reshape(count, -1), partners


def _by_tree(
    radii: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    reach: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and partners of the nearest neighbours of each atom."""
    count = len(positions)
    points, owners = with_images(positions, cell, pbc, reach)
    most = _NEAREST_OF_ONE_RADIUS if np.ptp(radii) == 0.0 else _NEAREST
    tree = cKDTree(points, balanced_tree=False, compact_nodes=False)
    distances, found = tree.query(points[:count], most + 1, distance_upper_bound=reach)
    # the tree fills missing neighbours with len(points); an atom itself is left out
    none = (found == len(points)) | (found == np.arange(count)[:, None])
    return np.where(none, np.inf, distances), owners[np.where(none, 0, found)]


def with_images(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the atoms, wrapped into the cell, and images within ``reach`` of the cell.

    Parameters
    ----------
    positions, cell : array (atoms, 3), (3, 3)
        In Å.
    pbc : array (3,) of bool
    reach : float
        In Å.

    Returns
    -------
    points : array (points, 3)
        In Å; the first points are the atoms, in order.
    owners : array (points,) of int
        Index of the atom of each point.
    """
    owners = np.arange(len(positions))
    if not pbc.any():
        return positions, owners
    whole = complete_cell(cell)
    inverse = np.linalg.inv(whole)
    scaled = positions @ inverse
    scaled[:, pbc] %= 1.0
    # reach / height of the cell over each face: the reach in fractional coordinates
    margins = reach * np.linalg.norm(inverse, axis=0)
    for axis in np.flatnonzero(pbc):
        low, high = -margins[axis], 1.0 + margins[axis]
        pieces, sources = [scaled], [owners]
        most = int(np.ceil(margins[axis]))
        for shift in (*range(-most, 0), *range(1, most + 1)):
            place = scaled[:, axis] + shift
            inside = np.flatnonzero((place >= low) & (place < high))
            moved = scaled[inside]
            moved[:, axis] += shift
            pieces.append(moved)
            sources.append(owners[inside])
        scaled, owners = np.concatenate(pieces), np.concatenate(sources)
    return scaled @ whole, owners


# Å; the largest approach of two atoms for which the listed pairs still hold.
_SKIN = 0.6
# Pairs are listed up to this multiple of the closest contact.
_MARGIN = 1.15
# Direction that selects one of an atom's two images on opposite sides.
_ANY_DIRECTION = np.array([1.0, 0.7548777, 0.5698403])


class Geometry(NamedTuple):
    """A structure: (atoms,), (atoms, 3) Å, (3, 3) Å and (3,) of bool."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class _Listed:
    """A structure and, if listed, its pairs with the closest contacts.

    ``first`` and ``second`` (pairs,) are atom indices, ``shifts`` (pairs, 3) moves the
    second atom to its image, in Å, and ``sums`` (pairs,) are sums of covalent radii in
    Å. All other pairs have contacts above ``reach`` until two atoms approach each other
    by more than ``_SKIN``. ``lonely`` is the largest distance of an atom to its nearest
    neighbour in Å.
    """

    geometry: Geometry
    first: np.ndarray | None = None
    second: np.ndarray | None = None
    shifts: np.ndarray | None = None
    sums: np.ndarray | None = None
    reach: float = 0.0
    lonely: float = np.inf

    def moved(self, geometry: Geometry) -> float:
        """Return the largest displacement in Å; infinite if anything else changed."""
        return _moved(self.geometry, geometry)


def _moved(before: Geometry, geometry: Geometry) -> float:
    if not (
        np.array_equal(before.numbers, geometry.numbers)
        and (before.cell == geometry.cell).all()
        and (before.pbc == geometry.pbc).all()
    ):
        return np.inf
    apart = geometry.positions - before.positions
    return float(np.sqrt(np.einsum("ij,ij->i", apart, apart).max()))


class SamePairs:
    """The closest contact of a structure that moves little per step.

    The contact agrees with `surroundings` to round-off. It takes half the time for 20
    atoms and a fifth for 200 or more. If `closest` returns None, call `surroundings`
    and pass its result to `remember`.
    """

    def __init__(self) -> None:
        self._listed: _Listed | None = None

    def closest(self, geometry: Geometry, reach: float) -> tuple[float, int] | None:
        """Return the closest contact and the index of one of its atoms.

        None if no pairs are listed, if they no longer hold, or if an atom may have no
        neighbour within ``reach`` in Å.
        """
        listed = self._listed  # read once: another thread may replace it
        if listed is None or listed.first is None:
            return None
        moved = listed.moved(geometry)
        if not (2 * moved < _SKIN and listed.lonely + 2 * moved < reach):
            return None
        positions = geometry.positions
        apart = positions[listed.second] - positions[listed.first]
        apart += listed.shifts
        contacts = np.sqrt(np.einsum("ij,ij->i", apart, apart)) / listed.sums
        best = int(contacts.argmin())
        contact = float(contacts[best])
        return (contact, int(listed.first[best])) if contact < listed.reach else None

    def remember(self, geometry: Geometry, found: Surroundings) -> None:
        """Store a searched structure; list its pairs if it has moved only a little."""
        before = self._listed
        self._listed = _Listed(Geometry(*(array.copy() for array in geometry)))
        closest = float(found.contacts.min())
        if before is None or not (
            2 * before.moved(geometry) < _SKIN and closest < np.inf
        ):
            return
        self._listed = _with_pairs(self._listed, found, _MARGIN * closest)


def _with_pairs(plain: _Listed, found: Surroundings, reach: float) -> _Listed:
    """Return the structure with its pairs of contacts up to ``reach`` plus the skin."""
    numbers, positions, cell, pbc = plain.geometry
    radii = covalent_radii[numbers]
    farthest = reach * 2 * float(radii.max()) + _SKIN
    points, owners = with_images(positions, cell, pbc, farthest)
    pairs = cKDTree(points).query_pairs(farthest, output_type="ndarray")
    pairs = pairs[pairs[:, 0] < len(radii)]  # pairs of two images are copies
    ends = points[pairs[:, 1]] - points[pairs[:, 0]]
    first, second = owners[pairs].T
    sums = radii[first] + radii[second]
    near = np.sqrt(np.einsum("ij,ij->i", ends, ends)) <= reach * sums + _SKIN
    first, second = first[near], second[near]
    shifts = ends[near] - (positions[second] - positions[first])
    return replace(
        plain,
        first=first,
        second=second,
        shifts=shifts,
        sums=sums[near],
        reach=reach,
        lonely=float(found.nearest.max()),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pairs of atoms, periodic images included, each once.

    Attributes
    ----------
    geometry : Geometry
        The structure for which the pairs were searched.
    first, second : arrays (pairs,) of int
        Atoms of each pair; both are the same atom for a pair of its own images.
    shifts : array (pairs, 3)
        Moves the second atom to its image, in Å.
    limits : array (pairs,)
        Largest distance of interest, in Å. Some pairs are further apart.
    """

    geometry: Geometry
    first: np.ndarray
    second: np.ndarray
    shifts: np.ndarray
    limits: np.ndarray

    def distances(self, positions: np.ndarray) -> np.ndarray:
        """Return the distances in Å for these positions, (pairs,)."""
        apart = positions[self.second] - positions[self.first] + self.shifts
        lengths: np.ndarray = np.sqrt(np.einsum("ij,ij->i", apart, apart))
        return lengths


class NearPairs:
    """All pairs up to a limit that depends on the two elements.

    Pairs are listed up to `_SKIN` beyond their limits, and listed again only after an
    atom has moved by half of that. Memory and time are linear in the number of atoms.

    Parameters
    ----------
    limits : array (elements, elements)
        Largest distance in Å by the two atomic numbers; 0 if a pair is not wanted.
    """

    def __init__(self, limits: np.ndarray) -> None:
        self._limits = limits
        self._listed: Pairs | None = None

    def near(self, geometry: Geometry) -> Pairs:
        """Return all pairs of this structure within their limits, and some more."""
        listed = self._listed  # read once: another thread may replace it
        if listed is None or not 2 * _moved(listed.geometry, geometry) < _SKIN:
            listed = self._listed = self._list(geometry)
        return listed

    def _list(self, geometry: Geometry) -> Pairs:
        numbers, positions, cell, pbc = (array.copy() for array in geometry)
        elements = np.unique(numbers)
        farthest = float(self._limits[np.ix_(elements, elements)].max()) + _SKIN
        points, owners = with_images(positions, cell, pbc, farthest)
        tree = cKDTree(points, balanced_tree=False, compact_nodes=False)
        pairs = tree.query_pairs(farthest, output_type="ndarray")
        pairs = pairs[pairs[:, 0] < len(numbers)]  # the others are pairs of images
        ends = points[pairs[:, 1]] - points[pairs[:, 0]]
        first, second = owners[pairs].T
        # a pair with an image is found from both sides, an atom's own image twice
        images = pairs[:, 1] >= len(numbers)
        ahead = ends @ _ANY_DIRECTION > 0
        once = ~images | (first < second) | ((first == second) & ahead)
        limits = self._limits[numbers[first], numbers[second]]
        near = np.sqrt(np.einsum("ij,ij->i", ends, ends)) <= limits + _SKIN
        kept = once & (limits > 0) & near
        first, second = first[kept], second[kept]
        shifts = ends[kept] - (positions[second] - positions[first])
        where = Geometry(numbers, positions, cell, pbc)
        return Pairs(where, first, second, shifts, limits[kept])
