"""A shard: predictions in one safetensors file, with fingerprint and checksum."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from uqcalc.backbones.prediction import Prediction
from uqcalc.errors import RecordError
from uqcalc.files.tensorfile import Kind


_OF_ATOMS = {"numbers", "positions", "forces", "total_forces", "features", "charges"}


def pack(predictions: Sequence[Prediction]) -> dict[str, NDArray[Any]]:
    """Return the arrays of the predictions that a probe needs, in order of the atoms.

    In a sum of calculators, energies and forces of the sum differ from those of the
    part with the features; then both are stored. Stresses are NaN where the results
    lack them.
    """
    forces = np.concatenate([p.forces for p in predictions])
    whole = np.concatenate([p.results.get("forces", p.forces) for p in predictions])
    arrays: dict[str, NDArray[Any]] = {
        "sizes": np.array([len(p.numbers) for p in predictions], dtype=np.int32),
        "numbers": np.concatenate([p.numbers for p in predictions]).astype(np.uint8),
        "positions": np.concatenate([p.positions for p in predictions]).astype(float),
        "cells": np.stack([p.cell for p in predictions]).astype(float),
        "pbc": np.stack([p.pbc for p in predictions]).astype(np.uint8),
        "energies": np.array(
            [(p.energy, p.results.get("energy", p.energy)) for p in predictions],
            dtype=float,
        ),
        "forces": forces.astype(float),
    }
    if not np.array_equal(forces, whole, equal_nan=True):
        arrays["total_forces"] = whole.astype(float)
    if any("stress" in p.results for p in predictions):
        arrays["stresses"] = np.stack([_stress(p) for p in predictions])
    if predictions[0].charges is not None:
        rows = [_host(p.charges) for p in predictions if p.charges is not None]
        arrays["charges"] = np.concatenate(rows)
    arrays["features"] = np.concatenate([_host(p.features) for p in predictions])
    return arrays


class OpenShard:
    """A memory-mapped shard; arrays of structures are read when it is opened."""

    def __init__(self, path: Path) -> None:
        file: Any = safe_open(path, framework="np")
        names = set(file.keys())
        # kept: creating a slice costs as much as reading through it
        self._rows = {name: file.get_slice(name) for name in names & _OF_ATOMS}
        self._energies = file.get_tensor("energies")
        self._cells = file.get_tensor("cells")
        self._pbc = file.get_tensor("pbc").astype(bool)
        self._stresses = file.get_tensor("stresses") if "stresses" in names else None
        self._scaling: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        if "centre" in names:  # an earlier version wrote features in half precision
            self._scaling = file.get_tensor("scale"), file.get_tensor("centre")

    def numbers(self, atoms: slice) -> NDArray[np.int64]:
        """Return the atomic numbers of these atoms, (atoms,)."""
        return np.asarray(self._rows["numbers"][atoms].astype(np.int64))

    def prediction(self, place: int, atoms: slice) -> Prediction:
        """Return the prediction of structure ``place``, with atoms at ``atoms``."""
        rows = self._rows
        energy, total = self._energies[place].tolist()
        forces = rows["forces"][atoms]
        whole = rows["total_forces"][atoms] if "total_forces" in rows else forces
        features = rows["features"][atoms].astype(np.float32)
        if self._scaling is not None:
            scale, centre = self._scaling
            features *= scale
            features += centre
        charges = None
        if "charges" in rows:
            charges = torch.tensor(rows["charges"][atoms])
        results: dict[str, Any] = {"energy": total, "forces": whole}
        if self._stresses is not None and self._pbc[place].all():
            results["stress"] = self._stresses[place]
        return Prediction(
            numbers=self.numbers(atoms),
            positions=rows["positions"][atoms],
            cell=self._cells[place],
            pbc=self._pbc[place],
            results=results,
            energy=energy,
            forces=forces,
            features=torch.from_numpy(features),
            charges=charges,
        )


def _stress(prediction: Prediction) -> NDArray[np.float64]:
    return np.asarray(prediction.results.get("stress", np.full(6, np.nan)), dtype=float)


def _host(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().to("cpu", torch.float32).numpy())


# A shard is full at either number. A lost shard costs little, and shards fit in memory.
MOST_STRUCTURES, MOST_ATOMS = 1024, 16_384

FILE = Kind(
    name="shard of features",
    key="uqcalc_features",
    error=RecordError,
    make="make one with uqcalc.fit(..., cache=...)",
    otherwise="delete it, and the next fit makes it again",
    unknown=("",),  # predictions may be NaN or infinite
)


class ShardFile(NamedTuple):
    """A checked shard: path, fingerprint of the backbone, atoms of each structure.

    ``stress`` tells whether the shard holds stresses.
    """

    path: Path
    fingerprint: str
    sizes: NDArray[np.int64]
    checksum: int
    stress: bool = False


class ShardWriter:
    """Appends predictions to a folder, shard by shard.

    Parameters
    ----------
    path : path
        The folder; it is created if its parent folder exists.
    fingerprint : str
        Fingerprint of the backbone that made the predictions.

    Raises
    ------
    RecordError
        If the folder cannot be created.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        self.path = make_folder(path)
        self.fingerprint = fingerprint
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
        """Add a prediction under ``key`` (16 bytes); write the shard if it is full."""
        self._waiting.append((prediction, key))
        self._atoms += len(prediction.numbers)
        if len(self._waiting) >= MOST_STRUCTURES or self._atoms >= MOST_ATOMS:
            self.flush()

    def flush(self) -> None:
        """Write the waiting predictions as a shard."""
        if not self._waiting:
            return
        predictions, keys = zip(*self._waiting, strict=True)
        tensors = pack(predictions)
        filed = np.array(keys, dtype="S16")
        tensors["keys"] = filed.view(np.uint8).reshape(len(keys), 16)
        card = {
            "schema": FILE.schema,
            "fingerprint": self.fingerprint,
            "checksum": _checksum(tensors),
        }
        path = self.path / f"shard-{self._number:06d}.safetensors"
        FILE.write(path, {k: torch.from_numpy(v) for k, v in tensors.items()}, card)
        self._waiting, self._atoms = [], 0
        self._number += 1


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder; create it if it is missing and its parent exists."""
    folder = Path(path).absolute()
    if not folder.parent.is_dir() or (folder.exists() and not folder.is_dir()):
        msg = (
            "folder of features must be a folder, or a new name in an existing "
            f"folder, got {folder}; choose another name"
        )
        raise RecordError(msg)
    folder.mkdir(exist_ok=True)
    return folder


def shard_files(folder: Path) -> list[Path]:
    """Return the shards in a folder, in the order they were written."""
    return sorted(folder.glob("shard-[0-9]*.safetensors"))


def read_shard(path: Path) -> ShardFile:
    """Read a whole shard and check it.

    Raises
    ------
    SafetensorError
        If the checksum differs or the file is damaged.
    RecordError
        If the schema is newer than this version of uqcalc.
    """
    with safe_open(path, framework="np") as file:
        card = json.loads((file.metadata() or {}).get(FILE.key, "{}"))
        FILE.schema_of(card, f" in {path}")
        names = file.keys()
        checksum = _checksum({k: file.get_tensor(k) for k in names})
        if checksum != card.get("checksum"):
            msg = "checksum differs"
            raise SafetensorError(msg)
        sizes = file.get_tensor("sizes").astype(np.int64)
    stress = "stresses" in names
    return ShardFile(path, card["fingerprint"], sizes, checksum, stress)


def _checksum(tensors: Mapping[str, NDArray[Any]]) -> int:
    total = 0
    for name in sorted(tensors):
        raw = np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8)
        total = zlib.crc32(raw.data, total)
    return total
