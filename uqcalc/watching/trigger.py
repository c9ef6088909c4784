"""The condition for action: UNRELIABLE frames in a row, or a fraction of a window."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqcalc.records import Assessment, Level


# Found on molecules heated until they failed: benchmarks/halts_when_it_should.py.
WINDOW_FS, FRACTION = 50.0, 0.5
# Optimisers make few and large steps.
OPTIMISER_PATIENCE = 3


class Trigger:
    """Decides when enough frames are UNRELIABLE for the monitor to act.

    The condition is ``patience`` UNRELIABLE frames in a row, or a fraction of a window
    of steps. If the signals run only at every k-th step, a frame counts in the window
    for all steps until the next frame. The window then covers the same time, and the
    trigger acts at about the same time.

    A frame without a verdict, or without the reading of a signal that has a threshold,
    neither ends nor extends a row, and the trigger does not act on it. The exception is
    a frame whose other signals make it UNRELIABLE.

    Parameters
    ----------
    patience : int
        Number of UNRELIABLE frames in a row.
    window, fraction : int, float, optional
        Instead of ``patience``: act if the last frame is UNRELIABLE and UNRELIABLE
        frames cover at least ``fraction`` of the last ``window`` steps.
    """

    def __init__(
        self,
        patience: int = 1,
        window: int | None = None,
        fraction: float | None = None,
    ) -> None:
        if patience != int(patience) or patience < 1:
            msg = (
                f"patience must be a whole number of frames, at least 1, got {patience}"
            )
            raise ValueError(msg)
        patience = int(patience)
        if (window is None) != (fraction is None):
            msg = (
                "window and fraction must be given together, got "
                f"window={window} and fraction={fraction}"
            )
            raise ValueError(msg)
        if window is not None and fraction is not None:
            if window < 1 or not 0 < fraction <= 1:
                msg = (
                    "window must be at least 1 and fraction in (0, 1], got "
                    f"window={window} and fraction={fraction}"
                )
                raise ValueError(msg)
            patience = max(1, math.ceil(fraction * window - 1e-9))
        self.needed, self.window = patience, window
        self._recent = _Recent(patience, window)
        self._step = -1

    @classmethod
    def chosen(
        cls,
        patience: int | None,
        window: int | None,
        fraction: float | None,
        timestep_fs: float | None,
    ) -> Trigger:
        """Return the trigger of these settings, or the `usual` one if all are None."""
        if patience is None and window is None and fraction is None:
            return cls.usual(timestep_fs)
        return cls(1 if patience is None else patience, window, fraction)

    @classmethod
    def usual(cls, timestep_fs: float | None) -> Trigger:
        """Return the default trigger for a time step in fs.

        Molecular dynamics: half of the last 50 fs. Optimisers (None): three frames in a
        row.
        """
        if timestep_fs is None:
            return cls(OPTIMISER_PATIENCE)
        return cls(window=max(1, round(WINDOW_FS / timestep_fs)), fraction=FRACTION)

    def __call__(self, assessment: Assessment | None, step: int | None = None) -> bool:
        """Record one frame; return whether to act now.

        Parameters
        ----------
        assessment : Assessment or None
            None if the frame was not judged.
        step : int, optional
            Step number of the frame; by default that of the last frame plus 1.
        """
        self._step = self._step + 1 if step is None else step
        if assessment is None:
            return False
        bad = assessment.level is Level.UNRELIABLE
        whole = not assessment.verdict.skipped
        if not (bad or whole):
            return False
        self._recent.append(self._step, float(bad), whole=whole)
        return bad and self._recent.peak() >= 1

    def replay(
        self, records: Iterable[Mapping[str, Any]], judged: Collection[str]
    ) -> None:
        """Record logged steps.

        Parameters
        ----------
        records : iterable of dict
            Records from `read_standing`.
        judged : collection of str
            Signals with thresholds in the policy.
        """
        for record in records:
            self._step = int(record["step"])
            bad = record.get("level") == Level.UNRELIABLE.name
            if record["event"] in {"warning", "rewind", "asked"}:
                self.clear()  # the trigger acted and then started anew
                continue
            given = record.get("level") is not None
            whole = given and not set(judged) - set(record["readings"])
            if bad or whole:
                self._recent.append(self._step, float(bad), whole=whole)

    def clear(self) -> None:
        """Forget all frames."""
        self._recent.clear()

    def peak(self, risks: Sequence[float | None]) -> float:
        """Return the largest limit on the risk for which the trigger acts in a run.

        Minus infinity if the run is too short.

        Parameters
        ----------
        risks : sequence of float or None, (steps,)
            Risk at each step; None if the signal did not run. NaN counts as infinite.
        """
        return float(max(self.peaks(range(len(risks)), risks), default=-math.inf))

    def peaks(
        self, steps: Iterable[int], risks: Sequence[float | None]
    ) -> NDArray[np.float64]:
        """Return, for each frame, the largest limit for which the trigger acts there.

        It does not clear its memory in between. Minus infinity where it does not act.

        Parameters
        ----------
        steps : iterable of int, (frames,)
            Step of each frame, increasing.
        risks : sequence of float or None, (frames,)
            As for `peak`.
        """
        recent = _Recent(self.needed, self.window)
        found = np.full(len(risks), -math.inf)
        for row, (step, risk) in enumerate(zip(steps, risks, strict=True)):
            if risk is not None:
                recent.append(step, math.inf if math.isnan(risk) else risk)
                found[row] = recent.peak()
        return found

    def words(self) -> str:
        """Return the condition in words."""
        if self.window is not None and self.window > self.needed:
            return f"{self.needed} of {self.window} frames UNRELIABLE"
        if self.needed == 1:
            return "UNRELIABLE"
        return f"UNRELIABLE for {self.needed} frames in a row"


class _Recent:
    """The recent frames that still count: first step and risk of each."""

    def __init__(self, needed: int, window: int | None) -> None:
        self.needed, self.window = needed, window
        streak = needed if window is None else None
        self._stood: deque[tuple[int, float]] = deque(maxlen=streak)
        self._now, self._held = (-1, -math.inf), -math.inf

    def append(self, step: int, risk: float, *, whole: bool = True) -> None:
        """Record a frame, and forget frames before the window.

        A frame counts for all steps until the next frame. If a signal is missing
        (``whole=False``), it counts for its own step only.
        """
        stood, self._now = self._stood, (step, risk)
        if self.window is None:
            stood.append((step, risk))
            return
        while stood and stood[-1][0] >= step:
            stood.pop()
        stood.append((step, risk))
        if whole:
            self._held = risk
        else:
            stood.append((step + 1, self._held))
        while len(stood) > 1 and stood[1][0] <= step + 1 - self.window:
            stood.popleft()

    def clear(self) -> None:
        """Forget all frames."""
        self._stood.clear()
        self._held = -math.inf

    def peak(self) -> float:
        """Return the largest risk that ``needed`` frames, or steps, have reached.

        The last frame must be one of them. Minus infinity if there are too few.
        """
        starts, risks = np.array(self._stood, dtype=float).T
        if self.window is None:
            return float(risks.min()) if len(risks) == self.needed else -math.inf
        step, risk = self._now
        ends = np.minimum(np.append(starts[1:], step + 1), step + 1)
        covered = ends - np.maximum(starts, step + 1 - self.window)
        order = np.argsort(-risks, kind="stable")
        reached = np.cumsum(np.maximum(covered, 0)[order]) >= self.needed
        if not reached[-1]:
            return -math.inf
        return float(min(risks[order[int(np.argmax(reached))]], risk))
