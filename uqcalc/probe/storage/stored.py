"""Labels kept beside the features they belong to: a dataset that needs no frames."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from uqcalc.errors import LabelError, RecordError
from uqcalc.files import whole
from uqcalc.probe.dataset import Dataset
from uqcalc.probe.labelling.labels import Labels
from uqcalc.probe.storage.atomrows import AtomRows
from uqcalc.probe.storage.shards import Folder, Shards, sizes_of
from uqcalc.tensorfile import Kind


SCHEMA = 1
FILE = Kind(
    name="dataset",
    key="uqcalc_dataset",
    error=RecordError,
    make="make one with save_dataset",
    otherwise="build it again from its frames",
    checked_since=1,
    unknown=("errors", "residuals"),
)
_NAME = "dataset.safetensors"
_ATOMS = "dataset-atoms"  # and a name of each saving's own, so that none is mixed up


def save_dataset(data: Dataset) -> Path:
    """Write labels, errors and groups into the folder of the features; return it.

    `open_dataset` reads them back, as often as wanted, in another process or on
    another machine. A folder keeps one dataset: the last.

    Raises
    ------
    LabelError
        If the features are not on disk: build the dataset with ``cache``.
    """
    if not isinstance(data.predictions, Shards):
        msg = (
            "dataset must have its features on disk to be saved beside them, got one "
            "in memory; build it with cache="
        )
        raise LabelError(msg)
    shards = data.predictions
    names = sorted(set(data.groups))
    code = {name: index for index, name in enumerate(names)}
    tensors = {
        "rows": torch.from_numpy(shards.rows),
        "errors": torch.from_numpy(data.errors),
        "groups": torch.tensor([code[name] for name in data.groups]),
    }
    if data.residuals is not None:
        tensors["residuals"] = torch.from_numpy(data.residuals)
    if data.geometries is not None:
        tensors["geometries"] = torch.from_numpy(data.geometries)
    card = {
        "schema": SCHEMA,
        "shards": _listed(shards.folder),
        "groups": names,
        "labels": None if data.labels is None else asdict(data.labels),
        "excluded": data.excluded,
        "offsets": data.offsets,
        "offsets_fitted": data.offsets_fitted,
        "fingerprint": data.fingerprint,
    }
    folder = shards.folder.path
    atoms = None
    if data.atom_errors is not None:
        atoms = f"{_ATOMS}-{uuid4().hex[:8]}.npy"
        _write_atoms(folder / atoms, data)
    FILE.write(folder / _NAME, tensors, card | {"atoms": atoms})
    for file in folder.glob(f"{_ATOMS}*.npy"):
        if file.name != atoms:
            file.unlink()
    return folder


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Open what `save_dataset` wrote; features and errors of atoms stay on disk.

    Raises
    ------
    RecordError
        If there is none, or the features are not those it was saved with.
    """
    folder = Path(path).absolute()
    tensors, card = FILE.read(folder / _NAME)
    shards = Shards.open(folder)
    known = card["shards"]
    present = _listed(shards.folder)[: len(known)]
    # datasets of earlier versions do not list the checksums of shards
    if [p[: len(k)] for p, k in zip(present, known, strict=False)] != known:
        msg = (
            f"features in {folder} must be those that the dataset was saved with, got "
            "others; build it again from its frames"
        )
        raise RecordError(msg)
    predictions = shards.take(tensors["rows"].numpy())
    atoms = None
    if (file := _atoms_file(folder, card)) is not None:
        flat = np.load(file, mmap_mode="r")
        atoms = AtomRows(flat, np.cumsum(predictions.sizes))
    residuals, geometries = tensors.get("residuals"), tensors.get("geometries")
    return Dataset(
        predictions,
        tensors["errors"].numpy(),
        [card["groups"][code] for code in tensors["groups"].tolist()],
        card["excluded"],
        atom_errors=atoms,
        residuals=None if residuals is None else residuals.numpy(),
        offsets=card["offsets"],
        offsets_fitted=card["offsets_fitted"],
        labels=None if card["labels"] is None else Labels(**card["labels"]),
        fingerprint=card.get("fingerprint"),
        geometries=None if geometries is None else geometries.numpy(),
    )


def _listed(folder: Folder) -> list[list[str | int]]:
    return [
        [shard.path.name, len(shard.sizes), shard.checksum] for shard in folder.shards
    ]


def _atoms_file(folder: Path, card: Mapping[str, Any]) -> Path | None:
    """Return where the errors of atoms are; None where there are none."""
    if "atoms" not in card:  # saved by an earlier version
        file = folder / f"{_ATOMS}.npy"
        return file if file.is_file() else None
    if card["atoms"] is None:
        return None
    file = folder / str(card["atoms"])
    if not file.is_file():
        msg = (
            f"errors of atoms must be beside their dataset, got no {file}; build the "
            "dataset again from its frames"
        )
        raise RecordError(msg)
    return file


def _write_atoms(path: Path, data: Dataset) -> None:
    """Write |ΔF_i| of all atoms in single precision, one structure at a time."""
    sizes = sizes_of(data.predictions)
    ends = np.cumsum(sizes)
    with whole(path) as partial:
        flat = np.lib.format.open_memmap(
            partial, mode="w+", dtype=np.float32, shape=(int(ends[-1]),)
        )
        for values, size, end in zip(data.atom_errors or (), sizes, ends, strict=True):
            flat[end - size : end] = values
        flat.flush()
