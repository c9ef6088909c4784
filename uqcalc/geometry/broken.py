"""Find bonds that are between whole and broken, in one structure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uqcalc.geometry.bonds import BONDED, FARTHEST, Bonds, named_atoms


# Lengths are in units of the single bond, orders and valences in bonds.
# benchmarks/flags.py shows what lies on both sides of each limit.
# About four standard deviations of a harmonic bond at 1000 K, sqrt(kT/k) / length with
# k = 30 eV/Å²: 3.6 % for C-C, 4.8 % for the shorter bonds with hydrogen.
LONG, LONG_WITH_HYDROGEN = 1.15, 1.2
SHARED, SHARING = 1.08, 1.45  # a proton between two partners: nearest and second
LACKING, LEAVING, RADICAL = 0.35, 0.5, 0.75
NEAR = 1.6
_TRIPLE = 2.2  # CO and isocyanides: carbon has two partners fewer
_MOST_TOLD = 3


@dataclass(slots=True)
class Findings:
    """Reasons in words, and the atoms of all of them."""

    reasons: list[str] = field(default_factory=list)
    atoms: set[int] = field(default_factory=set)

    def note(self, why: str, atoms: Iterable[Any]) -> None:
        """Record a reason and its atoms."""
        self.reasons.append(why)
        self.atoms.update(int(i) for i in atoms)


def broken_bonds(bonds: Bonds) -> Findings:
    """Return what is between whole and broken, with the atoms named.

    - Two atoms at 1.15 (with H 1.2) to 1.8 of a single bond that both lack more than
      0.35 bonds; or to 1.6, if one lacks more than 0.5 and the two have no partner in
      common.
    - H whose two nearest partners are at 1.08 to 1.45 of a single bond.
    - H, C, N or O without a partner within 1.25.
    - C with more than four partners.
    - In molecules: two or more of C, N and O that lack more than 0.75 bonds.
    """
    found = Findings()
    if _unusual(bonds):
        _check_hydrogen(bonds, found)
        _check_bonds(bonds, found)
        _check_partners(bonds, found)
        if not bonds.periodic:
            _check_radicals(bonds, found)
    return found


def _unusual(bonds: Bonds) -> bool:
    """Return whether the slower checks are needed; most structures do not need them."""
    between = (bonds.stretch > SHARED) & (bonds.stretch < SHARING)
    between &= bonds.counts[bonds.first] & bonds.counts[bonds.second]
    return bool(
        between.any()
        or (bonds.lacks > LACKING).any()
        or (bonds.numbers[bonds.partners > 4] == 6).any()
    )


def _check_hydrogen(bonds: Bonds, found: Findings) -> None:
    """Record H on its way between two partners, and atoms without a partner."""
    numbers, nearest = bonds.numbers, bonds.nearest
    protons = np.flatnonzero(
        bonds.counts & (numbers == 1) & (nearest > SHARED) & (bonds.seconds < SHARING)
    )
    for atom in protons[:_MOST_TOLD]:
        one, other = bonds.closest_two(atom)
        pair = named_atoms(numbers, [one, other]).replace(", ", " and ")
        found.note(
            f"{named_atoms(numbers, [atom])} is between {pair} ({bonds.text(atom, one)}"
            f" and {bonds.text(atom, other)}): it moves from one to the other",
            (atom, one, other),
        )
    found.atoms.update(protons.tolist())
    alone = bonds.counts & (bonds.partners == 0) & np.isin(numbers, (1, 6, 7, 8))
    alone[protons] = False
    lone = np.flatnonzero(alone)
    if len(lone) and len(numbers) > 1:
        verb = "has" if len(lone) == 1 else "have"
        found.note(
            f"{named_atoms(numbers, lone)} {verb} no partner within {BONDED:g} of a "
            "single bond: broken off",
            lone,
        )


def _check_bonds(bonds: Bonds, found: Findings) -> None:
    """Record pairs between bonded and apart whose atoms lack valence."""
    first, second = bonds.first, bonds.second
    one, other = bonds.lacks[first], bonds.lacks[second]
    hydrogen = (bonds.numbers[first] == 1) | (bonds.numbers[second] == 1)
    least = np.where(hydrogen, LONG_WITH_HYDROGEN, LONG)
    apart = (bonds.stretch > least) & (bonds.stretch < FARTHEST)
    both = np.minimum(one, other) > LACKING
    single = (np.maximum(one, other) > LEAVING) & (bonds.stretch < NEAR)
    rows = np.flatnonzero(apart & (both | single))
    if not len(rows):
        return
    # two partners of one atom are this far apart in every molecule
    kept = both[rows] | ~bonds.share_a_partner(rows)
    rows = rows[kept]
    rows = rows[np.argsort(bonds.stretch[rows], kind="stable")]
    for row in rows[:_MOST_TOLD]:
        ends = [int(first[row]), int(second[row])]
        pair = named_atoms(bonds.numbers, ends).replace(", ", " and ")
        found.note(
            f"{pair} are between bonded and apart: {bonds.distances[row]:.3g} Å, "
            f"{bonds.stretch[row]:.2f} of a single bond",
            ends,
        )
    found.atoms.update(first[rows].tolist(), second[rows].tolist())


def _check_partners(bonds: Bonds, found: Findings) -> None:
    """Record C with five partners."""
    many = np.flatnonzero(bonds.counts & (bonds.numbers == 6) & (bonds.partners > 4))
    if len(many):
        verb = "has" if len(many) == 1 else "have"
        found.note(
            f"{named_atoms(bonds.numbers, many)} {verb} more than four partners", many
        )


def _check_radicals(bonds: Bonds, found: Findings) -> None:
    """Record two or more atoms of a molecule that each lack a bond."""
    lacking = (bonds.lacks > RADICAL) & (bonds.strongest < _TRIPLE)
    atoms = np.flatnonzero(lacking & np.isin(bonds.numbers, (6, 7, 8)))
    fresh = [i for i in atoms if int(i) not in found.atoms]
    if len(atoms) > 1 and fresh:
        found.note(
            f"{named_atoms(bonds.numbers, atoms)} lack a bond each: fragments of a "
            "broken molecule, or radicals",
            atoms,
        )
