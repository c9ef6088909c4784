"""The history of a monitor: the last events, and counts of all events."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import overload

from uqcalc.records import Event, Level


# 0.7 to 1.8 kB per event: at most 18 MB.
KEPT = 10_000


class History(Sequence[Event]):
    """A sequence of the last events, with counts of all events.

    Parameters
    ----------
    kept : int or None
        Largest number of events in memory; None keeps all, without a memory limit.

    Attributes
    ----------
    seen : int
        Number of all events.
    first : Event or None
        The first of all events.
    asks : Counter of str
        Rule of `uqcalc.asking.RULES` -> number of all events that meet it.
    """

    def __init__(self, kept: int | None = KEPT) -> None:
        given: object = kept
        whole = isinstance(given, int) and not isinstance(given, bool) and given > 0
        if kept is not None and not whole:
            msg = (
                "history must be the number of events to keep, at least 1, or None "
                f"for all, got {kept!r}"
            )
            raise ValueError(msg)
        self._events: deque[Event] = deque(maxlen=kept)
        self._levels: Counter[Level | None] = Counter()
        self.seen = 0
        self.first: Event | None = None
        self.asks: Counter[str] = Counter()

    def append(self, event: Event) -> None:
        """Count an event and store it; a full history drops its oldest event."""
        self._events.append(event)
        self._levels[event.level] += 1
        self.seen += 1
        if event.ask:
            self.asks[event.ask] += 1
        self.first = self.first or event

    def counts(self) -> dict[Level, int]:
        """Return the number of all events with each level."""
        return {level: self._levels[level] for level in Level}

    @property
    def unjudged(self) -> int:
        """Number of all events without a level."""
        return self._levels[None]

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        """Return one of the stored events, or a list of them."""
        if isinstance(index, slice):
            return list(self._events)[index]
        return self._events[index]

    def __len__(self) -> int:
        """Return the number of stored events."""
        return len(self._events)
