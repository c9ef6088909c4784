"""A shard: predictions in one safetensors file that describes itself."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from uqcalc.backbones.prediction import Prediction
from uqcalc.errors import RecordError
from uqcalc.probe.storage.packing import check_precision, pack
from uqcalc.tensorfile import Kind


SCHEMA = 1
# A shard is full at either: little is lost with one, and few fill the memory.
MOST_STRUCTURES, MOST_ATOMS = 1024, 16_384

FILE = Kind(
    name="shard of features",
    key="uqcalc_features",
    error=RecordError,
    make="make one with uqcalc.fit(..., cache=...)",
    otherwise="delete it, and the next fit makes it again",
    unknown=("",),  # a potential may give any number
)


class ShardFile(NamedTuple):
    """A whole shard: where, of which backbone, and the atoms of its structures."""

    path: Path
    fingerprint: str
    sizes: NDArray[np.int64]
    checksum: int


class ShardWriter:
    """Appends predictions to a folder, shard by shard.

    Parameters
    ----------
    path : path
        The folder; it is made where its own folder exists.
    fingerprint : str
        Of the backbone that made them.
    precision : {"float32", "float16"}
        Of the features. Half precision is kept after the mean and scale of each
        feature in its shard, so that it loses a 2000th of their spread at most.

    Raises
    ------
    RecordError
        If the folder cannot be made.

    Examples
    --------
    >>> with ShardWriter("features", backbone.fingerprint) as writer:  # doctest: +SKIP
    ...     for prediction in predictions:
    ...         writer.add(prediction)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fingerprint: str,
        *,
        precision: str = "float32",
    ) -> None:
        self.path = make_folder(path)
        self.fingerprint = fingerprint
        check_precision(precision)
        self.precision = precision
        self._waiting: list[tuple[Prediction, bytes]] = []
        self._atoms = 0
        taken = [int(file.stem.partition("-")[2]) for file in shard_files(self.path)]
        self._number = max(taken, default=-1) + 1

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()

    def add(self, prediction: Prediction, key: bytes = b"") -> None:
        """Keep a prediction, to be found by ``key`` (16 bytes); writes a full shard."""
        self._waiting.append((prediction, key))
        self._atoms += len(prediction.numbers)
        if len(self._waiting) >= MOST_STRUCTURES or self._atoms >= MOST_ATOMS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as a shard of its own."""
        if not self._waiting:
            return
        predictions, keys = zip(*self._waiting, strict=True)
        tensors = pack(predictions, self.precision)
        filed = np.array(keys, dtype="S16")
        tensors["keys"] = filed.view(np.uint8).reshape(len(keys), 16)
        card = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "checksum": _checksum(tensors),
        }
        path = self.path / f"shard-{self._number:06d}.safetensors"
        FILE.write(path, {k: torch.from_numpy(v) for k, v in tensors.items()}, card)
        self._waiting, self._atoms = [], 0
        self._number += 1


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder, made where it is missing but its own folder is there."""
    folder = Path(path).absolute()
    if not folder.parent.is_dir() or (folder.exists() and not folder.is_dir()):
        msg = (
            "folder of features must be a folder, or a new one in an existing folder, "
            f"got {folder}; choose another name"
        )
        raise RecordError(msg)
    folder.mkdir(exist_ok=True)
    return folder


def shard_files(folder: Path) -> list[Path]:
    """Return the shards in a folder, in the order they were written."""
    return sorted(folder.glob("shard-[0-9]*.safetensors"))


def read_shard(path: Path) -> ShardFile:
    """Read all of a shard once.

    Raises
    ------
    SafetensorError
        If a byte is not what was written.
    RecordError
        If it is of a newer schema.
    """
    with safe_open(path, framework="np") as file:
        card = json.loads((file.metadata() or {}).get(FILE.key, "{}"))
        if card.get("schema", 0) > SCHEMA:
            msg = (
                f"schema of a {FILE.name} must be at most {SCHEMA} for this version "
                f"of uqcalc, got {card['schema']} in {path}; upgrade uqcalc"
            )
            raise RecordError(msg)
        names = file.keys()
        checksum = _checksum({k: file.get_tensor(k) for k in names})
        if checksum != card.get("checksum"):
            msg = "checksum differs"
            raise SafetensorError(msg)
        sizes = file.get_tensor("sizes").astype(np.int64)
    return ShardFile(path, card["fingerprint"], sizes, checksum)


def _checksum(tensors: Mapping[str, NDArray[Any]]) -> int:
    total = 0
    for name in sorted(tensors):
        raw = np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8)
        total = zlib.crc32(raw.data, total)
    return total
