"""Evaluate many geometries in batches; the failure of one does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.errors import BackboneError


T = TypeVar("T")

# Errors that a model or its neighbour list raises for one bad geometry. EMT raises
# NotImplementedError for an unsupported element, and NumPy MemoryError if arrays of a
# geometry are too large.
_FRAME_FAULTS = (
    BackboneError,
    RuntimeError,
    ValueError,
    ArithmeticError,
    LookupError,
    MemoryError,
)
# Errors that are raised again, because the next geometry would fail too: a full or
# broken device, a programming error. All are RuntimeErrors.
_NOT_THE_FRAME = (torch.OutOfMemoryError, torch.AcceleratorError, RecursionError)
_LONGEST_REASON = 1000


def batches(
    items: Iterable[T], size: Callable[[T], int], limit: int
) -> Iterator[list[T]]:
    """Group consecutive items so that their sizes add up to at most ``limit``.

    An item larger than ``limit`` is a group by itself. Only one group is in memory.
    """
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and total + size(item) > limit:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch


def once_each(frames: Sequence[Atoms], build: Callable[[Atoms], T]) -> list[T]:
    """Return ``build(frame)`` for all frames; it runs once for repeated frames.

    The members of a perturbation are one frame many times.
    """
    distinct = {id(frame): frame for frame in frames}
    built = {key: build(frame) for key, frame in distinct.items()}
    return [built[id(frame)] for frame in frames]


def evaluate_each(
    backbone: Backbone,
    frames: Iterable[Atoms],
    wanted: Sequence[str] = ("energy", "forces"),
    *,
    limit: int | None = None,
    finite: bool = True,
) -> Iterator[tuple[Atoms, Prediction | str]]:
    """Yield every frame with its prediction or, if it failed, with the reason.

    The order stays. Frames are evaluated in native batches of at most ``limit`` atoms
    if the backbone supports them, by default `Backbone.batch_atoms`. Only one batch is
    in memory.

    Parameters
    ----------
    wanted, finite
        As for `predict_each`.
    """
    most = backbone.batch_atoms if limit is None else limit
    for batch in batches(frames, len, most):
        outcomes = predict_each(backbone, batch, wanted, finite=finite)
        yield from zip(batch, outcomes, strict=True)


def predict_each(
    backbone: Backbone,
    frames: Sequence[Atoms],
    wanted: Sequence[str] = ("energy", "forces"),
    *,
    finite: bool = True,
) -> list[Prediction | str]:
    """Evaluate frames together; return the reason for each frame that fails.

    A frame fails if `Backbone.check_structure` refuses it, if the model raises an error
    for it, or, with ``finite``, if its prediction holds NaN or infinity.
    """
    outcomes: dict[int, Prediction | str] = {}
    sound: list[int] = []
    for index, frame in enumerate(frames):
        defect = _defect(backbone, frame)
        if defect is None:
            sound.append(index)
        else:
            outcomes[index] = defect
    evaluated = _evaluate(backbone, [frames[i] for i in sound], wanted, finite=finite)
    outcomes.update(zip(sound, evaluated, strict=True))
    return [outcomes[index] for index in range(len(frames))]


def _defect(backbone: Backbone, frame: Atoms) -> str | None:
    try:
        backbone.check_structure(frame)
    except BackboneError as error:
        return str(error)
    return None


def _evaluate(
    backbone: Backbone, frames: list[Atoms], wanted: Sequence[str], *, finite: bool
) -> list[Prediction | str]:
    if not frames:
        return []
    try:
        predictions = backbone.predict_many(frames, wanted)
    except _NOT_THE_FRAME:
        raise
    except _FRAME_FAULTS as error:
        if len(frames) == 1:
            return [_reason(error)]
        return _one_by_one(backbone, frames, wanted, finite=finite)
    if not finite or all(prediction.finite for prediction in predictions):
        return list(predictions)
    if len(frames) == 1:
        broken = " and ".join(predictions[0].broken())
        return [f"{broken} must be finite, got NaN or infinity"]
    return _one_by_one(backbone, frames, wanted, finite=finite)


def _one_by_one(
    backbone: Backbone, frames: list[Atoms], wanted: Sequence[str], *, finite: bool
) -> list[Prediction | str]:
    return [
        outcome
        for frame in frames
        for outcome in _evaluate(backbone, [frame], wanted, finite=finite)
    ]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if not isinstance(error, BackboneError):
        text = f"{type(error).__name__}: {text}"
    return text[:_LONGEST_REASON]
