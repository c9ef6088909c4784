"""The five outcomes of a bad input, counted by kind."""

from __future__ import annotations

import signal
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uqcalc
from uqcalc.errors import UqcalcError


SAME, CLEAR, SILENT, FOREIGN, STUCK = (
    "same answer",
    "clear error",
    "other answer in silence",
    "foreign traceback",
    "memory or hang",
)
OUTCOMES = (SAME, CLEAR, SILENT, FOREIGN, STUCK)
PACKAGE = Path(uqcalc.__file__).parent


class Hang(Exception):
    """A call took too long."""


class Tally:
    """Outcomes by kind, and an example of each bad outcome."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[str, str] = {}

    def add(self, kind: str, outcome: str, example: str = "") -> None:
        """Count one case."""
        self.counts[kind][outcome] += 1
        if outcome in {SILENT, FOREIGN, STUCK}:
            self.examples.setdefault(f"{kind}: {outcome}", example)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each kind."""
        return [
            {"kind": kind, "tried": sum(found.values())}
            | {outcome: found[outcome] for outcome in OUTCOMES}
            for kind, found in self.counts.items()
        ]

    def total(self, outcome: str) -> int:
        """Return how many cases of all kinds had this outcome."""
        return sum(found[outcome] for found in self.counts.values())


def attempt(
    call: Callable[[], Any], same: Callable[[Any], bool], seconds: float = 60.0
) -> tuple[str, str]:
    """Return the outcome of ``call()``, and the exception or None.

    ``same`` returns whether the result is right. ``seconds=0`` sets no time limit.
    """
    try:
        with _limited(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = call()
    except (Hang, MemoryError) as error:
        return STUCK, repr(error)
    except UqcalcError as error:
        return CLEAR, str(error)
    except Exception as error:  # noqa: BLE001  (these are counted)
        return (CLEAR if _ours(error) else FOREIGN), _last_lines(error)
    return (SAME, "") if same(answer) else (SILENT, repr(answer)[:300])


def _ours(error: BaseException) -> bool:
    """Return whether the package itself raised a ValueError or TypeError."""
    frames = traceback.extract_tb(error.__traceback__)
    raised = isinstance(error, ValueError | TypeError) and bool(frames)
    return raised and PACKAGE in Path(frames[-1].filename).parents


def _last_lines(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:200]} ({places})"


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    if seconds == 0:  # only the first thread can set an alarm
        yield
        return

    def stop(*_: object) -> None:
        raise Hang(f"longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
