"""Frames that may be chosen for labelling: their ranking value, vector and event."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.annotating.copies import (
    INFO_KEY,
    read_assessment,
    read_error,
    step_of,
)
from uqcalc.annotating.descriptor import (
    potential_name,
    read_descriptor,
    store_descriptor,
    structure_descriptor,
)
from uqcalc.annotating.trajectory import annotate
from uqcalc.backbones.batching import evaluate_each
from uqcalc.calculator import ReliableCalculator
from uqcalc.chargespin import stated_charge_spin
from uqcalc.errors import RecordError
from uqcalc.labels.groups import group_names
from uqcalc.probe.seen import Geometries


RISK = "risk"  # the risk of the first reading
NOT_EVALUATED = "the potential could not evaluate them"
IMPOSSIBLE = "physically impossible"
REPEATED = "with the geometry of an earlier frame"


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Frames that may be chosen.

    Attributes
    ----------
    rows : array (candidates,) of int
        Index of each candidate in the given frames.
    frames : list of Atoms
        Copies with assessment and, if vectors are needed, descriptor.
    values : array (candidates,)
        Quantity by which frames are ranked; larger is chosen first, NaN before all.
    vectors : array (candidates, dim) or None
        Descriptors of the structures; None if they are not needed.
    events : tuple of str
        Event of each candidate.
    left_out : mapping
        Reason -> number of frames that cannot be chosen.
    """

    rows: NDArray[np.int64]
    frames: list[Atoms]
    values: NDArray[np.float64]
    vectors: NDArray[np.float64] | None
    events: tuple[str, ...]
    left_out: dict[str, int]


def candidates_of(
    frames: Sequence[Atoms],
    by: str,
    calculator: ReliableCalculator | None,
    *,
    diverse: bool,
    group: str | None,
    event_steps: int,
) -> Candidates:
    """Return the candidates among ``frames``; the arguments are those of `select`.

    Raises
    ------
    RecordError
        As `uqcalc.select`.
    """
    ready = _assessed(frames, calculator)
    events = _events(ready, group, event_steps)
    left_out: Counter[str] = Counter()
    rows: list[int] = []
    repeats = _repeats(ready)
    for row, frame in enumerate(ready):
        if repeats[row]:
            left_out[REPEATED] += 1
        elif read_error(frame) is not None:
            left_out[NOT_EVALUATED] += 1
        elif read_assessment(frame).impossible:
            left_out[IMPOSSIBLE] += 1
        else:
            rows.append(row)
    kept = [ready[row] for row in rows]
    values = [_value(frame, by, row) for row, frame in zip(rows, kept, strict=True)]
    vectors = _vectors(kept, rows, calculator) if diverse and kept else None
    return Candidates(
        np.array(rows, dtype=int),
        kept,
        np.array(values, dtype=float),
        vectors,
        tuple(events[row] for row in rows),
        dict(left_out),
    )


def _assessed(
    frames: Sequence[Atoms], calculator: ReliableCalculator | None
) -> list[Atoms]:
    """Return copies with an assessment; the calculator judges frames without one."""
    missing = [row for row, frame in enumerate(frames) if INFO_KEY not in frame.info]
    if missing and calculator is None:
        msg = (
            f"frames must carry an assessment, got frame {missing[0]} without "
            f"info[{INFO_KEY!r}]; pass the calculator (--model, and --probe if the "
            "probe is your own), or annotate them first"
        )
        raise RecordError(msg)
    ready = [frame.copy() for frame in frames]
    if calculator is not None and missing:
        judged = annotate([frames[row] for row in missing], calculator)
        for row, frame in zip(missing, judged, strict=True):
            ready[row] = frame
    return ready


def _vectors(
    frames: Sequence[Atoms], rows: Sequence[int], calculator: ReliableCalculator | None
) -> NDArray[np.float64]:
    """Return the descriptors, (frames, dim); the calculator computes missing ones."""
    stored = [read_descriptor(frame) for frame in frames]
    ours = None
    if calculator is not None:
        ours = potential_name(calculator.backbone.fingerprint)
    usable = [s is not None and ours in (None, s[1]) for s in stored]
    missing = [index for index, known in enumerate(usable) if not known]
    if missing and calculator is None:
        msg = (
            f"frames must carry a descriptor of the potential to be spread over its "
            f"feature space, got frame {rows[missing[0]]} without one; pass the "
            "calculator (--model), or diverse=False (--no-diverse) to take the highest"
        )
        raise RecordError(msg)
    if calculator is not None and missing:
        _describe([frames[index] for index in missing], calculator)
    found = [read_descriptor(frame) for frame in frames]
    names = sorted({pair[1] for pair in found if pair is not None})
    lengths = {len(pair[0]) for pair in found if pair is not None}
    if len(names) > 1 or len(lengths) > 1:
        msg = (
            f"descriptors must be of one potential, got those of {len(names)}: "
            f"{', '.join(names)}; pass the calculator (--model) to compute them anew"
        )
        raise RecordError(msg)
    return np.array([pair[0] for pair in found if pair is not None])


def _describe(frames: Sequence[Atoms], calculator: ReliableCalculator) -> None:
    """Store the descriptor in each frame; one pass of the potential for each.

    Raises
    ------
    RecordError
        If the potential cannot evaluate a frame.
    """
    backbone = calculator.backbone
    for frame, outcome in evaluate_each(backbone, frames):
        if isinstance(outcome, str):
            msg = (
                "frames must be ones that the potential can evaluate, got "
                f"{frame.get_chemical_formula()} ({outcome}); leave it out"
            )
            raise RecordError(msg)
        vector = structure_descriptor(outcome.features)
        store_descriptor(frame, vector, backbone.fingerprint)


def _events(frames: Sequence[Atoms], group: str | None, event_steps: int) -> list[str]:
    """Return the event of each frame.

    An event is a sequence of flagged frames of one run. A new one begins if the step
    goes back or jumps by more than ``event_steps``, or if group or formula change.
    Each frame without a step that is a whole number is an event of its own.
    """
    groups = group_names(frames, group) if group is not None else [""] * len(frames)
    names: list[str] = []
    number = -1
    before: tuple[float, str, str] | None = None
    for frame, own in zip(frames, groups, strict=True):
        known = step_of(frame)
        step = math.nan if known is None else known
        now = (step, own, str(frame.symbols))
        same = (
            before is not None
            and before[1:] == now[1:]
            and 0 < step - before[0] <= event_steps
        )
        number += not same
        before = now
        names.append(f"{own}:e{number}" if own else f"e{number}")
    return names


def _repeats(frames: Sequence[Atoms]) -> list[bool]:
    """Return which frames have the geometry, charge and spin of an earlier one."""
    index = Geometries()
    found = []
    for frame in frames:
        said = stated_charge_spin(frame)
        known = [stated_charge_spin(other) for other in index.find(frame)]
        found.append(said in known)
        index.add([] if found[-1] else [frame])
    return found


def _value(frame: Atoms, by: str, row: int) -> float:
    """Return the quantity ``by`` of a frame.

    Raises
    ------
    RecordError
        If the frame does not have it, or if it is P(reliable), by which the best frames
        would be chosen.
    """
    if by.startswith("probe") and "reliability" in by:
        msg = (
            "by must be larger for the frames to label, got "
            f"{by!r}, the probability that a frame is right; write {RISK!r}"
        )
        raise RecordError(msg)
    readings = read_assessment(frame).readings
    if by == RISK and readings:
        return readings[0].risk
    for reading in readings:
        if reading.signal == by:
            return reading.risk
    value = frame.info.get(by)
    if isinstance(value, (int, float, np.integer, np.floating)):
        return float(value)
    known = sorted({RISK, *(reading.signal for reading in readings)})
    msg = (
        f"by must be one of {known} or a number in info, got {by!r}, which frame {row} "
        "does not have; choose another"
    )
    raise RecordError(msg)
