"""`select`: choose frames to label, by risk and by distance in feature space."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.stats import rankdata

from uqcalc.calculator import ReliableCalculator
from uqcalc.learning.candidates import RISK, Candidates, candidates_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes

EVENT_KEY = "uqcalc_event"
ROW_KEY = "uqcalc_row"
EVENT_STEPS = 100  # 50 fs with a time step of 0.5 fs
NEAR = 0.1
NEAR_DUPLICATES = "near-duplicates of a chosen frame of the same event"
FULL_EVENTS = "in events that have given their share"


@dataclass(frozen=True, slots=True, eq=False)
class Selection(Sequence[Atoms]):
    """Chosen frames, in the order in which they were chosen.

    Attributes
    ----------
    frames : list of Atoms
        Copies. ``info["uqcalc_event"]`` is the event, to be used as a group in later
        splits; ``info["uqcalc_row"]`` is the row in the given frames.
    rows : array (chosen,) of int
        Rows in the given frames.
    by : str
        Quantity by which frames were ranked.
    asked : int
        Number of frames that were asked for.
    per_event : int
        Largest number of frames of one event.
    candidates : Candidates
        All frames that could be chosen.
    left_out : mapping
        Reason -> number of frames that were not chosen although there was room, or
        that could not be chosen.
    """

    frames: list[Atoms]
    rows: NDArray[np.int64]
    by: str
    asked: int
    per_event: int
    candidates: Candidates
    left_out: Mapping[str, int] = field(default_factory=dict)

    @overload
    def __getitem__(self, index: int) -> Atoms: ...
    @overload
    def __getitem__(self, index: slice) -> list[Atoms]: ...
    def __getitem__(self, index: int | slice) -> Atoms | list[Atoms]:
        """Return one of the chosen frames, or a list of them."""
        return self.frames[index]

    def __len__(self) -> int:
        """Return the number of chosen frames."""
        return len(self.frames)

    @property
    def events(self) -> tuple[str, ...]:
        """Event of each chosen frame."""
        return tuple(str(frame.info[EVENT_KEY]) for frame in self.frames)

    def __str__(self) -> str:
        given = len(self.candidates.frames)
        lines = [
            f"Chosen: {len(self)} of {given} candidates, from {len(set(self.events))} "
            f"of {len(set(self.candidates.events))} events (at most {self.per_event} "
            f"of each), by {self.by}."
        ]
        if len(self) < self.asked:
            lines.append(f"Fewer than the {self.asked} that were asked for.")
        lines += [f"Not chosen: {n} {why}." for why, n in self.left_out.items()]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw all candidates and the chosen ones; return the axes.

        With descriptors the axes are their two main components, otherwise row and
        ranking value.
        """
        from uqcalc.learning.picture import plot_selection

        return plot_selection(self, ax)


def select(  # noqa: PLR0913  (what a user writes in one line of a script)
    frames: Sequence[Atoms],
    n: int,
    by: str = RISK,
    *,
    diverse: bool = True,
    calculator: ReliableCalculator | None = None,
    per_event: int | None = None,
    group: str | None = None,
    event_steps: int = EVENT_STEPS,
    near: float = NEAR,
) -> Selection:
    """Choose at most ``n`` frames to label: risky ones that differ from each other.

    The first frame is the one with the largest ``by``. Each further one has the
    largest product of its rank in ``by`` and its distance to the nearest chosen frame
    (farthest-point sampling, Gonzalez, doi:10.1016/0304-3975(85)90224-5). Distances
    are Euclidean, between the descriptors of whole structures
    (`uqcalc.annotating.descriptor`): flagged frames of `Monitor` carry them, and the
    calculator computes those that are missing. The choice has no random numbers.

    Left out are frames that the potential could not evaluate and physically impossible
    ones (`uqcalc.Sanity`). The frames do not change.

    Parameters
    ----------
    frames : sequence of Atoms
        Annotated frames. Frames without an assessment need a ``calculator``.
    n : int
        Largest number of frames; fewer are returned if the others are near-duplicates
        or exceed ``per_event``.
    by : str
        "risk" (of the first signal, usually the probe), the name of a signal, or an
        entry of ``info`` with a number, such as "probe_novelty" or "step". Larger
        values come first, NaN before all.
    diverse : bool
        With False the frames with the largest ``by`` are chosen, without descriptors;
        near-duplicates are then not recognised.
    calculator : ReliableCalculator, optional
        Judges frames without an assessment, and computes missing descriptors and those
        of another potential.
    per_event : int, optional
        Largest number of frames of one event; by default twice an even share.
    group : str, optional
        Entry of ``info``, such as a run or a molecule. An event is within one group.
    event_steps : int
        Frames of one run belong to one event if their steps differ by at most this
        number from one frame to the next. Frames without ``info["step"]`` are events
        of their own.
    near : float
        Frames of one event are near-duplicates if their distance is less than
        ``near`` times the median distance of a candidate from the centre of all, in
        which every event counts once.

    Returns
    -------
    Selection
        A sequence of the chosen frames; ``plot()`` draws them.

    Raises
    ------
    ValueError
        If ``n``, ``per_event``, ``event_steps`` or ``near`` is out of range.
    RecordError
        If a frame lacks an assessment, a descriptor or ``by`` and no calculator can
        give it, or if descriptors are of several potentials.
    LabelError
        If a frame lacks the entry ``group``.
    """
    _check(n, per_event, event_steps, near)
    found = candidates_of(
        frames,
        by,
        calculator,
        diverse=diverse,
        group=group,
        event_steps=event_steps,
    )
    if per_event is None:
        per_event = max(1, math.ceil(2 * n / max(1, len(set(found.events)))))
    chosen, left_out = _chosen(found, n, per_event, near)
    copies = []
    for index in chosen:
        copy = found.frames[index].copy()
        copy.info[EVENT_KEY] = found.events[index]
        copy.info[ROW_KEY] = int(found.rows[index])
        copies.append(copy)
    rows = found.rows[chosen]
    left_out = found.left_out | left_out
    return Selection(copies, rows, by, n, per_event, found, left_out)


def _chosen(
    found: Candidates, n: int, per_event: int, near: float
) -> tuple[list[int], dict[str, int]]:
    """Return indices of candidates in the order of choice, and what was left out."""
    count = len(found.frames)
    values = np.where(np.isnan(found.values), np.inf, found.values)
    weights = rankdata(values) / max(1, count)
    events = np.array(found.events, dtype=object)
    distances = np.full(count, np.inf)
    least = near * _scale(found)
    open_ = np.ones(count, dtype=bool)
    taken: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    chosen: list[int] = []
    while len(chosen) < n and open_.any():
        score = weights * np.where(np.isinf(distances), 1.0, distances)
        # once all distances are 0 the rank decides
        if not score[open_].any():
            score = weights
        index = int(np.argmax(np.where(open_, score, -np.inf)))
        chosen.append(index)
        open_[index] = False
        taken[events[index]] += 1
        same = open_ & (events == events[index])
        if found.vectors is not None:
            apart = np.linalg.norm(found.vectors - found.vectors[index], axis=1)
            distances = np.minimum(distances, apart)
            close = same & (apart < least)
            left_out[NEAR_DUPLICATES] += int(close.sum())
            open_ &= ~close
            same &= ~close
        if taken[events[index]] >= per_event:
            left_out[FULL_EVENTS] += int(same.sum())
            open_ &= ~same
    return chosen, {why: number for why, number in left_out.items() if number}


def _scale(found: Candidates) -> float:
    """Return the usual distance of a candidate from the centre of all candidates.

    Every event counts once, however many frames it has. All means are medians, as
    exploded frames are few and far.
    """
    if found.vectors is None:
        return 0.0
    events = np.array(found.events, dtype=object)
    rows = [np.flatnonzero(events == event) for event in dict.fromkeys(found.events)]
    centre = np.median([np.median(found.vectors[r], axis=0) for r in rows], axis=0)
    apart = np.linalg.norm(found.vectors - centre, axis=1)
    return float(np.median([np.median(apart[r]) for r in rows]))


def _check(n: int, per_event: int | None, event_steps: int, near: float) -> None:
    counts = {"n": n, "event_steps": event_steps}
    if per_event is not None:
        counts["per_event"] = per_event
    for name, value in counts.items():
        if isinstance(value, bool) or value != int(value) or value < 1:
            msg = f"{name} must be a whole number from 1, got {value!r}"
            raise ValueError(msg)
    if not 0 <= near < math.inf:
        msg = f"near must be a number of at least 0, got {near!r}; 0 drops nothing"
        raise ValueError(msg)
