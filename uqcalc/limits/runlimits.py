"""Limits from several runs that are called normal: what a trigger would act on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from uqcalc.errors import LabelError, LabelWarning
from uqcalc.policy import Policy, Threshold
from uqcalc.watching.trigger import WINDOW_FS, Trigger


# One run is cut into blocks of so many times its memory, and so many windows.
_MEMORIES, _WINDOWS = 10.0, 4.0
_EVEN = 1.25  # lengths of runs within this factor count as alike

Series = Sequence[float | None]


@dataclass(frozen=True, slots=True, eq=False)
class RunLimits:
    """Limits on signals, found on normal runs, and what holds of further ones.

    Attributes
    ----------
    thresholds : tuple of Threshold
        One a signal. UNRELIABLE is the limit that the guarantee is about; SUSPECT, on
        which no monitor acts, is what half of the normal runs stayed below.
    alpha : float
        Share of further normal runs that may be halted.
    confidence : float or None
        With which it holds; None where it holds on average over calibration runs.
    scores : array (runs,)
        The largest value that the trigger would act on in each run, in units of the
        scales.
    frames : (shortest, longest)
        Frames of a run.
    timestep_fs : float
        Between frames.
    blocks : bool
        Whether the runs are blocks of one: what holds is approximate then.
    failing, caught : int
        Failing runs that were given, and those of them that would be halted.
    """

    thresholds: tuple[Threshold, ...]
    alpha: float
    confidence: float | None
    scores: NDArray[np.float64]
    frames: tuple[int, int]
    timestep_fs: float
    blocks: bool = False
    failing: int = 0
    caught: int = 0
    trigger: str = ""

    def policy(self) -> Policy:
        """Return the policy of these limits."""
        return Policy(self.thresholds)

    def __str__(self) -> str:
        limits = ", ".join(
            f"{t.signal} above {t.unreliable:.4g}" for t in self.thresholds
        )
        how = "on average over draws of the calibration runs"
        if self.confidence is not None:
            how = f"with {self.confidence:.0%} confidence"
        low, high = (count * self.timestep_fs for count in self.frames)
        length = f"{low:.4g} fs" if low == high else f"{low:.4g} to {high:.4g} fs"
        power = "no failing runs were given: whether it ever fires nobody knows"
        if self.failing:
            power = f"it halts {self.caught} of {self.failing} failing runs"
        about = "approximately, from blocks of one run, " if self.blocks else ""
        return (
            f"UNRELIABLE: {limits}; {about}{how} at most {self.alpha:.3g} of further "
            f"normal runs of that length ({length}), step and thermostat are halted "
            f"({self.trigger}; {len(self.scores)} runs), of runs k times as long at "
            f"most k times as many; {power}"
        )


def runs_needed(alpha: float, confidence: float | None = None) -> int:
    """Return how many normal runs a limit takes at least.

    On average ``ceil(1 / alpha - 1)``: 9 for 0.1; with confidence the smallest n with
    ``(1 - alpha)**n <= 1 - confidence``: 29 for 0.1 and 59 for 0.05 at 95 %.
    """
    if confidence is None:
        return math.ceil(1 / alpha - 1 - 1e-9)
    return math.ceil(math.log(1 - confidence) / math.log(1 - alpha) - 1e-9)


def run_rank(runs: int, alpha: float, confidence: float | None = None) -> int:
    """Return which score, counted from the smallest, is the limit.

    On average the ``ceil((n + 1)(1 - alpha))``-th (Vovk et al. 2005); with confidence
    the smallest r for which the share of runs below the r-th is at least 1 - alpha with
    that probability: it is Beta(r, n - r + 1) (Wilks 1941,
    doi:10.1214/aoms/1177731788).

    Raises
    ------
    LabelError
        If there are too few runs; it says how many it takes.
    """
    fewest = runs_needed(alpha, confidence)
    if runs < fewest:
        how = "on average" if confidence is None else f"with confidence {confidence}"
        msg = (
            f"normal runs must be at least {fewest} for a limit that halts at most "
            f"{alpha} of further ones {how}, got {runs}; give more, or raise alpha"
        )
        raise LabelError(msg)
    if confidence is None:
        return math.ceil((runs + 1) * (1 - alpha) - 1e-9)
    ranks = np.arange(1, runs + 1)
    exceeds = special.betaincc(ranks, runs - ranks + 1, 1 - alpha)
    return int(ranks[int(np.argmax(exceeds >= confidence - 1e-12))])


def limits_of_runs(
    runs: Sequence[Series],
    scales: dict[str, float],
    *,
    timestep_fs: float,
    alpha: float = 0.1,
    confidence: float | None = None,
    failing: Sequence[Series] = (),
    trigger: Trigger | None = None,
) -> RunLimits:
    """Return the limits that normal runs give.

    Parameters
    ----------
    runs : sequence of (frames,)
        Of each frame the largest risk of the signals, each over its scale; None where
        it was not read, NaN counts as infinite. Of a single run blocks are taken.
    scales : dict
        Of each signal, fixed beforehand.
    timestep_fs : float
        Between frames.
    failing : sequence of (frames,)
        Runs that ought to be halted, for the power alone.
    trigger : Trigger, optional
        By default the one of `Monitor` at this time step.

    Raises
    ------
    LabelError
        If there are too few runs, or the limit falls on runs without a finite score.
    """
    _check(alpha, confidence, timestep_fs, scales)
    acts = Trigger.usual(timestep_fs) if trigger is None else trigger
    blocks = len(runs) == 1
    if blocks:
        runs = _blocks(runs[0], timestep_fs, runs_needed(alpha, confidence))
    scores = np.array([acts.peak(run) for run in runs])
    limit, half = (
        float(np.sort(scores)[rank - 1])
        for rank in (run_rank(len(runs), alpha, confidence), (len(runs) + 1) // 2)
    )
    if not math.isfinite(limit):
        odd = int(np.sum(~np.isfinite(scores)))
        msg = (
            f"the limit must fall on a run with a finite score, got {odd} of "
            f"{len(scores)} without: frames without a risk, or runs shorter than "
            f"what the trigger waits for ({acts.words()}); leave them out"
        )
        raise LabelError(msg)
    half = min(half, limit) if math.isfinite(half) else limit
    lengths = [len(run) for run in runs]
    if max(lengths) > _EVEN * min(lengths):
        text = (
            "normal runs should be of one length, which is that of the further runs "
            f"that the limit is for, got {min(lengths)} to {max(lengths)} frames: it "
            "holds for a run drawn like these, not for the longest"
        )
        warnings.warn(text, LabelWarning, stacklevel=3)
    return RunLimits(
        tuple(Threshold(s, half * by, limit * by) for s, by in scales.items()),
        alpha,
        confidence,
        scores,
        (min(lengths), max(lengths)),
        timestep_fs,
        blocks,
        len(failing),
        sum(acts.peak(run) > limit for run in failing),
        acts.words(),
    )


def memory(series: ArrayLike) -> float:
    """Return the integrated autocorrelation time of a series, in frames.

    ``1/2 + sum_t rho(t)`` up to the first t that is more than five times as long as
    the sum so far (Sokal 1997, doi:10.1007/978-1-4899-0319-8_6).
    """
    values = np.asarray(series, dtype=float)
    away = values - values.mean()
    count = len(values)
    if count < 2 or not away.any():
        return 0.5
    spectrum = np.abs(np.fft.rfft(away, 2 * count)) ** 2
    rho = np.fft.irfft(spectrum)[:count]
    times = 0.5 + np.cumsum(rho[1:] / rho[0])
    stops = np.flatnonzero(np.arange(1, count) >= 5 * times)
    return float(max(0.5, times[stops[0]] if len(stops) else times.max()))


def _blocks(run: Series, timestep_fs: float, fewest: int) -> list[Series]:
    """Cut one run into blocks that are longer than what it remembers."""
    read = np.array([x for x in run if x is not None], dtype=float)
    finite = read[np.isfinite(read)]
    every = len(run) / max(len(read), 1)
    lasts = memory(finite) * every
    length = max(_MEMORIES * lasts, _WINDOWS * WINDOW_FS / timestep_fs)
    count = int(len(run) // length)
    if count < fewest:
        msg = (
            f"one run must be at least {fewest} blocks of {math.ceil(length)} frames "
            f"long (its signal remembers {lasts:.0f} frames), got {len(run)} frames; "
            "give several runs, or a longer one"
        )
        raise LabelError(msg)
    text = (
        f"limits should come from several runs, got one, cut into {count} blocks of "
        f"{len(run) // count} frames: what it says of further runs is approximate, "
        "and of other starts and velocities it knows nothing"
    )
    warnings.warn(text, LabelWarning, stacklevel=4)
    size = len(run) // count
    return [run[k * size : (k + 1) * size] for k in range(count)]


def _check(
    alpha: float,
    confidence: float | None,
    timestep_fs: float,
    scales: dict[str, float],
) -> None:
    sure = confidence is None or 0 < confidence < 1
    positive = timestep_fs > 0 and all(scale > 0 for scale in scales.values())
    if not (0 < alpha < 1 and sure and positive and scales):
        msg = (
            "alpha and confidence must lie between 0 and 1, timestep_fs and the scale "
            f"of each signal be positive, got {alpha}, {confidence}, {timestep_fs} and "
            f"{scales}"
        )
        raise ValueError(msg)
