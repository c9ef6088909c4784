"""Which geometries and groups a probe was made from, as hashes that go into its file.

A geometry is told by a few lengths that do not change when a structure is moved or
turned, or wrapped into its cell: with fixed weights ``w_k`` for the atoms in their
order, ``v_k = sum_i w_ki x_i / sqrt(atoms)`` where ``x_i`` are positions about their
mean or, along periodic directions, cosines and sines of the scaled positions. Lengths
of these vectors are cut into bins, and a geometry that is looked up is tried in the
next bin too where it lies near an edge: what a file rounds, or single precision, does
not make it another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray


_BIN = 2e-4  # Å: above what files round, below what a step of a run moves
_NEAR = _BIN / 4  # of an edge: the next bin is looked into as well
_WAVES = np.array([1.2345678, 2.7182818, 4.3219876])  # of the weights, in the order
_MIXES = np.array([[1.0, 0.6180340, 0.3247180], [-0.4142136, 1.0, 0.7320508]])


class Labelled(Protocol):
    """Labelled structures, as far as a probe keeps them; a `Dataset` is one."""

    @property
    def geometries(self) -> NDArray[np.int64] | None:
        """Hashes of the geometries (`geometry_hashes`); None where unknown."""

    @property
    def groups(self) -> Sequence[str]:
        """Group of each structure."""

    @property
    def group_key(self) -> str | None:
        """Entry of ``atoms.info`` that names the groups; None without groups."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Geometries and groups of the structures that a probe was fitted to.

    Attributes
    ----------
    geometries, groups : arrays of int64, ascending
        Empty where nobody knows: files of earlier versions, labels without a group key.
    """

    geometries: NDArray[np.int64]
    groups: NDArray[np.int64]

    @classmethod
    def nothing(cls) -> Seen:
        """Return what there is where nobody knows."""
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))

    @classmethod
    def of(cls, sets: Iterable[Labelled | None]) -> Seen:
        """Return what all of ``sets`` hold; those that are None hold nothing."""
        present = [data for data in sets if data is not None]
        geometries = [d.geometries for d in present if d.geometries is not None]
        groups = {
            group_hash(key, name)
            for data in present
            if (key := data.group_key) is not None
            for name in set(data.groups)
        }
        nothing = cls.nothing()
        return cls(
            np.unique(np.concatenate([nothing.geometries, *geometries])),
            np.array(sorted(groups), dtype=np.int64),
        )

    def frames(self, frames: Sequence[Atoms], rows: Iterable[int]) -> list[int]:
        """Return those of ``rows`` whose geometry is among these."""
        known = set(self.geometries.tolist())
        return [
            i for i in rows if known and not known.isdisjoint(_candidates(frames[i]))
        ]

    def names(self, key: str | None, names: Iterable[str]) -> list[str]:
        """Return those of the ``names`` of groups by ``key`` that are among these."""
        if key is None:
            return []
        known = set(self.groups.tolist())
        return sorted(name for name in set(names) if group_hash(key, name) in known)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return both for a file."""
        return {
            "geometries": torch.from_numpy(self.geometries),
            "groups": torch.from_numpy(self.groups),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Seen:
        """Rebuild from `tensors`; files of earlier versions have none."""
        none = torch.empty(0, dtype=torch.int64)
        return cls(
            tensors.get("geometries", none).numpy(), tensors.get("groups", none).numpy()
        )


class Geometries:
    """Geometries met so far, which are known again as `Seen` knows them.

    Those that are not finite, or whose cell has no volume, are never known.
    """

    def __init__(self) -> None:
        self._met: dict[int, list[Atoms]] = {}

    def find(self, frame: Atoms) -> list[Atoms]:
        """Return the frames met so far that have the geometry of ``frame``."""
        if not _tellable(frame):
            return []
        tried = set(_candidates(frame))
        return [met for number in tried for met in self._met.get(number, ())]

    def add(self, frames: Iterable[Atoms]) -> None:
        """Take note of frames."""
        for frame in frames:
            if _tellable(frame):
                number = _hash(frame, _bins(_lengths(frame)))
                self._met.setdefault(number, []).append(frame)


def geometry_hashes(frames: Sequence[Atoms], rows: Iterable[int]) -> NDArray[np.int64]:
    """Return a number for the geometry of each of ``rows``, (rows,)."""
    found = [_hash(frame := frames[i], _bins(_lengths(frame))) for i in rows]
    return np.array(found, dtype=np.int64)


def group_hash(key: str, name: str) -> int:
    """Return a number for the group ``name`` by ``key``."""
    return _number(f"{key}\0{name}".encode())


def _candidates(frame: Atoms) -> list[int]:
    """Return the numbers under which a geometry may have been kept."""
    lengths = _lengths(frame)
    either = zip(_bins(lengths - _NEAR), _bins(lengths + _NEAR), strict=True)
    tried = product(*({int(low), int(high)} for low, high in either))
    return [_hash(frame, np.array(bins, dtype=np.int64)) for bins in tried]


def _bins(lengths: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(lengths / _BIN).astype(np.int64)


def _hash(frame: Atoms, bins: NDArray[np.int64]) -> int:
    kinds = np.asarray(frame.numbers, dtype=np.int64).tobytes()
    return _number(kinds + np.asarray(frame.pbc, dtype=bool).tobytes() + bins.tobytes())


def _number(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)


def _tellable(frame: Atoms) -> bool:
    """Say whether a geometry has lengths that tell it from others."""
    cell = frame.cell.array
    if not (np.isfinite(frame.positions).all() and np.isfinite(cell).all()):
        return False
    spans = np.linalg.matrix_rank(frame.cell.complete().array) == len(cell)
    return bool(spans or not frame.pbc.any())


def _lengths(frame: Atoms) -> NDArray[np.float64]:
    """Return what tells a geometry from others, in Å, whatever its place and turn."""
    atoms = len(frame)
    if atoms == 0:
        return np.empty(0)
    points, cell = frame.positions - frame.positions.mean(axis=0), np.empty(0)
    if frame.pbc.any():
        points = _periodic(frame)
        cell = np.linalg.norm(_MIXES @ (frame.cell.array * frame.pbc[:, None]), axis=1)
    weights = np.sqrt(2) * np.cos(np.outer(_WAVES, np.arange(1, atoms + 1)))
    first, second, third = weights @ points / np.sqrt(atoms)
    own = np.linalg.norm([first, second, first - second, third], axis=1)
    return np.concatenate([own, cell])


def _periodic(frame: Atoms) -> NDArray[np.float64]:
    """Return coordinates that wrapping an atom into the cell does not change."""
    cell = frame.cell.complete()
    scaled = (frame.positions - frame.positions[0]) @ np.linalg.inv(cell.array)
    columns = []
    for periodic, along, length in zip(
        frame.pbc, scaled.T, cell.lengths(), strict=True
    ):
        if periodic:
            turn, radius = 2 * np.pi * along, length / (2 * np.pi)
            columns += [radius * np.cos(turn), radius * np.sin(turn)]
        else:
            columns.append(length * along)
    return np.stack(columns, axis=1)
