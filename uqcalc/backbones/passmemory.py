"""Estimate the memory of a pass before it runs.

The memory of the user's machine is unknown. A structure is refused if its pass needs
much memory in total *and* far more per atom than any realistic structure. Boxes, slabs
and droplets of any size are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from uqcalc.errors import BackboneError


# No structure is refused below so many bytes.
LITTLE = 2e9
# Twice the density of diamond, the densest solid at ambient pressure, in atoms/Å³.
DENSE = 0.36
# Bytes per atom allowed for empty space; a centred tube of 300 Å needs 0.6 MB.
SPACE_OF_AN_ATOM = 1e6
# Bytes for each bin of matscipy's neighbour lists; measured: 3.6 to 4.0.
BIN = 4.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Memory that a pass needs, measured with the gradient of the energy.

    Attributes
    ----------
    pair : float
        Bytes for each pair of neighbours, both directions counted.
    triple : float
        Bytes for each pair of bonds at an atom; 0 if the model has no angles.
    angles : float
        Cutoff of these bonds, in Å.
    bins : float
        Length of the neighbour list's box in non-periodic directions, in units of the
        largest coordinate times the cutoff; 0 if its memory does not depend on empty
        space.
    """

    pair: float = 5e4
    triple: float = 0.0
    angles: float = 0.0
    bins: float = 0.0


def check_load(atoms: Atoms, cutoff: float, costs: Costs) -> float:
    """Raise an error if a pass would fill the memory.

    Returns
    -------
    float
        The estimate in units of the limit, from 0 to 1.

    Raises
    ------
    BackboneError
        The message gives the estimate and its cause.
    """
    bins = _bins(atoms, cutoff, costs.bins)
    space = BIN * bins / max(LITTLE, SPACE_OF_AN_ATOM * len(atoms))
    if space > 1:
        extent = float(np.abs(atoms.positions).max())
        msg = (
            "neighbour list of a structure must fit in memory, got coordinates up to "
            f"{extent:.4g} Å and a cell of {atoms.cell.lengths().round(1).tolist()} Å "
            f"for {len(atoms)} atoms, which need {BIN * bins / 1e9:.3g} GB; remove "
            "atoms that flew away, move the remaining atoms to the origin with "
            "atoms.center(about=0), or take a smaller cell"
        )
        raise BackboneError(msg)
    if not atoms.pbc.any():
        most = float(len(atoms)) ** 2
        taken = costs.pair * most + costs.triple * most * len(atoms)
        if taken <= LITTLE:
            return max(space, taken / LITTLE)
    pairs = neighbours(atoms, cutoff)
    triples = _triples(atoms, costs)
    taken = costs.pair * pairs + costs.triple * triples
    usual = DENSE * _ball(cutoff) * costs.pair
    usual += (DENSE * _ball(costs.angles)) ** 2 * costs.triple
    load = taken / max(LITTLE, usual * len(atoms))
    if load > 1:
        msg = (
            f"atoms must have at most {DENSE * _ball(cutoff):.0f} neighbours within "
            f"{cutoff:.3g} Å on average (twice the number in diamond), got about "
            f"{pairs / len(atoms):.0f} for {len(atoms)} atoms, which need about "
            f"{taken / 1e9:.3g} GB; give lengths in Å, or take a frame from before "
            "the structure collapsed"
        )
        raise BackboneError(msg)
    return max(space, load)


def neighbours(atoms: Atoms, cutoff: float) -> float:
    """Estimate the number of pairs within ``cutoff``, both directions counted.

    Space is divided into boxes about as wide as the cutoff, and atoms are assumed to be
    spread evenly in each: ``sum_b n_b^2 v / V`` with n_b atoms in box b of volume V,
    and v the volume of the cutoff sphere. The error is about 10 % for solids, also in
    cells narrower than the cutoff, and a factor of four if all atoms are in one place.
    The cost is linear in the number of atoms.
    """
    count = _in_boxes(atoms, cutoff)
    return min(count, _most(atoms))


def _most(atoms: Atoms) -> float:
    alone = not atoms.pbc.any()
    return float(len(atoms) * (len(atoms) - 1)) if alone else np.inf


def _in_boxes(atoms: Atoms, cutoff: float) -> float:
    occupied, volume = _boxes(atoms, cutoff)
    return float((occupied**2).sum()) * _ball(cutoff) / volume


def _triples(atoms: Atoms, costs: Costs) -> float:
    if not costs.triple:
        return 0.0
    occupied, volume = _boxes(atoms, costs.angles)
    each = np.minimum(occupied * _ball(costs.angles) / volume, _most(atoms))
    return float((occupied * each**2).sum())


def _boxes(atoms: Atoms, width: float) -> tuple[np.ndarray, float]:
    """Return the number of atoms in each occupied box, and the volume of a box."""
    frame = atoms.cell.complete().array.copy()
    normals = np.linalg.inv(frame).T
    open_ = ~atoms.pbc
    for axis in np.flatnonzero(open_):  # perpendicular to the periodic ones
        normal = normals[axis] / np.linalg.norm(normals[axis])
        frame[axis] = normal * max(width, 1.0)
    scaled = atoms.positions @ np.linalg.inv(frame)
    scaled[:, atoms.pbc] %= 1.0
    heights = 1.0 / np.linalg.norm(np.linalg.inv(frame), axis=0)
    parts = np.where(open_, 1, np.maximum(1, heights // width)).astype(float)
    _, occupied = np.unique(_numbered(scaled * parts), return_counts=True)
    volume = abs(float(np.linalg.det(frame))) / float(np.prod(parts))
    return occupied.astype(float), volume


def _numbered(places: np.ndarray) -> np.ndarray:
    """Return one number for each row, (rows,); rows in the same unit box share it."""
    columns = np.floor(places - places.min(axis=0)).T
    if np.prod(columns.max(axis=1) + 1.0) > 2.0**62:  # atoms that flew very far away
        columns = np.array([np.unique(c, return_inverse=True)[1] for c in columns])
    x, y, z = columns.astype(np.int64)
    number: np.ndarray = (x * (y.max() + 1) + y) * (z.max() + 1) + z
    return number


def _ball(radius: float) -> float:
    return 4.0 / 3.0 * np.pi * radius**3


def _bins(atoms: Atoms, cutoff: float, length: float) -> float:
    """Return the number of bins in the box of a neighbour list."""
    if not length:
        return 0.0
    wide = (np.abs(atoms.positions).max() + 1.0) * length  # in cutoffs, as in MACE
    sides = np.full(3, wide)
    if atoms.pbc.any():
        normals = np.linalg.inv(atoms.cell.complete().array)  # columns
        heights = 1.0 / np.linalg.norm(normals, axis=0)
        sides[atoms.pbc] = np.maximum(1.0, heights[atoms.pbc] / cutoff)
    return float(np.prod(sides))
