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
NEAR = 0.5
NEAR_DUPLICATES = "near-duplicates of a chosen frame of the same event"
FULL_EVENTS = "in events from which enough frames are chosen"


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
            f"of {len(set(self.candidates.events))} events, by {self.by}."
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
    (`uqcalc.annotating.descriptor`): flagged frames of `Monitor` have them, and the
    calculator computes those that are missing. The choice has no random numbers.

    Left out are frames that the potential could not evaluate, physically impossible
    ones (`uqcalc.Sanity`), and frames with the geometry of an earlier one. The frames
    do not change.

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
        values come first, NaN before all. P(reliable) is refused: its largest values
        are the best frames.
    diverse : bool
        With False the frames with the largest ``by`` are chosen, without descriptors;
        near-duplicates are then not recognised.
    calculator : ReliableCalculator, optional
        Judges frames without an assessment, and computes missing descriptors and those
        of another potential.
    per_event : int, optional
        Largest number of frames of one event; by default twice the average for an
        event, and more only if the other events have no frames left.
    group : str, optional
        Entry of ``info``, such as a run or a molecule. An event is within one group.
    event_steps : int
        Frames of one run belong to one event if their steps differ by at most this
        number from one frame to the next. Frames without a whole number in
        ``info["step"]`` are events of their own.
    near : float
        Frames of one event are near-duplicates if their distance is less than
        ``near`` times the median distance of a candidate from the centre of all
        candidates of this formula, in which every event counts once. On flagged
        frames of ethanol with a time step of 0.5 fs, frames 1, 2, 4 and 8 steps apart
        have 0.17, 0.34, 0.64 and 1.05 times this distance, and frames of two events
        1.9 times.

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
    given: object = frames
    if isinstance(given, Atoms):
        msg = "frames must be a sequence of Atoms, got one Atoms object; pass [atoms]"
        raise TypeError(msg)
    found = candidates_of(
        list(frames),
        by,
        calculator,
        diverse=diverse,
        group=group,
        event_steps=event_steps,
    )
    share = math.ceil(2 * n / max(1, len(set(found.events))))
    fixed = per_event is not None
    share = share if per_event is None else per_event
    chosen, left_out = _chosen(found, n, share, near, fixed=fixed)
    copies = []
    for index in chosen:
        copy = found.frames[index].copy()
        copy.info[EVENT_KEY] = found.events[index]
        copy.info[ROW_KEY] = int(found.rows[index])
        copies.append(copy)
    rows = found.rows[chosen]
    left_out = found.left_out | left_out
    return Selection(copies, rows, by, n, found, left_out)


def _chosen(
    found: Candidates, n: int, share: int, near: float, *, fixed: bool
) -> tuple[list[int], dict[str, int]]:
    """Return indices of candidates in the order of choice, and what was left out.

    ``share`` is the largest number of one event. Unless it is ``fixed``, it is doubled
    where all other candidates are used up.
    """
    count = len(found.frames)
    values = np.where(np.isnan(found.values), np.inf, found.values)
    weights = rankdata(values) / max(1, count)
    events = np.array(found.events, dtype=object)
    distances = np.full(count, np.inf)
    least = near * _scales(found)
    open_ = np.ones(count, dtype=bool)
    parked = np.zeros(count, dtype=bool)  # event has enough chosen frames
    taken: Counter[str] = Counter()
    close = 0
    chosen: list[int] = []
    while len(chosen) < n:
        if not open_.any():
            if fixed or not parked.any():
                break
            share *= 2
            open_, parked = parked, np.zeros(count, dtype=bool)
        index = _best(weights, distances, open_)
        chosen.append(index)
        open_[index] = False
        taken[events[index]] += 1
        same = open_ & (events == events[index])
        if found.vectors is not None:
            apart = np.linalg.norm(found.vectors - found.vectors[index], axis=1)
            distances = np.minimum(distances, apart)
            near_ones = same & (apart < least)
            close += int(near_ones.sum())
            open_ &= ~near_ones
            same &= ~near_ones
        if taken[events[index]] >= share:
            parked |= same
            open_ &= ~same
    left_out = {NEAR_DUPLICATES: close, FULL_EVENTS: int(parked.sum())}
    return chosen, {why: number for why, number in left_out.items() if number}


def _best(
    weights: NDArray[np.float64],
    distances: NDArray[np.float64],
    open_: NDArray[np.bool_],
) -> int:
    """Return the open candidate with the largest product of rank and distance."""
    score = weights * np.where(np.isinf(distances), 1.0, distances)
    # once all distances are 0 the rank decides
    if not score[open_].any():
        score = weights
    return int(np.argmax(np.where(open_, score, -np.inf)))


def _scales(found: Candidates) -> NDArray[np.float64]:
    """Return, for each candidate, the usual distance from the centre of its formula.

    Every event counts once, however many frames it has. Medians are used, not means: a
    few exploded frames may be far from all others.
    """
    scales = np.zeros(len(found.frames))
    if found.vectors is None:
        return scales
    events = np.array(found.events, dtype=object)
    formulas = np.array([str(frame.symbols.formula) for frame in found.frames])
    for formula in dict.fromkeys(formulas.tolist()):
        own = formulas == formula
        rows = [
            np.flatnonzero(own & (events == event))
            for event in dict.fromkeys(events[own].tolist())
        ]
        centre = np.median([np.median(found.vectors[r], axis=0) for r in rows], axis=0)
        apart = np.linalg.norm(found.vectors - centre, axis=1)
        scales[own] = np.median([np.median(apart[r]) for r in rows])
    return scales


def _check(n: int, per_event: int | None, event_steps: int, near: float) -> None:
    counts = {"n": n, "event_steps": event_steps}
    if per_event is not None:
        counts["per_event"] = per_event
    for name, value in counts.items():
        given: object = value
        whole = isinstance(given, int | np.integer) and not isinstance(given, bool)
        if not whole or value < 1:
            msg = f"{name} must be a whole number of at least 1, got {value!r}"
            raise ValueError(msg)
    if not 0 <= near < math.inf:
        msg = f"near must be a number of at least 0, got {near!r}; 0 drops nothing"
        raise ValueError(msg)
