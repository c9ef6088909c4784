"""Predictions on disk: shards of safetensors, written once, read a few at a time.

A folder of shards is a sequence of predictions of one backbone. A failed write leaves
no partial shard. Each shard contains its own metadata, so the folder needs no index.
Shards are memory-mapped for reading; at most `OPEN_BYTES` are mapped at once, or one
shard.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from uqcalc.backbones.prediction import Prediction
from uqcalc.errors import RecordError
from uqcalc.labels.shardfile import FILE, OpenShard, ShardFile, read_shard, shard_files


OPEN_BYTES = 2**28  # largest size of all mapped shards, in bytes
_WINDOW = 16  # batches that are sorted by size together
_OPEN_FILES = 64  # largest number of mapped shards


class Shards(Sequence[Prediction]):
    """Predictions in a folder, or some of them in any order, without copies.

    Parameters
    ----------
    folder : Folder
    rows : array (structures,), optional
        Rows of the folder; by default all.
    """

    def __init__(self, folder: Folder, rows: NDArray[np.int64] | None = None) -> None:
        self.folder = folder
        self.rows = np.arange(len(folder.sizes)) if rows is None else rows

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Shards:
        """Open all predictions of a folder.

        Raises
        ------
        RecordError
            If the folder does not exist or is empty, a shard is damaged, or the shards
            are of several backbones.
        """
        folder, damaged = open_folder(path)
        if damaged:
            raise RecordError(next(iter(damaged.values())))
        if len(folder.sizes) == 0:
            msg = (
                f"folder of features must hold shards, got none in {path}; {FILE.make}"
            )
            raise RecordError(msg)
        return cls(folder)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Shards: ...
    def __getitem__(self, index: int | slice) -> Prediction | Shards:
        if isinstance(index, slice):
            return Shards(self.folder, self.rows[index])
        return self.folder.read(int(self.rows[index]))

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Shards:
        """Return the structures at ``indices``, in that order."""
        return Shards(self.folder, self.rows[np.asarray(indices, dtype=int)])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Atoms of each structure, (structures,)."""
        return np.asarray(self.folder.sizes[self.rows])

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Number of the shard of each structure, (structures,)."""
        return self.folder.shard_of(self.rows)

    @property
    def numbers(self) -> Numbers:
        """Atomic numbers of each structure; nothing else is read."""
        return Numbers(self)


class Numbers(Sequence[NDArray[np.int64]]):
    """Atomic numbers of structures on disk."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, index: slice) -> Numbers: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.int64] | Numbers:
        if isinstance(index, slice):
            return Numbers(self._shards[index])
        return self._shards.folder.numbers(int(self._shards.rows[index]))


def taken(
    predictions: Sequence[Prediction], indices: Sequence[int] | NDArray[np.int64]
) -> Sequence[Prediction]:
    """Return the predictions at ``indices``; predictions on disk stay there."""
    if isinstance(predictions, Shards):
        return predictions.take(indices)
    return [predictions[i] for i in indices]


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` evenly spaced indices below ``count``."""
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).astype(np.int64)


def like_sized(
    order: NDArray[np.int64], sizes: NDArray[np.int64], batch_size: int
) -> list[NDArray[np.int64]]:
    """Cut an order into batches of structures of similar size.

    Attention pads each batch to its largest structure. Sorting by size within a window
    of batches needs little padding and keeps the batches random.
    """
    batches = []
    window = _WINDOW * batch_size
    for start in range(0, len(order), window):
        near = order[start : start + window]
        near = near[np.argsort(sizes[near], kind="stable")]
        batches += [
            near[first : first + batch_size]
            for first in range(0, len(near), batch_size)
        ]
    return batches


def sizes_of(predictions: Sequence[Prediction]) -> NDArray[np.int64]:
    """Return the number of atoms of each structure, (structures,)."""
    if isinstance(predictions, Shards):
        return predictions.sizes
    return np.array([len(p.numbers) for p in predictions], dtype=np.int64)


def numbers_of(predictions: Sequence[Prediction]) -> Sequence[NDArray[np.int64]]:
    """Return the atomic numbers of each structure."""
    if isinstance(predictions, Shards):
        return predictions.numbers
    return [p.numbers for p in predictions]


class Folder:
    """The shards of one folder; a row is the index of a structure over all shards.

    Attributes
    ----------
    path : Path
    fingerprint : str
        Fingerprint of the backbone; empty without shards.
    sizes : array (rows,)
        Atoms of each structure.
    """

    def __init__(self, path: Path, shards: Sequence[ShardFile]) -> None:
        self.path, self.shards = path, shards
        self.fingerprint = shards[0].fingerprint if shards else ""
        self.sizes = np.concatenate([np.zeros(0, int), *(s.sizes for s in shards)])
        ends = np.cumsum([0, *(len(s.sizes) for s in shards)])
        self._paths = [shard.path for shard in shards]
        self._starts = ends[:-1]
        # index of the first atom of each structure within its shard
        self._atoms = np.concatenate(
            [np.zeros(0, int), *(np.cumsum(s.sizes) - s.sizes for s in shards)]
        )
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._bytes = {i: p.stat().st_size for i, p in enumerate(self._paths)}

    def __getstate__(self) -> dict[str, Any]:
        """Drop the memory maps: another process opens its own."""
        return self.__dict__ | {"_open": OrderedDict()}

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the shard of each row, (rows,)."""
        return np.asarray(np.searchsorted(self._starts, rows, side="right") - 1)

    def keys(self) -> NDArray[np.bytes_]:
        """Return the key of each structure, (rows,)."""
        found = [np.zeros(0, "S16")]
        for path in self._paths:
            with safe_open(path, framework="np") as file:
                found.append(file.get_tensor("keys").view("S16").ravel())
        return np.concatenate(found)

    def with_stress(self) -> NDArray[np.bool_]:
        """Return whether each row was stored with stresses, (rows,)."""
        counts = [len(shard.sizes) for shard in self.shards]
        return np.repeat([shard.stress for shard in self.shards], counts)

    def read(self, row: int) -> Prediction:
        """Return the prediction in a row, with features in float32."""
        shard, place, atoms = self._where(row)
        return shard.prediction(place, atoms)

    def numbers(self, row: int) -> NDArray[np.int64]:
        """Return the atomic numbers in a row, (atoms,)."""
        shard, _, atoms = self._where(row)
        return shard.numbers(atoms)

    def _where(self, row: int) -> tuple[OpenShard, int, slice]:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        first = int(self._atoms[row])
        atoms = slice(first, first + int(self.sizes[row]))
        return self._map(shard), row - int(self._starts[shard]), atoms

    def _map(self, shard: int) -> OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        opened = OpenShard(self._paths[shard])
        self._open[shard] = opened
        while len(self._open) > 1 and (
            len(self._open) > _OPEN_FILES
            or sum(self._bytes[i] for i in self._open) > OPEN_BYTES
        ):
            self._open.popitem(last=False)
        return opened


def open_folder(
    path: str | os.PathLike[str], known: Folder | None = None
) -> tuple[Folder, dict[Path, str]]:
    """Return the folder of undamaged shards, and a message for each damaged shard.

    The checksum of each shard is checked, except for the shards of ``known``.

    Raises
    ------
    RecordError
        If the folder does not exist, a shard has a newer schema, or the shards are of
        several backbones.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        msg = f"folder of features must exist, got {folder}; {FILE.make}"
        raise RecordError(msg)
    seen = {} if known is None else {shard.path: shard for shard in known.shards}
    whole, damaged = [], {}
    for file in shard_files(folder):
        try:
            whole.append(seen.get(file) or read_shard(file))
        except SafetensorError as error:
            damaged[file] = (
                f"{FILE.name} must be a complete file, got {file} ({error}); "
                f"{FILE.otherwise}"
            )
    if len(owners := {shard.fingerprint for shard in whole}) > 1:
        msg = (
            "all shards of a folder must belong to one backbone, got "
            f"{sorted(owners)} in {folder}; use one folder for each backbone"
        )
        raise RecordError(msg)
    return Folder(folder, whole), damaged


class AtomRows(Sequence[NDArray[Any]]):
    """Values of the atoms of each structure, or of some structures in any order.

    Parameters
    ----------
    flat : array (atoms of all structures,)
    ends : array (structures,)
        Index in ``flat`` after the last atom of each structure.
    rows : array, optional
        Indices of the structures; by default all.
    """

    def __init__(
        self,
        flat: NDArray[Any],
        ends: NDArray[np.int64],
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self.flat, self.ends = flat, ends
        self.rows = np.arange(len(ends)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> AtomRows: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | AtomRows:
        if isinstance(index, slice):
            return AtomRows(self.flat, self.ends, self.rows[index])
        row = self.rows[index]
        first = self.ends[row - 1] if row else 0
        return self.flat[first : self.ends[row]]

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> AtomRows:
        """Return the structures at ``indices``, in that order."""
        return AtomRows(self.flat, self.ends, self.rows[np.asarray(indices, int)])
