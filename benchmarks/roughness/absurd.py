"""Absurd crystals by kind, made from ordinary ones; none of them should be RELIABLE.

Some are sensible by chance (copper on another close-packed lattice, dense sodium), so a
share of RELIABLE of exactly zero is not expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii

from roughness.garbage import (
    METALS,
    OTHERS,
    _closest_ratio,
    _soup,
    some_crystal,
)


LATTICES = (
    "fcc", "bcc", "sc", "diamond", "rocksalt", "cesiumchloride", "zincblende",
)  # fmt: skip
_BINARY = ("rocksalt", "cesiumchloride", "zincblende")
_SENSIBLE = (0.85, 1.3)  # closest contact, in units of the sum of covalent radii
_KNOWN = 0.4  # share of structures made from the crystals of `roughness.garbage`


def ordinary(rng: np.random.Generator, frames: Sequence[Atoms]) -> Atoms:
    """Return a rattled textbook crystal or a labelled structure, without labels."""
    if rng.random() < _KNOWN:
        return some_crystal(rng)
    a = frames[rng.integers(len(frames))]
    return Atoms(a.numbers, positions=a.positions, cell=a.cell, pbc=True)


def scaled(atoms: Atoms, factor: float) -> Atoms:
    """Return the structure with ``factor`` times its volume."""
    atoms.set_cell(atoms.cell * factor ** (1 / 3), scale_atoms=True)
    return atoms


def _size(atoms: Atoms) -> float:
    return float(np.sum(covalent_radii[atoms.numbers] ** 3))


def wrong_lattice(rng: np.random.Generator, frames: Sequence[Atoms]) -> Atoms:
    """Put the elements of a crystal at random on the sites of another lattice.

    The ratio of volume to the sum of cubed covalent radii stays.
    """
    a = ordinary(rng, frames)
    lattice = str(rng.choice(LATTICES))
    symbol = "NaCl" if lattice in _BINARY else "Cu"
    b = bulk(symbol, lattice, a=5.0) * tuple(rng.integers(1, 3, 3))
    b.numbers = rng.choice(a.numbers, len(b))
    b = scaled(b, a.get_volume() / _size(a) * _size(b) / b.get_volume())
    b.rattle(rng.uniform(0.02, 0.1), rng=rng)
    return b


def other_elements(
    rng: np.random.Generator, frames: Sequence[Atoms], *, of_crystal: bool
) -> Atoms:
    """Put random elements, or those of another crystal, on the sites of a crystal."""
    while True:
        a = ordinary(rng, frames)
        kinds = np.unique(a.numbers)
        if of_crystal:
            new = rng.choice(np.unique(ordinary(rng, frames).numbers), len(kinds))
        else:
            symbols = rng.choice(METALS + OTHERS, len(kinds))
            new = np.array([atomic_numbers[str(s)] for s in symbols])
        if set(new) & set(kinds):
            continue
        a.numbers = new[np.searchsorted(kinds, a.numbers)]
        if not _SENSIBLE[0] < _closest_ratio(a) < _SENSIBLE[1]:
            return a


KINDS = {
    "compressed to 0.34 to 0.6 of the volume": lambda r, f: scaled(
        ordinary(r, f), r.uniform(0.34, 0.6)
    ),
    "stretched to 1.8 to 8 times the volume": lambda r, f: scaled(
        ordinary(r, f), float(np.exp(r.uniform(np.log(1.8), np.log(8))))
    ),
    "wrong lattice": wrong_lattice,
    "random elements on the sites": lambda r, f: other_elements(r, f, of_crystal=False),
    "elements of another crystal": lambda r, f: other_elements(r, f, of_crystal=True),
    "random soup": lambda r, _: _soup(r, METALS + OTHERS, periodic=True),
}


def draw(frames: Sequence[Atoms], count: int, seed: int) -> Iterator[tuple[str, Atoms]]:
    """Yield ``count`` structures of each kind; each kind has its own random numbers."""
    for row, (kind, make) in enumerate(KINDS.items()):
        rng = np.random.default_rng([seed, row])
        for _ in range(count):
            yield kind, make(rng, frames)
