"""One monitored step, as the history keeps it and the log writes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from uqcalc.records import Level


@dataclass(frozen=True, slots=True)
class Event:
    """One monitored step, light enough to keep all of a long run in memory.

    ``time_fs`` and ``temperature_K`` are None for optimisers; ``energy_eV`` is the
    potential energy; ``readings`` maps each signal to its risk, ``values`` to the
    scalars of ``calc.results``; ``worst_atoms`` are indices, worst first.
    """

    step: int
    time_fs: float | None
    temperature_K: float | None
    energy_eV: float
    level: Level
    readings: dict[str, float]
    values: dict[str, float]
    reasons: tuple[str, ...]
    worst_atoms: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record for the event log."""
        return asdict(self) | {"event": "step", "level": self.level.name}


def count_levels(history: Iterable[Event]) -> dict[Level, int]:
    """Return how many of the steps had each level."""
    seen = Counter(event.level for event in history)
    return {level: seen[level] for level in Level}
