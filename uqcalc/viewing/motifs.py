"""Frequency of elements and motifs among unreliable and reliable atoms."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from uqcalc.geometry.drawn import drawn_bonds


BLOCKS = 20  # contiguous blocks of frames for the intervals
_DRAWS = 500
_LEAST = 5  # smallest number of atoms of a motif
_LEVEL = 0.95


class Enrichment(NamedTuple):
    """How much more frequent a motif is among unreliable than among reliable atoms.

    Attributes
    ----------
    name : str
    ratio, low, high : float
        Share of the motif among the unreliable atoms divided by its share among the
        reliable ones, and a 95 % interval (NaN if there are too few blocks).
    unreliable, reliable : int
        Number of such atoms with this motif.
    """

    name: str
    ratio: float
    low: float
    high: float
    unreliable: int
    reliable: int


def motifs_of(atoms: Atoms) -> list[str]:
    """Return the motif of each atom: its element, and the sorted neighbour elements.

    Examples
    --------
    >>> from ase.build import molecule
    >>> motifs_of(molecule("H2O"))
    ['O(H2)', 'H(O)', 'H(O)']
    """
    bonds = drawn_bonds(atoms)
    around: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for i, j in zip(bonds.first, bonds.second, strict=True):
        around[int(i)][chemical_symbols[atoms.numbers[j]]] += 1
    found = []
    for index, symbol in enumerate(atoms.symbols):
        parts = sorted(around[index].items())
        text = "".join(f"{name}{n if n > 1 else ''}" for name, n in parts)
        found.append(f"{symbol}({text})" if text else f"{symbol}(alone)")
    return found


@dataclass
class MotifCounts:
    """Counts motifs of unreliable and reliable atoms, frame by frame.

    Parameters
    ----------
    unreliable, reliable : float
        An atom with P below the first is unreliable, with P of at least the second
        reliable; those in between do not count.
    """

    unreliable: float = 0.5
    reliable: float = 0.8
    frames: list[tuple[Counter[str], Counter[str]]] = field(default_factory=list)

    def add(self, atoms: Atoms, reliabilities: NDArray[np.float64]) -> None:
        """Count the atoms of one frame; NaN does not count.

        Parameters
        ----------
        atoms : Atoms
        reliabilities : array (atoms,)
            P(reliable) of each atom.
        """
        bad = reliabilities < self.unreliable
        good = reliabilities >= self.reliable
        pair: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        if bad.any() or good.any():
            motifs = motifs_of(atoms)
            for of, chosen in zip(pair, (bad, good), strict=True):
                of.update(motifs[i] for i in np.flatnonzero(chosen))
        self.frames.append(pair)

    def motifs(self, seed: int = 0) -> list[Enrichment]:
        """Return the enrichment of each motif, the most enriched first."""
        return self._enriched(lambda name: name, seed)

    def elements(self, seed: int = 0) -> list[Enrichment]:
        """Return the enrichment of each element, the most enriched first."""
        return self._enriched(lambda name: name.partition("(")[0], seed)

    def _enriched(self, of: object, seed: int) -> list[Enrichment]:
        named = of if callable(of) else str
        names = sorted({named(m) for pair in self.frames for c in pair for m in c})
        if not names:
            return []
        place = {name: k for k, name in enumerate(names)}
        table = np.zeros((len(self.frames), 2, len(names)))
        for row, pair in enumerate(self.frames):
            for side, counts in enumerate(pair):
                for motif, n in counts.items():
                    table[row, side, place[named(motif)]] += n
        return _ratios(names, table, seed)


def _ratios(
    names: Sequence[str], table: NDArray[np.float64], seed: int
) -> list[Enrichment]:
    """Return the ratios of shares; ``table`` is (frames, 2, motifs)."""
    total = table.sum(axis=0)
    if not total[0].sum() or not total[1].sum():
        return []
    ratio = _ratio(total)
    parts = np.array_split(table, min(BLOCKS, len(table)))
    blocks = np.array([part.sum(axis=0) for part in parts])
    low = high = np.full(len(names), np.nan)
    if len(blocks) >= 5:
        # neighbouring frames are correlated: whole blocks are drawn
        rng = np.random.default_rng(seed)
        rows = rng.integers(len(blocks), size=(_DRAWS, len(blocks)))
        drawn = np.array([_ratio(blocks[chosen].sum(axis=0)) for chosen in rows])
        edge = (1 - _LEVEL) / 2
        low, high = np.quantile(drawn, [edge, 1 - edge], axis=0)
    found = [
        Enrichment(name, float(r), float(a), float(b), int(bad), int(good))
        for name, r, a, b, bad, good in zip(
            names, ratio, low, high, total[0], total[1], strict=True
        )
        if bad + good >= _LEAST
    ]
    return sorted(found, key=lambda e: -e.ratio)


def _ratio(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return share among bad atoms / share among good ones; half an atom is added.

    The added half keeps the ratio finite where a motif is missing on one side.
    """
    more = counts + 0.5
    shares = more / more.sum(axis=1, keepdims=True)
    return np.asarray(shares[0] / shares[1])
