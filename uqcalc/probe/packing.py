"""Predictions as the arrays of a shard, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uqcalc.backbones.prediction import Prediction


PRECISIONS = ("float32", "float16")


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


def unpack(file: Any, place: int, atoms: slice) -> Prediction:
    """Return the prediction at ``place``, whose rows of atoms are ``atoms``.

    Parameters
    ----------
    file : safe_open
        A shard, opened for numpy.
    """
    names = set(file.keys())

    def rows(name: str) -> NDArray[Any]:
        return np.asarray(file.get_slice(name)[atoms])

    def one(name: str) -> NDArray[Any]:
        return np.asarray(file.get_slice(name)[place])

    energy, total = one("energies").tolist()
    forces = rows("forces")
    features = rows("features").astype(np.float32)
    if "centre" in names:
        features *= file.get_tensor("scale")
        features += file.get_tensor("centre")
    whole = rows("total_forces") if "total_forces" in names else forces
    return Prediction(
        numbers=rows("numbers").astype(np.int64),
        positions=rows("positions"),
        cell=one("cells"),
        pbc=one("pbc").astype(bool),
        results={"energy": total, "forces": whole},
        energy=energy,
        forces=forces,
        features=torch.from_numpy(features),
        charges=torch.tensor(rows("charges")) if "charges" in names else None,
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
