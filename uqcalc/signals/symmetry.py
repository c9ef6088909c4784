"""Whether symmetry alone makes every force of a structure vanish."""

from __future__ import annotations

import warnings

import numpy as np
import spglib
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list


# A structure this close to symmetric positions, in Å, has forces of nothing but that
# distance: with force constants of 5 eV/Å², of 5 meV/Å.
TOLERANCE = 1e-3
# Space groups are searched in structures of so many atoms at most: the time grows
# faster than their square, 0.2 s for 500 atoms of a perfect crystal.
MOST_ATOMS = 500

_REACH = 6.0  # Å; of the sums over neighbours
_SHELLS = 2.5  # the same in units of the longest distance to a nearest neighbour
_VACUUM = 20.0  # Å; beside films and wires


def forces_vanish(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    nearest: np.ndarray,
) -> bool:
    """Say whether every force is zero whatever the potential, by symmetry.

    The force on an atom is left as it is by all operations that map the structure onto
    itself and the atom onto itself or an image of it: it is zero where the mean of
    their rotations is (site groups with an inversion, several axes, or an axis and a
    mirror across it). This must hold for every atom. Of a molecule that is so for a
    single atom only.

    The space group is spglib's. It is asked only where, for each atom, sums over its
    neighbours that turn with the structure as a force does are zero; for more than
    ``MOST_ATOMS`` these sums decide alone. Where spglib finds no group, too.

    Parameters
    ----------
    numbers : array (atoms,)
    positions, cell : array (atoms, 3), (3, 3)
        In Å.
    pbc : array (3,) of bool
    nearest : array (atoms,)
        Distance to each atom's nearest neighbour in Å; infinite where unknown.
    """
    if not pbc.any():
        return len(numbers) == 1
    if not _vectors_vanish(numbers, positions, cell, pbc, nearest):
        return False
    if len(numbers) > MOST_ATOMS:
        return True
    box = _with_vacuum(positions, cell, pbc)
    scaled = positions @ np.linalg.inv(box)
    group = _space_group(numbers, box, scaled)
    return group is None or _all_sites_vanish(group, box, scaled)


def _vectors_vanish(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    nearest: np.ndarray,
) -> bool:
    """Say whether sum_j Z_j f(r_ij) r_ij / |r_ij| is zero for every atom i.

    f = (1 - r/R)^2 for two R, which fades, so that no shell is cut. Zero is what atoms
    that are off by `TOLERANCE` could make of it.
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
        # how far a sum moves where every atom is off by 1 Å: its own way, and the
        # neighbours' at random, of which the images of an atom go the same way
        moves = np.abs(np.bincount(i, slope, len(numbers)))
        moves += 3 * np.sqrt(np.bincount(i, steepest**2, len(numbers)))
        moves += np.bincount(i, steepest, len(numbers)) / np.sqrt(len(numbers))
        for axis in range(3):
            sums = np.bincount(i, pulls[:, axis], len(numbers))
            if (np.abs(sums) > TOLERANCE * moves + 1e-9).any():
                return False
    return True


def _space_group(
    numbers: np.ndarray, box: np.ndarray, scaled: np.ndarray
) -> spglib.SpglibDataset | None:
    """Return what spglib finds; None where it finds nothing."""
    try:
        with warnings.catch_warnings():
            # it announces that failures will be exceptions in its next version
            warnings.filterwarnings("ignore", "Set OLD_ERROR", DeprecationWarning)
            return spglib.get_symmetry_dataset(
                (box.tolist(), scaled.tolist(), numbers.tolist()), symprec=TOLERANCE
            )
    except spglib.SpglibError:
        return None


def _with_vacuum(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
) -> np.ndarray:
    """Return a cell whose open directions are at right angles, and long enough."""
    box = np.where(pbc[:, None], cell, 0.0)
    whole: np.ndarray = complete_cell(box)  # open directions: unit vectors, across
    for axis in np.flatnonzero(~pbc):
        along = positions @ whole[axis]
        whole[axis] *= np.ptp(along) + _VACUUM
    return whole


def _all_sites_vanish(
    group: spglib.SpglibDataset, box: np.ndarray, scaled: np.ndarray
) -> bool:
    """Say whether the mean rotation of every site's group is zero."""
    for atom in np.unique(group.equivalent_atoms):
        apart = group.rotations @ scaled[atom] + group.translations - scaled[atom]
        distances = np.linalg.norm((apart - apart.round()) @ box, axis=1)
        fixing = distances < 10 * TOLERANCE  # others are a bond away
        if group.rotations[fixing].sum(axis=0).any():
            return False
    return True
