"""Who is next to each atom: the nearest one, and the closest contact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from ase.geometry import complete_cell
from scipy.spatial import cKDTree


# Neighbours of an atom that are looked at: the closest contact is among them unless
# eight others are closer still, and then theirs are as bad.
_NEAREST = 9
# Reach of the first look, in units of the longest covalent bond there could be.
_FIRST_LOOK = 1.3


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """The nearest neighbour of each atom, periodic images included.

    Attributes
    ----------
    nearest : array (atoms,)
        Distance to the nearest atom in Å; infinite where there is none within reach.
    contacts : array (atoms,)
        Smallest distance to another atom, in units of the sum of the covalent radii of
        both (doi:10.1039/b801115j, as in ASE); infinite where there is none.
    partners : array (atoms,) of int
        The atom that this contact is with; -1 where there is none.
    distances : array (atoms,)
        Its distance in Å.
    """

    nearest: np.ndarray
    contacts: np.ndarray
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
    count = len(positions)
    points, owners = with_images(positions, cell, pbc, reach)
    nearest = min(_NEAREST, len(points) - 1)
    if nearest == 0:
        inf = np.full(count, np.inf)
        return Surroundings(inf, inf, np.full(count, -1), inf)
    distances, found = cKDTree(points).query(
        points[:count], nearest + 1, distance_upper_bound=reach
    )
    # beyond reach: index len(points), at infinity; an atom is no neighbour of its own
    none = (found == len(points)) | (found == np.arange(count)[:, None])
    distances = np.where(none, np.inf, distances)
    partners = owners[np.where(none, 0, found)]
    contacts = distances / (radii[:, None] + radii[partners])
    best = contacts.argmin(axis=1)[:, None]

    def of_best(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, best, axis=1)[:, 0]

    own = of_best(contacts)
    return Surroundings(
        distances.min(axis=1),
        own,
        np.where(np.isinf(own), -1, of_best(partners)),
        of_best(distances),
    )


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
            inside = (place >= low) & (place < high)
            moved = scaled[inside]
            moved[:, axis] += shift
            pieces.append(moved)
            sources.append(owners[inside])
        scaled, owners = np.concatenate(pieces), np.concatenate(sources)
    return scaled @ whole, owners
