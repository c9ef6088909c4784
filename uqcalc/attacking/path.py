"""Results of an attack: one path of annotated structures for each start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.records import Level


START_KEY, STEP_KEY = "attack_start", "attack_step"
ERROR_KEY = "attack_force_error"


@dataclass(frozen=True, slots=True, eq=False)
class AttackPath:
    """One path, its first geometry included.

    Attributes
    ----------
    start : int
        0 is the given structure; the others are rattled copies of it.
    frames : tuple of Atoms
        Annotated copies, with ``attack_start`` and ``attack_step`` in ``info``; where
        there is a reference, with its forces as ``REF_forces`` and the error as
        ``attack_force_error``.
    force_delta : array (frames,)
        U of the calculator in eV/Å.
    energy : array (frames,)
        In eV, of the calculator.
    force_error : array (frames,) or None
        RMS over the components of the calculator's forces minus the reference's, in
        eV/Å; None without a reference, NaN where it failed.
    reason : str
        Why the path ended.
    """

    start: int
    frames: tuple[Atoms, ...]
    force_delta: NDArray[np.float64]
    energy: NDArray[np.float64]
    force_error: NDArray[np.float64] | None
    reason: str

    @property
    def steps(self) -> int:
        """Number of steps; 0 also if the first geometry could not be evaluated."""
        return max(len(self.frames) - 1, 0)

    @property
    def energy_rise(self) -> NDArray[np.float64]:
        """Energy above that of the path's first geometry, (frames,), in eV/atom."""
        if not self.frames:
            return np.zeros(0)
        rise: NDArray[np.float64] = self.energy - self.energy[0]
        return rise / len(self.frames[0])

    @property
    def levels(self) -> tuple[Level, ...]:
        """The verdict on each frame."""
        return tuple(Level(frame.info["reliability_level"]) for frame in self.frames)


class GrowingPath:
    """A path as it grows."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.frames: list[Atoms] = []
        self.force_delta: list[float] = []
        self.energy: list[float] = []
        self.force_error: list[float] = []

    def add(
        self, frame: Atoms, uncertainty: float, energy: float, error: float
    ) -> None:
        """Keep one geometry."""
        self.frames.append(frame)
        self.force_delta.append(uncertainty)
        self.energy.append(energy)
        self.force_error.append(error)

    def closed(self, reason: str, *, scored: bool) -> AttackPath:
        """Return the path so far; ``scored`` says whether there is a reference."""
        return AttackPath(
            self.start,
            tuple(self.frames),
            np.array(self.force_delta),
            np.array(self.energy),
            np.array(self.force_error) if scored else None,
            reason,
        )
