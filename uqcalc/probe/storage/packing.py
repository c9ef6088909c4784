"""Predictions as the arrays of a shard, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from uqcalc.backbones.prediction import Prediction


PRECISIONS = ("float32", "float16")
_OF_ATOMS = {"numbers", "positions", "forces", "total_forces", "features", "charges"}


def check_precision(precision: str) -> None:
    """Refuse a precision that features are not kept in.

    Raises
    ------
    ValueError
        Naming those that they are.
    """
    if precision not in PRECISIONS:
        msg = f"precision must be one of {PRECISIONS}, got {precision!r}"
        raise ValueError(msg)


def pack(
    predictions: Sequence[Prediction], precision: str = "float32"
) -> dict[str, NDArray[Any]]:
    """Return what of the predictions a probe may need, atoms one below the other.

    Energies and forces are kept twice where a sum of calculators has others than its
    tapped part. Features that are not all finite stay in float32.
    """
    check_precision(precision)
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
    if predictions[0].charges is not None:
        rows = [_host(p.charges) for p in predictions if p.charges is not None]
        arrays["charges"] = np.concatenate(rows)
    features = np.concatenate([_host(p.features) for p in predictions])
    return arrays | _packed_features(features, precision)


class OpenShard:
    """A shard mapped into memory; what is of whole structures is read at once."""

    def __init__(self, path: Path) -> None:
        file: Any = safe_open(path, framework="np")
        names = set(file.keys())
        # made once: they cost as much as what is read through them
        self._rows = {name: file.get_slice(name) for name in names & _OF_ATOMS}
        self._energies = file.get_tensor("energies")
        self._cells = file.get_tensor("cells")
        self._pbc = file.get_tensor("pbc").astype(bool)
        self._scaling: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        if "centre" in names:
            self._scaling = file.get_tensor("scale"), file.get_tensor("centre")

    def numbers(self, atoms: slice) -> NDArray[np.int64]:
        """Return the atomic numbers in those rows."""
        return np.asarray(self._rows["numbers"][atoms].astype(np.int64))

    def prediction(self, place: int, atoms: slice) -> Prediction:
        """Return the prediction at ``place``, whose rows of atoms are ``atoms``."""
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
        return Prediction(
            numbers=self.numbers(atoms),
            positions=rows["positions"][atoms],
            cell=self._cells[place],
            pbc=self._pbc[place],
            results={"energy": total, "forces": whole},
            energy=energy,
            forces=forces,
            features=torch.from_numpy(features),
            charges=charges,
        )


def _packed_features(
    features: NDArray[np.float32], precision: str
) -> dict[str, NDArray[Any]]:
    if precision == "float32" or not np.isfinite(features).all():
        return {"features": features}
    # sums in double: no overflow, and a constant has next to no spread
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = features.std(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.where(spread > 1e-30, spread, np.float32(1.0))
    standard = ((features - centre) / scale).astype(np.float16)
    return {"features": standard, "centre": centre, "scale": scale}


def _host(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().to("cpu", torch.float32).numpy())
