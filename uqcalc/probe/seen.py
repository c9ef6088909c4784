"""Hashes of the geometries and groups used for a probe; they are stored in its file.

A geometry is identified by a few lengths that do not change when a structure is moved,
rotated or wrapped into its cell. They are the norms of
``v_k = sum_i w_ki x_i / sqrt(atoms)`` with fixed weights ``w_k`` for the atoms in their
order. ``x_i`` are positions about their mean or, along periodic directions, cosines and
sines of the scaled positions. The lengths are put into bins. A search also tries the
next bin if a length is near an edge, so that rounding in a file or in single precision
does not change the result.
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


_BIN = 2e-4  # Å: more than rounding in files, less than a step of a run
_NEAR = _BIN / 4  # Å from an edge: the next bin is tried too
_WAVES = np.array([1.2345678, 2.7182818, 4.3219876])  # frequencies of the weights
_MIXES = np.array([[1.0, 0.6180340, 0.3247180], [-0.4142136, 1.0, 0.7320508]])


class Labelled(Protocol):
    """The part of labelled structures that `Seen` needs; a `Dataset` has it."""

    @property
    def geometries(self) -> NDArray[np.int64] | None:
        """Hashes of the geometries (`geometry_hashes`); None if unknown."""

    @property
    def groups(self) -> Sequence[str]:
        """Group of each structure."""

    @property
    def group_key(self) -> str | None:
        """Entry of ``atoms.info`` that names the groups; None without groups."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Hashes of the geometries and groups that a probe was fitted to.

    Attributes
    ----------
    geometries, groups : arrays of int64, ascending
        Empty if unknown: files of earlier versions, labels without a group key.
    """

    geometries: NDArray[np.int64]
    groups: NDArray[np.int64]

    @classmethod
    def nothing(cls) -> Seen:
        """Return an empty record."""
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))

    @classmethod
    def of(cls, sets: Iterable[Labelled | None]) -> Seen:
        """Return the hashes of all ``sets`` together; None counts as empty."""
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
        """Return the ``rows`` of ``frames`` whose geometry is in this record."""
        known = set(self.geometries.tolist())
        return [
            i for i in rows if known and not known.isdisjoint(_candidates(frames[i]))
        ]

    def names(self, key: str | None, names: Iterable[str]) -> list[str]:
        """Return the group ``names`` by ``key`` that are in this record, sorted."""
        if key is None:
            return []
        known = set(self.groups.tolist())
        return sorted(name for name in set(names) if group_hash(key, name) in known)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return both arrays as tensors for a file."""
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
    """Index of frames by geometry, with the hashes of `Seen`.

    Frames with NaN or infinite positions or cell are ignored, and so are periodic
    frames whose cell has no volume.
    """

    def __init__(self) -> None:
        self._met: dict[int, list[Atoms]] = {}

    def find(self, frame: Atoms) -> list[Atoms]:
        """Return the added frames that have the geometry of ``frame``."""
        if not _tellable(frame):
            return []
        tried = set(_candidates(frame))
        return [met for number in tried for met in self._met.get(number, ())]

    def add(self, frames: Iterable[Atoms]) -> None:
        """Add frames to the index."""
        for frame in frames:
            if _tellable(frame):
                number = _hash(frame, _bins(_lengths(frame)))
                self._met.setdefault(number, []).append(frame)


def geometry_hashes(frames: Sequence[Atoms], rows: Iterable[int]) -> NDArray[np.int64]:
    """Return a hash of the geometry of each of ``rows`` of ``frames``, (rows,)."""
    found = [_hash(frame := frames[i], _bins(_lengths(frame))) for i in rows]
    return np.array(found, dtype=np.int64)


def group_hash(key: str, name: str) -> int:
    """Return a hash of the group ``name`` by ``key``."""
    return _number(f"{key}\0{name}".encode())


def _candidates(frame: Atoms) -> list[int]:
    """Return the hashes of a geometry, with those of neighbouring bins near an edge."""
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
    """Return whether a geometry can be hashed: finite, no flat periodic cell."""
    cell = frame.cell.array
    if not (np.isfinite(frame.positions).all() and np.isfinite(cell).all()):
        return False
    spans = np.linalg.matrix_rank(frame.cell.complete().array) == len(cell)
    return bool(spans or not frame.pbc.any())


def _lengths(frame: Atoms) -> NDArray[np.float64]:
    """Return lengths of a geometry in Å; they do not depend on place and rotation."""
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
    """Return coordinates that do not change when an atom is wrapped into the cell."""
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
