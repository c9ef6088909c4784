"""Trajectories after the fact: every frame judged, and yielded annotated."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ase import Atoms

from uqcalc.annotating.copies import annotated_copy, cleared_copy, refused_copy
from uqcalc.backbones.base import Prediction
from uqcalc.backbones.batching import BATCH_ATOMS, batches, predict_each
from uqcalc.calculator import ReliableCalculator


def annotate(
    frames: Iterable[Atoms],
    calculator: ReliableCalculator,
    *,
    batch_atoms: int = BATCH_ATOMS,
) -> Iterator[Atoms]:
    """Yield an annotated copy of every frame, in order, holding one batch at a time.

    Frames are evaluated in native batches where the backbone has them, and judged as
    by ``calculator.assess``; a batch and a single evaluation agree to the model's
    precision. The copies carry energy and forces (native batches give no stress) and
    the assessment; `uqcalc.read_assessment` reads it back. What a frame itself stored
    as energy, forces and so on is kept as ``original_energy``, ``original_forces``.

    A frame that cannot be evaluated (no atoms, NaN positions, unknown elements, an
    exception of the model, NaN results) is UNRELIABLE with NaN risks, has neither
    energy nor forces, and carries the reason in ``info["uqcalc_error"]``.

    Parameters
    ----------
    frames : iterable of Atoms
        A generator is read as far as the next batch; the frames are not changed.
    calculator : ReliableCalculator
    batch_atoms : int
        Atoms evaluated together; one larger frame is evaluated by itself.

    Raises
    ------
    TypeError
        If ``frames`` is a single structure or a path, or ``calculator`` is a bare one.
    ValueError
        If ``batch_atoms`` is not positive.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from uqcalc import annotate, default_calculator
    >>> [water] = annotate([molecule("H2O")], default_calculator())
    >>> sorted(key for key in water.info if not key.startswith("sanity"))
    ['probe_reliability', 'reliability_level', 'uqcalc']
    """
    refused: object = frames
    if isinstance(refused, (Atoms, str, os.PathLike)):
        msg = (
            f"frames must be an iterable of Atoms, got {type(frames).__name__}; pass "
            "[atoms] for one structure, and use uqcalc.annotate_file for files"
        )
        raise TypeError(msg)
    check_calculator(calculator, batch_atoms)
    return _annotated(frames, calculator, batch_atoms)


def _annotated(
    frames: Iterable[Atoms], calculator: ReliableCalculator, batch_atoms: int
) -> Iterator[Atoms]:
    # copied as they come: a generator may yield the same atoms, moved, again and again
    copies = (cleared_copy(_checked(frame)) for frame in frames)
    for batch in batches(copies, len, batch_atoms):
        outcomes = predict_each(calculator.backbone, batch, calculator.wanted())
        for frame, outcome in zip(batch, outcomes, strict=True):
            yield _with_outcome(frame, outcome, calculator)


def _with_outcome(
    frame: Atoms, outcome: Prediction | str, calculator: ReliableCalculator
) -> Atoms:
    if isinstance(outcome, str):
        return refused_copy(frame, calculator.refusal(outcome), outcome)
    results = {key: outcome.results[key] for key in ("energy", "forces")}
    return annotated_copy(frame, calculator.judge(outcome), results)


def check_calculator(calculator: object, batch_atoms: int) -> None:
    """Refuse, before the first frame, what cannot judge one.

    Raises
    ------
    TypeError, ValueError
        As `annotate` does.
    """
    if not isinstance(calculator, ReliableCalculator):
        msg = (
            f"calculator must be a ReliableCalculator, got {type(calculator).__name__};"
            ' wrap it: ReliableCalculator(calculator, probe="my.probe")'
        )
        raise TypeError(msg)
    if batch_atoms < 1:
        msg = f"batch_atoms must be at least 1, got {batch_atoms}; 512 is usual"
        raise ValueError(msg)


def _checked(frame: object) -> Atoms:
    if not isinstance(frame, Atoms):
        msg = f"frames must be Atoms, got {type(frame).__name__} among them"
        raise TypeError(msg)
    return frame
