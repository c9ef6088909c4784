"""Frames -> predictions as a probe keeps them: features and charges on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.batching import batches, predict_each
from uqcalc.progress import progress_bar


class Evaluated(NamedTuple):
    """Frames of which some may have failed.

    Attributes
    ----------
    predictions : sequence of Prediction
        Of the others, in their order.
    failed : dict
        Index among the frames that were asked for -> what the backbone said.
    """

    predictions: Sequence[Prediction]
    failed: dict[int, str]


def predict_all(
    frames: Sequence[Atoms], rows: Sequence[int], backbone: Backbone, title: str
) -> Evaluated:
    """Return the predictions of ``frames[rows]``, all of them in memory."""
    with progress_bar() as progress:
        task = progress.add_task(title, total=len(rows))
        done = evaluate_frames(
            [frames[i] for i in rows], backbone, partial(progress.advance, task)
        )
    failed = {k: one for k, one in enumerate(done) if isinstance(one, str)}
    return Evaluated([one for one in done if not isinstance(one, str)], failed)


def evaluate_frames(
    frames: Sequence[Atoms], backbone: Backbone, advance: Callable[[int], None]
) -> list[Prediction | str]:
    """Evaluate frames, those of like size in native batches where there are such.

    One that the backbone fails on gives the reason instead; answers that are not
    finite are returned as they are.

    Parameters
    ----------
    advance : callable
        Told how many more are done, after each batch.
    """
    sizes = [len(frame) for frame in frames]
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    outcomes: dict[int, Prediction | str] = {}
    for batch in batches(by_size, sizes.__getitem__):
        done = predict_each(backbone, [frames[i] for i in batch], finite=False)
        slim = [one if isinstance(one, str) else _slim(one) for one in done]
        outcomes.update(zip(batch, slim, strict=True))
        advance(len(batch))
    return [outcomes[i] for i in range(len(sizes))]


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
