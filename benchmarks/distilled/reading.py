"""Predictions of a potential, and readings of the signals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from latent import LatentDistance

from uqcalc import ForceDelta
from uqcalc.backbones.batching import batches
from uqcalc.signals.base import to_host
from uqcalc.types import Backbone, DistilledHead, Prediction


def predict(
    backbone: Backbone, frames: Sequence[Atoms], path: Path
) -> list[Prediction]:
    """Return the predictions for all frames, from ``path`` if that exists."""
    if not path.is_file():
        wanted = ["energy", "forces", *(backbone.provides & {"vectors"})]
        found = [
            prediction
            for batch in batches(frames, len, backbone.batch_atoms)
            for prediction in backbone.predict_many(batch, wanted)
        ]
        _write(path, found)
    return _read(path)


def read_signals(
    predictions: Sequence[Prediction],
    truth: Sequence[np.ndarray],
    head: DistilledHead,
    distance: LatentDistance,
) -> dict[str, np.ndarray]:
    """Return true errors and risks, (structures,) each.

    The error is the RMS over force components, in eV/Å. Force Delta is NaN for a
    structure with an unseen element.
    """
    signal = ForceDelta(head=head)
    delta = [to_host([signal(p)])[0].risk for p in predictions]
    far = [distance(p.numbers, p.features.numpy()).mean() for p in predictions]
    return {
        "error": rms([p.forces for p in predictions], truth),
        "force_delta": np.array(delta),
        "own force": np.array([np.sqrt(np.mean(p.forces**2)) for p in predictions]),
        "latent distance": np.array(far),
        "largest force": np.array(
            [np.linalg.norm(p.forces, axis=1).max() for p in predictions]
        ),
    }


def rms(forces: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """Return the RMS difference over the components of each structure, eV/Å."""
    return np.array(
        [np.sqrt(np.mean((f - t) ** 2)) for f, t in zip(forces, truth, strict=True)]
    )


def fit_distance(
    predictions: Sequence[Prediction], *, by_element: bool
) -> LatentDistance:
    """Return the Mahalanobis distance to the training frames of the head.

    For crystals all elements share one covariance: most elements have too few atoms.
    """
    features = np.concatenate([p.features.numpy().astype(float) for p in predictions])
    numbers = np.concatenate([p.numbers for p in predictions])
    if by_element:
        return LatentDistance(numbers, features)
    shared = LatentDistance(np.zeros(len(features), dtype=int), features)
    fits = dict.fromkeys(range(1, 119), shared.fits[0])
    shared.fits.update(fits)
    return shared


def _write(path: Path, predictions: Sequence[Prediction]) -> None:
    arrays = {
        "sizes": np.array([len(p.numbers) for p in predictions]),
        "numbers": np.concatenate([p.numbers for p in predictions]),
        "positions": np.concatenate([p.positions for p in predictions]),
        "cells": np.stack([p.cell for p in predictions]),
        "pbc": np.stack([p.pbc for p in predictions]),
        "energies": np.array([p.energy for p in predictions]),
        "forces": np.concatenate([p.forces for p in predictions]),
        "features": np.concatenate([p.features.numpy() for p in predictions]),
    }
    vectors = [p.vectors.numpy() for p in predictions if p.vectors is not None]
    if vectors:
        arrays["vectors"] = np.concatenate(vectors)
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def _read(path: Path) -> list[Prediction]:
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    ends = np.cumsum(arrays["sizes"])
    predictions = []
    for i, (end, size) in enumerate(zip(ends, arrays["sizes"], strict=True)):
        rows = slice(end - size, end)
        forces = arrays["forces"][rows]
        vectors = arrays.get("vectors")
        predictions.append(
            Prediction(
                numbers=arrays["numbers"][rows],
                positions=arrays["positions"][rows],
                cell=arrays["cells"][i],
                pbc=arrays["pbc"][i],
                results={"energy": arrays["energies"][i], "forces": forces},
                energy=float(arrays["energies"][i]),
                forces=forces,
                conservative_forces=forces,
                features=torch.as_tensor(arrays["features"][rows]),
                vectors=None if vectors is None else torch.as_tensor(vectors[rows]),
            )
        )
    return predictions
