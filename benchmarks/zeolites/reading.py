"""Predictions of models, and readings of signals, for a block of structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from latent import LatentDistance
from small_orb.model import small_orb_calculator

from uqcalc import ForceDelta, tap
from uqcalc.backbones.batching import batches
from uqcalc.signals.base import to_host
from uqcalc.types import Backbone, Prediction


BOTH = ("energy", "forces", "conservative_forces")


@dataclass(frozen=True)
class Answers:
    """Forces and readings of one model on one block."""

    direct: list[np.ndarray]
    force_delta: np.ndarray
    distance: np.ndarray
    max_force: np.ndarray


def member(path: Path) -> Backbone:
    """Return a trained Orb, tapped."""
    return tap(small_orb_calculator(path))


def predictions(backbone: Backbone, frames: Sequence[Atoms]) -> list[Prediction]:
    """Evaluate all frames in batches, with both forces."""
    return [
        prediction
        for batch in batches(frames, len, backbone.batch_atoms)
        for prediction in backbone.predict_many(batch, BOTH)
    ]


def fit_distance(backbone: Backbone, frames: Sequence[Atoms]) -> LatentDistance:
    """Return the Mahalanobis distance to the features of training frames."""
    seen = predictions(backbone, frames)
    features = np.concatenate([p.features.numpy() for p in seen])
    return LatentDistance(np.concatenate([p.numbers for p in seen]), features)


def read(
    backbone: Backbone, distance: LatentDistance, frames: Sequence[Atoms]
) -> Answers:
    """Read every signal of one model on all frames."""
    seen = predictions(backbone, frames)
    signal = ForceDelta()
    far = [distance(p.numbers, p.features.numpy()).mean() for p in seen]
    return Answers(
        direct=[p.forces for p in seen],
        force_delta=np.array([to_host([signal(p)])[0].risk for p in seen]),
        distance=np.array(far),
        max_force=np.array([np.linalg.norm(p.forces, axis=1).max() for p in seen]),
    )


def conservative(backbone: Backbone, frames: Sequence[Atoms]) -> list[np.ndarray]:
    """Return a reference model's conservative forces, (atoms, 3) in eV/Å each."""
    return [
        np.asarray(prediction.conservative_forces)
        for prediction in predictions(backbone, frames)
    ]


def rms(forces: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """Return the RMS error over the components of each structure, eV/Å."""
    return np.array(
        [np.sqrt(np.mean((f - t) ** 2)) for f, t in zip(forces, truth, strict=True)]
    )


def chgnet_forces(frames: Sequence[Atoms]) -> list[np.ndarray]:
    """Return the forces of CHGNet, as an independent reference."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):  # hides the message of CHGNet
        from chgnet.model.dynamics import CHGNetCalculator

        backbone = tap(CHGNetCalculator(use_device="cpu"))
    return [
        prediction.forces
        for batch in batches(frames, len, backbone.batch_atoms)
        for prediction in backbone.predict_many(batch)
    ]
