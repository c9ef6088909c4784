"""Frames after the first alarm, different from each other, for the next labels.

A run that halts early has only frames just outside the reliable region. In harvest mode
it continues, and a frame is kept if its descriptor is far from those of all frames kept
before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.annotating.descriptor import potential_name, read_descriptor
from uqcalc.records import Event, Level
from uqcalc.watching.outputs import Outputs


NOVELTY_KEY, SPACING_KEY = "harvest_novelty", "harvest_spacing"
BUDGET = 50
FULL = "The budget of harvested frames is full"
# Distances are in units of the spread of the descriptors before the alarm; so many
# frames are needed to know it.
_LEAST = 10
# Two independent frames from before the alarm are 1.4 (square root of 2) spreads apart:
# a kept frame differs by more than chance.
_SPACING = 1.5


class Harvest:
    """Decides which frames of a run are kept after the first alarm.

    Parameters
    ----------
    budget : int
        Largest number of frames.

    Attributes
    ----------
    begun : bool
        Whether the alarm has been raised.
    kept : int
        Number of frames kept so far.
    last_novelty : float
        Novelty of the frame kept last; NaN before the first one.

    Raises
    ------
    ValueError
        If ``budget`` is not a whole number from 1.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        given: object = budget
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            msg = f"max_harvest must be a whole number from 1, got {budget!r}"
            raise ValueError(msg)
        self.budget = budget
        self.begun = False
        self.last_novelty = math.nan
        self._kept: list[NDArray[np.float64]] = []
        self._count = 0
        self._mean: NDArray[np.float64] | None = None
        self._squares = 0.0
        self._spacing: float | None = None

    @property
    def kept(self) -> int:
        """Number of frames kept so far."""
        return len(self._kept)

    @property
    def full(self) -> bool:
        """Whether the budget is used up."""
        return self.kept >= self.budget

    def learn(self, vector: NDArray[np.float64]) -> None:
        """Take the descriptor of a frame before the alarm, for mean and spread.

        The spread is the RMS distance from the mean, updated as by Welford
        (doi:10.1080/00401706.1962.10490022).
        """
        if not np.isfinite(vector).all():
            return
        self._count += 1
        mean = vector if self._mean is None else self._mean
        before = vector - mean
        self._mean = mean + before / self._count
        self._squares += float(before @ (vector - self._mean))

    def step(
        self,
        event: Event,
        structure: Any,
        outputs: Outputs,
        alarm: Callable[[], object] | None,
    ) -> bool:
        """Write the frame of this step if it is new; return whether the budget is full.

        Parameters
        ----------
        event : Event
            The step; one that was not judged is passed over, and so is a physically
            impossible frame, which `uqcalc.select` would leave out.
        structure : Structure
            The structure of the run, at this step.
        outputs : Outputs
            Gets the frame.
        alarm : callable or None
            Given if the trigger acts at this step; it is called at the first alarm,
            with which the harvest begins.
        """
        if alarm is not None and not self.begun:
            self.begun = True
            alarm()
        if event.level is None or structure.last.impossible:
            return False
        vector = structure.descriptor()
        if not self.begun:
            self.learn(vector)
        elif event.level is not Level.RELIABLE and self.take(vector):
            frame = structure.snapshot(event.step, described=True)
            self.mark(frame)
            outputs.flag(lambda: frame, final=True)
        return self.full

    def take(self, vector: NDArray[np.float64]) -> bool:
        """Return whether to keep the frame with this descriptor.

        The first one is kept, and each one that is at least `spacing` away from all
        kept frames. NaN is never kept. Without ten frames before the alarm, the
        spread is learned from the frames after it, and none of these is kept but the
        first.
        """
        if not self.begun or self.full or not np.isfinite(vector).all():
            return False
        if self._spacing is None and self._count < _LEAST:
            self.learn(vector)
            if self._kept:
                return False
        if not self._kept or self._is_apart(vector):
            self._kept.append(vector)
            self.last_novelty = self.novelty(vector)
            return True
        return False

    def novelty(self, vector: NDArray[np.float64]) -> float:
        """Return the distance from the mean of all frames before the alarm, in spreads.

        NaN without such frames.
        """
        if self._mean is None or not self.spacing > 0:
            return math.nan
        return _SPACING * float(np.linalg.norm(vector - self._mean)) / self.spacing

    @property
    def spacing(self) -> float:
        """Smallest distance between kept frames, 1.5 spreads; NaN if not known yet."""
        if self._spacing is not None:
            return self._spacing
        if self._count < 2:
            return math.nan
        return _SPACING * math.sqrt(self._squares / self._count)

    def mark(self, frame: Atoms) -> None:
        """Write novelty and spacing into ``info`` of a kept frame."""
        frame.info[NOVELTY_KEY] = self.last_novelty
        frame.info[SPACING_KEY] = self.spacing

    def restore(
        self, frames: Iterable[Atoms], fingerprint: str, *, begun: bool
    ) -> None:
        """Take frames of an existing file as kept.

        Parameters
        ----------
        frames : iterable of Atoms
            Frames of another potential or of another kind are passed over.
        fingerprint : str
            Identity of the potential.
        begun : bool
            Whether the frames are of the run that continues. Then the harvest has
            begun, with the spacing of these frames. A run that continues without kept
            frames learns the spread anew.
        """
        ours = potential_name(fingerprint)
        for frame in frames:
            stored = read_descriptor(frame)
            if stored is None or stored[1] != ours or SPACING_KEY not in frame.info:
                continue
            self._kept.append(stored[0])
            if not begun:
                continue
            self.begun = True
            self.last_novelty = float(frame.info[NOVELTY_KEY])
            spacing = float(frame.info[SPACING_KEY])
            self._spacing = spacing if spacing > 0 else None

    def words(self) -> str:
        """Return one line for the summary of the run."""
        if not self.begun:
            return "Nothing was harvested: there was no alarm."
        far = "" if math.isnan(self.last_novelty) else f", the last at {self._far()}"
        return f"Harvested: {self.kept} of at most {self.budget} frames{far}."

    def entry(self) -> dict[str, Any]:
        """Return the entry of the end record."""
        return {"harvested": self.kept}

    def _far(self) -> str:
        return f"{self.last_novelty:.3g} times the spread of the frames before it"

    def _is_apart(self, vector: NDArray[np.float64]) -> bool:
        spacing = self.spacing
        nearest = min(float(np.linalg.norm(vector - kept)) for kept in self._kept)
        return nearest >= spacing and nearest > 0
