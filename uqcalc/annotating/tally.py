"""Summary of an annotated trajectory: counts, failures and the worst frames."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ase import Atoms
from ase.symbols import Symbols

from uqcalc.annotating.copies import ASK_KEY, read_assessment, read_error
from uqcalc.annotating.frametext import held_numbers
from uqcalc.asking import asks_words
from uqcalc.records import Level


_MOST_INDICES = 20


@dataclass(frozen=True, slots=True)
class WorstFrame:
    """One frame in the summary.

    Attributes
    ----------
    index : int
        Index in the trajectory, from 0.
    formula : str
    level : Level
    risk : float
        Risk of the first signal (the probe, if there is one).
    unit : str
        Unit of ``risk``; empty for a probability.
    reliability : float or None
        P(reliable) of the probe; None without a probe.
    reason : str
        Why the frame is SUSPECT or UNRELIABLE; empty if it is RELIABLE.
    """

    index: int
    formula: str
    level: Level
    risk: float
    unit: str
    reliability: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class AnnotationSummary:
    """Counts and worst frames of an annotated file.

    Attributes
    ----------
    target : Path
    frames : int
        Number of frames in the file.
    resumed_from : int
        Number of frames that were in the file before.
    levels : mapping
        Level -> number of frames; failed frames count as UNRELIABLE.
    failed : tuple of (int, str)
        Index and reason of every frame that could not be evaluated.
    worst : tuple of WorstFrame
        Worst frames by level, then by risk; without failed frames.
    asks : mapping
        Rule by which to ask a reference (`uqcalc.asking.RULES`) -> number of frames.
    validity : str
        What the probes are validated on, and what not.
    left_out : mapping
        Entry of ``info`` or ``arrays`` that the file cannot hold -> indices of the
        frames that were written without it.
    select : str
        Condition on the frames that are written; empty if all are.
    passed : int
        Number of frames that were judged now and do not fulfil it.
    """

    target: Path
    frames: int
    resumed_from: int
    levels: Mapping[Level, int]
    failed: tuple[tuple[int, str], ...]
    worst: tuple[WorstFrame, ...]
    left_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    asks: Mapping[str, int] = field(default_factory=dict)
    validity: str = ""
    select: str = ""
    passed: int = 0

    def failures(self) -> dict[str, list[int]]:
        """Return the indices of failed frames for each reason."""
        grouped: dict[str, list[int]] = {}
        for index, reason in self.failed:
            grouped.setdefault(reason, []).append(index)
        return grouped

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {level.name}" for level, n in self.levels.items())
        lines = [f"Frames in {self.target}: {self.frames} ({counts})."]
        if self.frames and self.resumed_from == self.frames:
            lines.append("All frames were already in this file; it is unchanged.")
        elif self.resumed_from:
            lines.append(
                f"The first {self.resumed_from} frames were already in this file."
            )
        if self.select:
            left = f"; {self.passed} frames judged in this run do not and are left out"
            lines.append(f"These fulfil {self.select}{left if self.passed else ''}.")
        if self.failed:
            lines.append(f"Frames that could not be evaluated: {len(self.failed)}.")
        for reason, indices in self.failures().items():
            lines.append(f"  {_listed(indices)}: {reason}")
        if self.validity:
            lines.append(f"Probe: {self.validity}.")
        if self.asks:
            lines.append(asks_words(self.asks))
        if self.left_out:
            lines.append(
                "Entries left out of frames, because the format cannot hold them:"
            )
        for entry, where in self.left_out.items():
            lines.append(f"  {_listed([*where])}: {entry}")
        return "\n".join(lines)


class Tally:
    """Counts annotated frames one by one, in constant memory apart from failures.

    ``worst`` is the number of worst frames in the summary.
    """

    def __init__(self, worst: int) -> None:
        if worst < 0:
            msg = (
                "worst must be the number of frames to list, at least 0, got "
                f"{worst}; 0 lists none"
            )
            raise ValueError(msg)
        self.frames = 0
        self._most = worst
        self._levels: Counter[Level] = Counter()
        self._asks: Counter[str] = Counter()
        self._failed: list[tuple[int, str]] = []
        self._left_out: dict[str, list[int]] = {}
        self._heap: list[tuple[int, float, int, WorstFrame]] = []

    def add(
        self, frame: Atoms, left_out: tuple[str, ...] = (), *, index: int | None = None
    ) -> None:
        """Count the next annotated frame and the entries that its file lacks.

        ``index`` is its number in the source, by default the number of frames before.
        """
        index = self.frames if index is None else index
        self.frames += 1
        for entry in left_out:
            self._left_out.setdefault(entry, []).append(index)
        seen = _seen(index, frame)
        self._levels[seen.level] += 1
        if (rule := frame.info.get(ASK_KEY)) is not None:
            self._asks[str(rule)] += 1
        error = read_error(frame)
        if error is not None:
            self._failed.append((index, error))
            return
        risk = math.inf if math.isnan(seen.risk) else seen.risk
        heapq.heappush(self._heap, (seen.level, risk, -index, seen))
        if len(self._heap) > self._most:
            heapq.heappop(self._heap)

    def summary(self, target: Path, resumed_from: int) -> AnnotationSummary:
        """Return the summary of all frames so far."""
        return AnnotationSummary(
            target,
            self.frames,
            resumed_from,
            {level: self._levels[level] for level in Level},
            tuple(self._failed),
            tuple(row[-1] for row in sorted(self._heap, reverse=True)),
            {entry: tuple(indices) for entry, indices in self._left_out.items()},
            dict(self._asks),
        )


def _seen(index: int, frame: Atoms) -> WorstFrame:
    assessment = read_assessment(frame)
    first = assessment.readings[0] if assessment.readings else None
    reliability = frame.info.get("probe_reliability")
    return WorstFrame(
        index,
        Symbols(held_numbers(frame.numbers)).get_chemical_formula(),
        assessment.level,
        -math.inf if first is None else first.risk,  # no signal ran
        "" if first is None else first.unit,
        None if reliability is None else float(reliability),
        "; ".join(assessment.verdict.reasons),
    )


def _listed(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:_MOST_INDICES]))
    more = len(indices) - _MOST_INDICES
    return f"{shown} and {more} more" if more > 0 else shown
