"""Frames -> predictions as a probe keeps them: features and charges on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.batching import batches


def evaluate_frames(
    frames: Sequence[Atoms], backbone: Backbone, advance: Callable[[int], None]
) -> list[Prediction]:
    """Evaluate frames, those of like size in native batches where there are such.

    Parameters
    ----------
    advance : callable
        Told how many more are done, after each batch.
    """
    sizes = [len(frame) for frame in frames]
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    predictions: dict[int, Prediction] = {}
    for batch in batches(by_size, sizes.__getitem__):
        done = backbone.predict_many([frames[i] for i in batch])
        predictions.update(zip(batch, map(_slim, done), strict=True))
        advance(len(batch))
    return [predictions[i] for i in range(len(sizes))]


def _slim(prediction: Prediction) -> Prediction:
    """Keep features and charges as own float32 copies on the CPU."""
    charges = prediction.charges
    return Prediction(
        numbers=prediction.numbers,
        positions=prediction.positions,
        cell=prediction.cell,
        pbc=prediction.pbc,
        results={k: prediction.results[k] for k in ("energy", "forces")},
        energy=prediction.energy,
        forces=prediction.forces,
        features=_own(prediction.features),
        charges=None if charges is None else _own(charges),
    )


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", torch.float32, copy=True)
