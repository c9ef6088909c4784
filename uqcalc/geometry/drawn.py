"""Bonds for pictures and motifs: from distances, with periodic images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

from uqcalc.geometry.bonds import NONMETAL


# Two atoms count as bonded up to this multiple of the sum of the covalent radii
# (doi:10.1039/b801115j).
BONDED = 1.2


class DrawnBonds(NamedTuple):
    """Bonds of a structure; each bond is listed twice, once from each of its atoms.

    Attributes
    ----------
    first, second : arrays (2 x bonds,)
        Indices of the atoms.
    vectors : array (2 x bonds, 3)
        From the first atom to the nearest image of the second, in Å.
    inside : boolean array (2 x bonds,)
        Whether the bond does not pass through a face of the cell.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    vectors: NDArray[np.float64]
    inside: NDArray[np.bool_]


def drawn_bonds(atoms: Atoms) -> DrawnBonds:
    """Return pairs of atoms closer than 1.2 times the sum of their covalent radii.

    Two metals are bonded only in a structure without nonmetals: in an oxide the metals
    are close to each other, but bonded to oxygen.
    """
    cutoffs = natural_cutoffs(atoms, mult=BONDED)
    first, second, vectors, shifts = neighbor_list("ijDS", atoms, cutoffs)
    nonmetal = NONMETAL[atoms.numbers]
    if nonmetal.any():
        kept = nonmetal[first] | nonmetal[second]
        first, second, vectors, shifts = (
            part[kept] for part in (first, second, vectors, shifts)
        )
    return DrawnBonds(first, second, vectors, ~shifts.any(axis=1))
