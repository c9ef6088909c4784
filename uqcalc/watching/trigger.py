"""When enough frames are UNRELIABLE to act: a streak, or a share of a window."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from uqcalc.records import Assessment, Level


# Found on molecules heated until they failed: benchmarks/halts_when_it_should.py.
WINDOW_FS, FRACTION = 50.0, 0.5
# Optimisers take few steps, each of them a long way.
OPTIMISER_PATIENCE = 3


class Trigger:
    """When enough frames are UNRELIABLE to act: a streak, or a share of a window.

    A frame on which a judged signal did not run neither ends nor lengthens a
    streak, unless the signals that did run say UNRELIABLE.
    """

    def __init__(
        self,
        patience: int = 1,
        window: int | None = None,
        fraction: float | None = None,
    ) -> None:
        if patience != int(patience) or patience < 1:
            msg = f"patience must be a whole number of frames from 1, got {patience}"
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
        # A streak is a window that is as long as what it takes.
        self.needed, self.window = patience, window or patience
        self._recent: deque[bool] = deque(maxlen=self.window)

    @classmethod
    def usual(cls, timestep_fs: float | None) -> Trigger:
        """Return what users get by default.

        Molecular dynamics: half of the frames of the last 50 fs; without a time step
        (optimisers): three in a row.
        """
        if timestep_fs is None:
            return cls(OPTIMISER_PATIENCE)
        return cls(window=max(1, round(WINDOW_FS / timestep_fs)), fraction=FRACTION)

    def __call__(self, assessment: Assessment) -> bool:
        """Take note of one frame; say whether to act now."""
        bad = assessment.level is Level.UNRELIABLE
        if assessment.verdict.skipped and not bad:
            return False
        self._recent.append(bad)
        return sum(self._recent) >= self.needed

    def replay(
        self, records: Iterable[Mapping[str, Any]], judged: Collection[str]
    ) -> None:
        """Take note of logged steps as if they were seen now.

        Parameters
        ----------
        records : iterable of dict
            As `read_standing` gives them.
        judged : collection of str
            Signals that the policy has thresholds for.
        """
        for record in records:
            bad = record.get("level") == Level.UNRELIABLE.name
            if record["event"] == "warning":
                self.clear()  # it acted, and has waited for a new streak since
            elif bad or not set(judged) - set(record["readings"]):
                self._recent.append(bad)

    def clear(self) -> None:
        """Forget the frames so far."""
        self._recent.clear()

    def words(self) -> str:
        """Say what was waited for."""
        if self.window > self.needed:
            return f"{self.needed} of {self.window} frames UNRELIABLE"
        if self.needed == 1:
            return "UNRELIABLE"
        return f"UNRELIABLE for {self.needed} frames in a row"
