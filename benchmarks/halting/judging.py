"""Time of the failure of a run, time of the halt, and the outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, chi2

from halting.runs import FRAME_FS


TOLERANCE = 0.2  # eV/Å, RMS over the force components of the structure
SUSTAINED_FS = 25.0
BEFORE_FS, AFTER_FS = 500.0, 100.0


@dataclass(frozen=True)
class Rule:
    """Halt when `needed` of the last `window` frames exceed `limit`."""

    limit: float
    needed: int
    window: int


@dataclass(frozen=True)
class Trace:
    """Risk of one detector along a run, and the frame at which the run fails."""

    molecule: str
    kind: str
    risk: np.ndarray
    onset: int | None


@dataclass(frozen=True)
class Outcome:
    """Kind of a halt: right, early, late, missed, or none (in a run without a failure).

    `lead_fs` is the time from the halt to the failure. `watched_ps` is the time until
    the halt, at most until 500 fs before the failure.
    """

    name: str
    lead_fs: float
    watched_ps: float


def find_onset(error: np.ndarray) -> int | None:
    """Return the first frame of the first sustained stretch above the tolerance.

    A frame without a reference neither ends nor lengthens a stretch.
    """
    needed, streak, first = round(SUSTAINED_FS / FRAME_FS), 0, 0
    for index, value in enumerate(error):
        if np.isnan(value):
            continue
        if value <= TOLERANCE:
            streak = 0
            continue
        first = index if streak == 0 else first
        streak += 1
        if streak == needed:
            return first
    return None


def find_halt(risk: np.ndarray, rule: Rule) -> int | None:
    """Return the frame at which the rule halts; NaN counts as above the limit."""
    bad = ~(risk <= rule.limit)
    total = np.cumsum(bad)
    before = np.concatenate([np.zeros(rule.window, dtype=int), total])[: len(total)]
    acts = total - before >= rule.needed
    return int(np.argmax(acts)) if acts.any() else None


def judge(trace: Trace, rule: Rule) -> Outcome:
    """Compare the halt with the failure."""
    halt, onset = find_halt(trace.risk, rule), trace.onset
    end = len(trace.risk)
    quiet = end if onset is None else max(0, round(onset - BEFORE_FS / FRAME_FS))
    watched = min(quiet, end if halt is None else halt + 1) * FRAME_FS / 1000
    if onset is None:
        return Outcome("none" if halt is None else "false", np.nan, watched)
    if halt is None:
        return Outcome("missed", np.nan, watched)
    lead = (onset - halt) * FRAME_FS
    if lead > BEFORE_FS:
        return Outcome("early", lead, watched)
    return Outcome("right" if lead >= -AFTER_FS else "late", lead, watched)


@dataclass(frozen=True)
class Tally:
    """All outcomes of one detector under one rule."""

    heated: list[Outcome]
    steady: list[Outcome]

    def share(self, *names: str) -> float:
        """Return the share of the heated runs that fail with these outcomes."""
        failing = [o for o in self.heated if o.name not in {"none", "false"}]
        return sum(o.name in names for o in failing) / max(len(failing), 1)

    @property
    def false_halts(self) -> int:
        """Number of halts of steady runs without a failure, or long before it."""
        return sum(o.name in {"false", "early"} for o in self.steady)

    @property
    def watched_ps(self) -> float:
        """Time over which a halt of the steady runs would be false."""
        return sum(o.watched_ps for o in self.steady)

    @property
    def false_per_ps(self) -> float:
        """Rate of false halts."""
        return self.false_halts / max(self.watched_ps, 1e-9)


def tally(traces: Sequence[Trace], rule: Rule) -> Tally:
    """Judge all runs."""
    return Tally(
        [judge(t, rule) for t in traces if t.kind == "heated"],
        [judge(t, rule) for t in traces if t.kind == "steady"],
    )


def limits(traces: Sequence[Trace], count: int = 400) -> np.ndarray:
    """Return candidate limits: quantiles of the risk over all frames."""
    risks = np.concatenate([t.risk for t in traces])
    return np.unique(np.nanquantile(risks, np.linspace(0, 1, count)))


def best_limit(
    traces: Sequence[Trace],
    needed: int,
    window: int,
    most_false: float,
    most_early: float = 1.0,
) -> tuple[Rule, Tally]:
    """Return the limit with most right halts at an accepted rate of false ones.

    If several are equally good, it is the middle one.
    """
    rules = [Rule(float(x), needed, window) for x in limits(traces)]
    tallies = [tally(traces, rule) for rule in rules]
    allowed = [
        i
        for i, t in enumerate(tallies)
        if t.false_per_ps <= most_false and t.share("early") <= most_early
    ]
    top = max(tallies[i].share("right") for i in allowed)
    best = [i for i in allowed if tallies[i].share("right") == top]
    middle = best[len(best) // 2]
    return rules[middle], tallies[middle]


def proportion(outcomes: Sequence[Outcome], *names: str) -> tuple[float, float, float]:
    """Return a share of the failing runs with its exact 95 % interval.

    Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    failing = [o for o in outcomes if o.name not in {"none", "false"}]
    hits = sum(o.name in names for o in failing)
    interval = binomtest(hits, len(failing)).proportion_ci(method="exact")
    return hits / len(failing), float(interval.low), float(interval.high)


def by_molecule(
    traces: Sequence[Trace],
    value: Callable[[Sequence[Trace]], float],
    draws: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """Return a 95 % interval of `value` by drawing molecules with repetition.

    Runs of one molecule are correlated, so drawing runs would give too narrow an
    interval.
    """
    names = sorted({t.molecule for t in traces})
    members = {name: [t for t in traces if t.molecule == name] for name in names}
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = rng.choice(names, len(names))
        values.append(value([t for name in drawn for t in members[name]]))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def rate(count: int, exposure: float) -> tuple[float, float, float]:
    """Return a Poisson rate with its exact 95 % interval (Garwood 1936)."""
    low = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    high = chi2.ppf(0.975, 2 * count + 2) / 2
    return count / exposure, float(low / exposure), float(high / exposure)
