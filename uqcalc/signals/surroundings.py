"""Who is next to each atom: the nearest one, and the closest contact.

`surroundings` looks anew at any structure. `SamePairs` is for a structure that moves a
little at a time, as in molecular dynamics: it asks the pairs of the last full look.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii
from ase.geometry import complete_cell
from scipy.spatial import cKDTree


# Neighbours of an atom that are looked at where radii differ: the closest contacts are
# among them unless eight others are closer still, and then theirs are as bad. Of atoms
# of one radius the closest by distance are so by contact.
_NEAREST = 9
_NEAREST_OF_ONE_RADIUS = 2
# Reach of the first look, in units of the longest covalent bond there could be.
_FIRST_LOOK = 1.3
_MOST_PAIRS = 4096  # up to so many are formed all at once, which is faster than a tree


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """The nearest neighbour of each atom, periodic images included.

    Contacts are distances in units of the sum of the covalent radii of both atoms
    (doi:10.1039/b801115j, as in ASE).

    Attributes
    ----------
    nearest : array (atoms,)
        Distance to the nearest atom in Å; infinite where there is none within reach.
    contacts, seconds : array (atoms,)
        The closest contact of each atom, and the next one; infinite where there is
        none.
    partners : array (atoms,) of int
        The atom that the closest contact is with; -1 where there is none.
    distances : array (atoms,)
        Its distance in Å.
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
    """Return who is next to each atom, looking as far as ``reach`` in Å.

    Memory grows with the atoms, not with their square. An atom's own images count.
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
    """Return distances and partners of each atom; None where they are too many."""
    count = len(positions)
    if count**2 > _MOST_PAIRS:
        return None
    apart = (positions - positions[:, None])[:, None]
    own = 0
    if pbc.any():
        whole = cell if cell.any(axis=1).all() else complete_cell(cell)
        inverse = np.linalg.inv(whole)
        # in fractions of the cell each is brought within a half; what is within reach
        # of there lies so many cells away at most
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
    # where there are fewer: index len(points); an atom is no neighbour of its own
    none = (found == len(points)) | (found == np.arange(count)[:, None])
    return np.where(none, np.inf, distances), owners[np.where(none, 0, found)]


def with_images(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the atoms, wrapped into the cell, and the images within ``reach`` of it.

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
        In Å; the first are the atoms, in order.
    owners : array (points,) of int
        The atom that each is an image of.
    """
    owners = np.arange(len(positions))
    if not pbc.any():
        return positions, owners
    whole = complete_cell(cell)
    inverse = np.linalg.inv(whole)
    scaled = positions @ inverse
    scaled[:, pbc] %= 1.0
    # 1 / height of the cell over each face, in Å: how far a fraction reaches
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


# Å that two atoms may have come closer by since the pairs were listed.
_SKIN = 0.6
# Pairs are listed up to so many times the closest contact.
_MARGIN = 1.15


class Geometry(NamedTuple):
    """A structure: (atoms,), (atoms, 3) Å, (3, 3) Å and (3,) of bool."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class _Listed:
    """A structure and, where it was listed, its pairs with the closest contacts.

    ``first`` and ``second`` are atoms, ``shifts`` (pairs, 3) what takes the second to
    the image that is meant, in Å, ``sums`` the sums of covalent radii. Any other pair
    has a contact above ``reach`` for as long as no two atoms come closer by the skin;
    ``lonely`` is the largest distance of an atom to its nearest neighbour in Å.
    """

    geometry: Geometry
    first: np.ndarray | None = None
    second: np.ndarray | None = None
    shifts: np.ndarray | None = None
    sums: np.ndarray | None = None
    reach: float = 0.0
    lonely: float = np.inf

    def moved(self, geometry: Geometry) -> float:
        """Return how far an atom moved at most, Å; infinite if aught else changed."""
        before = self.geometry
        if not (
            np.array_equal(before.numbers, geometry.numbers)
            and (before.cell == geometry.cell).all()
            and (before.pbc == geometry.pbc).all()
        ):
            return np.inf
        apart = geometry.positions - before.positions
        return float(np.sqrt(np.einsum("ij,ij->i", apart, apart).max()))


class SamePairs:
    """The closest contact of a structure that moves a little at a time.

    It gives the contact that `surroundings` would give (to round-off), in half the time
    for 20 atoms and in a fifth for 200 or more. It gives None where it cannot tell: ask
    `surroundings` then, and hand the answer to `remember`.
    """

    def __init__(self) -> None:
        self._listed: _Listed | None = None

    def closest(self, geometry: Geometry, reach: float) -> tuple[float, int] | None:
        """Return the closest contact and an atom of it, where every atom has one.

        None where pairs are not listed or do not hold any more, and where an atom may
        have no neighbour within ``reach`` in Å.
        """
        listed = self._listed  # once: another thread may put its own there
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
        """Keep a structure that was looked at; list its pairs if it is moving."""
        before = self._listed
        self._listed = _Listed(Geometry(*(array.copy() for array in geometry)))
        closest = float(found.contacts.min())
        if before is None or not (
            2 * before.moved(geometry) < _SKIN and closest < np.inf
        ):
            return
        self._listed = _with_pairs(self._listed, found, _MARGIN * closest)


def _with_pairs(plain: _Listed, found: Surroundings, reach: float) -> _Listed:
    """Return the structure with its pairs of contacts up to ``reach``, and a skin."""
    numbers, positions, cell, pbc = plain.geometry
    radii = covalent_radii[numbers]
    farthest = reach * 2 * float(radii.max()) + _SKIN
    points, owners = with_images(positions, cell, pbc, farthest)
    pairs = cKDTree(points).query_pairs(farthest, output_type="ndarray")
    pairs = pairs[pairs[:, 0] < len(radii)]  # of two images, others stand for them
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
