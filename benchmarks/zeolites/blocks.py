"""Blocks of structures for the comparison of signals with true force errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms

from zeolites.frames import TRAINED, UNSEEN, silica, split, topology


SEED = 5
PER_BLOCK = 180
AMPLITUDES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # Å
STRETCHES = (0.88, 0.91, 0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.07, 1.1, 1.14)


def labelled_blocks() -> dict[str, list[Atoms]]:
    """Return the blocks with DFT forces."""
    rng = np.random.default_rng(SEED)
    held_out = [atoms for name in TRAINED for atoms in split(name)[1]]
    blocks = {"held-out frames": _some(held_out, rng)}
    for name in UNSEEN:
        blocks[f"unseen topology {name}"] = _some(topology(name), rng)
    blocks["silica crystal"] = _some(silica("crystal"), rng, 90)
    blocks["silica melt-quench"] = _some(silica("melt_quench"), rng, 90)
    return blocks


def unlabelled_blocks() -> dict[str, list[Atoms]]:
    """Return the blocks without DFT forces; a reference model labels them."""
    rng = np.random.default_rng(SEED + 1)
    held_out = [atoms for name in TRAINED for atoms in split(name)[1]]
    return {
        "rattled": _series(held_out, rng, AMPLITUDES, _rattled),
        "compressed and stretched": _series(held_out, rng, STRETCHES, _scaled),
    }


def attack_starts(count: int) -> list[Atoms]:
    """Return the starts of the attack: held-out frames of all topologies."""
    rng = np.random.default_rng(SEED + 2)
    held_out = [atoms for name in TRAINED for atoms in split(name)[1]]
    return [_plain(atoms) for atoms in _some(held_out, rng, count)]


def training_frames(count: int) -> list[Atoms]:
    """Return some training frames of the models."""
    rng = np.random.default_rng(SEED + 3)
    return _some([a for name in TRAINED for a in split(name)[0]], rng, count)


def _some(
    frames: Sequence[Atoms], rng: np.random.Generator, count: int = PER_BLOCK
) -> list[Atoms]:
    chosen = rng.permutation(len(frames))[:count]
    return [frames[i] for i in sorted(chosen)]


def _series(
    frames: Sequence[Atoms],
    rng: np.random.Generator,
    amounts: Sequence[float],
    change: Callable[[Atoms, float, np.random.Generator], None],
) -> list[Atoms]:
    made = []
    for index in range(PER_BLOCK):
        atoms = _plain(frames[int(rng.integers(len(frames)))])
        amount = amounts[index % len(amounts)]
        change(atoms, amount, rng)
        atoms.info["amount"] = amount
        made.append(atoms)
    return made


def _rattled(atoms: Atoms, amount: float, rng: np.random.Generator) -> None:
    atoms.positions += rng.normal(0, amount, atoms.positions.shape)


def _scaled(atoms: Atoms, amount: float, rng: np.random.Generator) -> None:
    """Scale all lengths, or those in one direction."""
    factors = np.full(3, amount)
    if rng.random() < 0.5:
        factors[:] = 1.0
        factors[rng.integers(3)] = amount
    atoms.set_cell(atoms.cell.array * factors[:, None], scale_atoms=True)


def _plain(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
