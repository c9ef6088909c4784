"""Garbage structures by kind; none of them should be RELIABLE."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list


Maker = Callable[[np.random.Generator], Atoms]

MOLECULES = [
    "H2O", "CH4", "NH3", "CH3OH", "CH3CH2OH", "C6H6", "CH3CHO", "CH3COOH", "CH3NO2",
    "C2H4", "C2H6", "HCN", "H2CO", "HCOOH", "CH3CN", "CH3CH2NH2", "C5H5N", "C4H4O",
    "C4H4NH", "CH3COCH3", "CH3CONH2", "C3H8", "isobutane", "butadiene",
]  # fmt: skip
CRYSTALS = {
    "NaCl": ("rocksalt", 5.64), "MgO": ("rocksalt", 4.21), "LiF": ("rocksalt", 4.03),
    "KBr": ("rocksalt", 6.60), "CsCl": ("cesiumchloride", 4.12),
    "ZnS": ("zincblende", 5.41), "GaAs": ("zincblende", 5.65),
    "Cu": ("fcc", 3.61), "Al": ("fcc", 4.05), "Ni": ("fcc", 3.52), "Ag": ("fcc", 4.09),
    "W": ("bcc", 3.16), "Fe": ("bcc", 2.87), "Na": ("bcc", 4.23),
    "Si": ("diamond", 5.43), "C": ("diamond", 3.57), "Ge": ("diamond", 5.66),
}  # fmt: skip
METALS = [
    "Li", "Na", "K", "Mg", "Ca", "Al", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu",
    "Zn", "Zr", "Nb", "Mo", "Ag", "Sn", "Ba", "W", "Pt", "Au",
]  # fmt: skip
OTHERS = [
    "H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I",
]  # fmt: skip


def some_molecule(rng: np.random.Generator) -> Atoms:
    return molecule(str(rng.choice(MOLECULES)))


def some_crystal(rng: np.random.Generator, *, perfect: bool = False) -> Atoms:
    name = str(rng.choice(list(CRYSTALS)))
    structure, a = CRYSTALS[name]
    atoms = bulk(name, structure, a=a)
    if not perfect:
        atoms = atoms * tuple(rng.integers(1, 3, 3))
        atoms.rattle(0.05, rng=rng)
    return atoms


def _scaled(atoms: Atoms, factor: float) -> Atoms:
    if atoms.pbc.any():
        atoms.set_cell(atoms.cell * factor, scale_atoms=True)
    else:
        atoms.positions = atoms.positions.mean(axis=0) * (1 - factor) + (
            factor * atoms.positions
        )
    return atoms


def _fused(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    if len(atoms) < 2:
        atoms = atoms * (2, 1, 1)
    i, j = rng.choice(len(atoms), 2, replace=False)
    step = rng.normal(size=3)
    distance = rng.uniform(0.03, 0.3)
    atoms.positions[i] = atoms.positions[j] + distance * step / np.linalg.norm(step)
    return atoms


def _soup(rng: np.random.Generator, symbols: list[str], *, periodic: bool) -> Atoms:
    count = int(rng.integers(4, 25))
    chosen = [str(s) for s in rng.choice(symbols, count)]
    edge = (count * rng.uniform(4.0, 30.0)) ** (1 / 3)  # Å³ an atom
    return Atoms(
        chosen,
        positions=rng.uniform(0, edge, (count, 3)),
        cell=[edge] * 3 if periodic else None,
        pbc=periodic,
    )


def _shuffled(rng: np.random.Generator) -> Atoms:
    """Exchange the elements of a molecule, until some differ."""
    while True:
        atoms = some_molecule(rng)
        if len(set(atoms.numbers)) < 2:
            continue
        mixed = rng.permutation(atoms.numbers)
        if np.mean(mixed != atoms.numbers) >= 0.3:
            atoms.numbers = mixed
            return atoms


def _pulled(rng: np.random.Generator) -> Atoms:
    """Pull one atom off along its shortest bond, to 1.8 to 3 times the bond length."""
    atoms = some_molecule(rng)
    i = int(rng.integers(len(atoms)))
    vectors = atoms.positions[i] - atoms.positions
    distances = np.linalg.norm(vectors, axis=1)
    distances[i] = np.inf
    j = int(np.argmin(distances))
    atoms.positions[i] = atoms.positions[j] + rng.uniform(1.8, 3.0) * vectors[j]
    return atoms


def _scattered(rng: np.random.Generator) -> Atoms:
    """Put atoms so far apart that none has a neighbour."""
    count = int(rng.integers(1, 9))
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), axis=-1).reshape(-1, 3)
    places = 9.0 * grid[:count] + rng.uniform(-0.5, 0.5, (count, 3))
    return Atoms([str(s) for s in rng.choice(list("HCNO"), count)], positions=places)


def _flown(rng: np.random.Generator) -> Atoms:
    """Move one atom of a molecule 8 to 60 Å away from the others."""
    atoms = some_molecule(rng)
    step = rng.normal(size=3)
    away = atoms.positions.mean(axis=0) + rng.uniform(8, 60) * step / (
        np.linalg.norm(step)
    )
    atoms.positions[int(rng.integers(len(atoms)))] = away
    return atoms


def _rattled(rng: np.random.Generator) -> Atoms:
    atoms = some_molecule(rng)
    atoms.positions += rng.normal(0, rng.uniform(0.5, 1.5), atoms.positions.shape)
    return atoms


def _crammed(rng: np.random.Generator) -> Atoms:
    """Put a molecule into a cell in which its images overlap."""
    atoms = some_molecule(rng)
    atoms.set_cell([rng.uniform(1.2, 2.2)] * 3)
    atoms.pbc = True
    return atoms


def _wrong_elements(rng: np.random.Generator, *, perfect: bool) -> Atoms:
    """Put random elements on the sites of a crystal; the lattice stays."""
    atoms = some_crystal(rng, perfect=perfect)
    given = {z: i for i, z in enumerate(dict.fromkeys(atoms.numbers))}
    while True:
        chosen = [str(s) for s in rng.choice(METALS + OTHERS, len(given))]
        trial = atoms.copy()
        trial.symbols = [chosen[given[z]] for z in atoms.numbers]
        ratio = _closest_ratio(trial)
        if not 0.85 < ratio < 1.3:  # otherwise it can be a sensible crystal by chance
            return trial


def _closest_ratio(atoms: Atoms) -> float:
    """Return the shortest distance in units of the sum of covalent radii."""
    i, j, d = neighbor_list("ijd", atoms, 8.0)
    radii = covalent_radii[atoms.numbers]
    return float(np.min(d / (radii[i] + radii[j]), initial=np.inf))


def molecular_kinds() -> dict[str, Maker]:
    """Return the kinds for the bundled potential (molecules of H, C, N, O)."""
    return {
        "random soup": lambda r: _soup(r, list("HCNO"), periodic=False),
        "fused atoms": lambda r: _fused(some_molecule(r), r),
        "compressed to 0.3 to 0.7": lambda r: _scaled(
            some_molecule(r), r.uniform(0.3, 0.7)
        ),
        "expanded to 1.5 to 4": lambda r: _scaled(some_molecule(r), r.uniform(1.5, 4)),
        "elements shuffled": _shuffled,
        "an atom pulled off": _pulled,
        "an atom flown away": _flown,
        "scattered atoms": _scattered,
        "rattled by 0.5 to 1.5 Å": _rattled,
        "crammed into a small cell": _crammed,
    }


def crystal_kinds() -> dict[str, Maker]:
    """Return the kinds for CHGNet."""
    return {
        "random soup": lambda r: _soup(r, METALS + OTHERS, periodic=True),
        "fused atoms": lambda r: _fused(some_crystal(r), r),
        "perfect, compressed to 0.5 to 0.8": lambda r: _scaled(
            some_crystal(r, perfect=True), r.uniform(0.5, 0.8)
        ),
        "perfect, expanded to 1.4 to 4": lambda r: _scaled(
            some_crystal(r, perfect=True), r.uniform(1.4, 4)
        ),
        "compressed to 0.5 to 0.8": lambda r: _scaled(
            some_crystal(r), r.uniform(0.5, 0.8)
        ),
        "expanded to 1.4 to 4": lambda r: _scaled(some_crystal(r), r.uniform(1.4, 4)),
        "perfect, random elements": lambda r: _wrong_elements(r, perfect=True),
        "random elements": lambda r: _wrong_elements(r, perfect=False),
        "molecule shuffled, in a box": _boxed,
    }


def _boxed(rng: np.random.Generator) -> Atoms:
    atoms = _shuffled(rng)
    atoms.center(vacuum=4.0)
    atoms.pbc = True
    return atoms


def draw(kinds: dict[str, Maker], count: int, seed: int) -> Iterator[tuple[str, Atoms]]:
    """Yield ``count`` structures of each kind; each kind has its own random numbers."""
    for row, (kind, make) in enumerate(kinds.items()):
        rng = np.random.default_rng([seed, row])
        for _ in range(count):
            yield kind, make(rng)
