"""Test whether all forces of a structure vanish by symmetry."""

from __future__ import annotations

import warnings

import numpy as np
import spglib
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list


# Å; displacements from symmetric positions. With force constants of 5 eV/Å² they cause
# forces of 5 meV/Å.
TOLERANCE = 1e-3
# Largest structure whose space group is searched: the time grows faster than the square
# of the number of atoms; it is 0.2 s for 500 atoms of a perfect crystal.
MOST_ATOMS = 500

_REACH = 6.0  # Å; reach of the sums over neighbours
_SHELLS = 2.5  # the same, in units of the longest nearest-neighbour distance
_VACUUM = 20.0  # Å; around films and wires


def forces_vanish(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    nearest: np.ndarray,
) -> bool:
    """Return whether symmetry makes every force zero, for any potential.

    Symmetry operations that map the structure onto itself and an atom onto itself (or
    its image) do not change the force on this atom. The force is zero if the mean of
    their rotations is zero (site groups with an inversion, several axes, or an axis
    with a mirror plane across it). The function requires this for every atom. A
    non-periodic structure qualifies only if it is a single atom.

    A fast test comes first: for each atom a vector sum over its neighbours, which
    rotates like a force, must be zero. Then spglib finds the space group. Without a
    group from spglib, or above ``MOST_ATOMS`` atoms, the fast test decides alone.

    Parameters
    ----------
    numbers : array (atoms,)
    positions, cell : array (atoms, 3), (3, 3)
        In Å.
    pbc : array (3,) of bool
    nearest : array (atoms,)
        Distance to each atom's nearest neighbour in Å; infinite if not known.
    """
    if not pbc.any():
        return len(numbers) == 1
    if not _vectors_vanish(numbers, positions, cell, pbc, nearest):
        return False
    if len(numbers) > MOST_ATOMS:
        return True
    box = _with_vacuum(positions, cell, pbc)
    scaled = positions @ np.linalg.inv(box)
    # a supercell lacks rotations of its cell: 2x1x1 of silicon is no longer cubic
    numbers, box, scaled = _primitive(numbers, box, scaled)
    group = _space_group(numbers, box, scaled)
    return group is None or _all_sites_vanish(group, box, scaled)


def _vectors_vanish(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    nearest: np.ndarray,
) -> bool:
    """Return whether sum_j Z_j f(r_ij) r_ij / |r_ij| is zero for every atom i.

    f = (1 - r/R)^2 goes smoothly to zero at R, so that no shell is cut; two R are used.
    A sum counts as zero if displacements of `TOLERANCE` can explain it.
    """
    known = nearest[np.isfinite(nearest)]
    longest = float(known.max(initial=0.0))
    for reach in {_REACH, min(_REACH, _SHELLS * longest)}:
        if reach == 0.0:
            continue
        i, j, distances, apart = primitive_neighbor_list(
            "ijdD", pbc, complete_cell(cell), positions, reach
        )
        if not len(i) or distances.min() == 0.0:
            continue
        fading = 1 - distances / reach
        weights = numbers[j]
        pulls = (weights * fading**2 / distances)[:, None] * apart
        steepest = weights * 2 * (fading / reach + fading**2 / distances)
        slope = weights * 2 * (fading**2 / distances - fading / reach)
        # change of a sum if every atom is displaced by 1 Å: the atom itself, its
        # neighbours in random directions, and the images of one atom together
        moves = np.abs(np.bincount(i, slope, len(numbers)))
        moves += 3 * np.sqrt(np.bincount(i, steepest**2, len(numbers)))
        moves += np.bincount(i, steepest, len(numbers)) / np.sqrt(len(numbers))
        for axis in range(3):
            sums = np.bincount(i, pulls[:, axis], len(numbers))
            if (np.abs(sums) > TOLERANCE * moves + 1e-9).any():
                return False
    return True


def _primitive(
    numbers: np.ndarray, box: np.ndarray, scaled: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the primitive cell: numbers, box and scaled positions.

    The cell itself is returned if spglib finds none.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Set OLD_ERROR", DeprecationWarning)
            found = spglib.find_primitive(
                (box.tolist(), scaled.tolist(), numbers.tolist()), symprec=TOLERANCE
            )
    except spglib.SpglibError:
        found = None
    if found is None:
        return numbers, box, scaled
    lattice, places, kinds = found
    return np.asarray(kinds), np.asarray(lattice), np.asarray(places)


def _space_group(
    numbers: np.ndarray, box: np.ndarray, scaled: np.ndarray
) -> spglib.SpglibDataset | None:
    """Return spglib's symmetry dataset; None if spglib finds no group."""
    try:
        with warnings.catch_warnings():
            # spglib warns that its next version will raise exceptions
            warnings.filterwarnings("ignore", "Set OLD_ERROR", DeprecationWarning)
            return spglib.get_symmetry_dataset(
                (box.tolist(), scaled.tolist(), numbers.tolist()), symprec=TOLERANCE
            )
    except spglib.SpglibError:
        return None


def _with_vacuum(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
) -> np.ndarray:
    """Return a cell with vacuum along open directions, which are at right angles."""
    box = np.where(pbc[:, None], cell, 0.0)
    whole: np.ndarray = complete_cell(box)  # open: perpendicular unit vectors
    for axis in np.flatnonzero(~pbc):
        along = positions @ whole[axis]
        whole[axis] *= np.ptp(along) + _VACUUM
    return whole


def _all_sites_vanish(
    group: spglib.SpglibDataset, box: np.ndarray, scaled: np.ndarray
) -> bool:
    """Return whether the mean rotation of the site group is zero for every atom."""
    for atom in np.unique(group.equivalent_atoms):
        apart = group.rotations @ scaled[atom] + group.translations - scaled[atom]
        distances = np.linalg.norm((apart - apart.round()) @ box, axis=1)
        fixing = distances < 10 * TOLERANCE  # other sites are a bond length away
        if group.rotations[fixing].sum(axis=0).any():
            return False
    return True
