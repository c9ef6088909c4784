"""Limits on signals from several normal runs, for the trigger of a monitor."""

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


# Smallest length of a block of one run, in autocorrelation times and in windows.
_MEMORIES, _WINDOWS = 10.0, 4.0
_EVEN = 1.25  # runs whose lengths differ by less than this factor count as equal

Series = Sequence[float | None]


@dataclass(frozen=True, slots=True, eq=False)
class RunLimits:
    """Limits on signals from normal runs, and their guarantee for further runs.

    Attributes
    ----------
    thresholds : tuple of Threshold
        One per signal. The guarantee is for the UNRELIABLE limit. Half of the normal
        runs stayed below the SUSPECT limit, on which no monitor acts.
    alpha : float
        Largest share of further normal runs that is halted.
    confidence : float or None
        Confidence of the guarantee; None if it is an average over calibration runs.
    scores : array (runs,)
        For each run the largest limit on which the trigger would act, in units of the
        scales.
    frames : (shortest, longest)
        Numbers of frames of the runs.
    timestep_fs : float
        Time between frames in fs.
    blocks : bool
        Whether the runs are blocks of one run; the guarantee is then approximate.
    failing, caught : int
        Number of failing runs, and how many of them the limits would halt.
    trigger : str
        The condition of the trigger, in words.
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
        """Return a policy with these limits."""
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
        power = "no failing runs were given, so it is unknown how many it halts"
        if self.failing:
            power = f"it halts {self.caught} of {self.failing} failing runs"
        about = "approximately, from blocks of one run, " if self.blocks else ""
        return (
            f"UNRELIABLE: {limits}; {about}{how} at most {self.alpha:.3g} of further "
            f"normal runs are halted, if they have the same length ({length}), step "
            f"and thermostat ({self.trigger}; {len(self.scores)} runs); of runs k "
            f"times as long at most k times as many; {power}"
        )


def runs_needed(alpha: float, confidence: float | None = None) -> int:
    """Return the smallest number of normal runs for a limit.

    For a guarantee on average it is ``ceil(1 / alpha - 1)``: 9 for alpha = 0.1. With a
    confidence it is the smallest n with ``(1 - alpha)**n <= 1 - confidence``: at 95 %,
    29 for alpha = 0.1 and 59 for 0.05.
    """
    if confidence is None:
        return math.ceil(1 / alpha - 1 - 1e-9)
    return math.ceil(math.log(1 - confidence) / math.log(1 - alpha) - 1e-9)


def run_rank(runs: int, alpha: float, confidence: float | None = None) -> int:
    """Return the rank (from 1, the smallest) of the score that is the limit.

    For a guarantee on average it is ``ceil((n + 1)(1 - alpha))`` (Vovk et al. 2005).
    With a confidence it is the smallest r for which the share of all runs below the
    r-th score is at least 1 - alpha with this confidence. The share follows
    Beta(r, n - r + 1) (Wilks 1941, doi:10.1214/aoms/1177731788).

    Raises
    ------
    LabelError
        If there are too few runs; the message gives the number needed.
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
    """Return limits from normal runs.

    Parameters
    ----------
    runs : sequence of (frames,)
        For each frame the largest risk / scale of the signals; None if not read. NaN
        counts as infinite. A single run is cut into blocks.
    scales : dict
        Scale of each signal's risk, chosen without these runs.
    timestep_fs : float
        Time between frames in fs.
    alpha : float
        Largest share of further normal runs that may be halted, in (0, 1).
    confidence : float, optional
        Confidence of the guarantee, in (0, 1); by default it holds on average.
    failing : sequence of (frames,)
        Runs that should be halted. They do not change the limits; the result counts
        how many of them the limits halt.
    trigger : Trigger, optional
        By default the trigger of `Monitor` at this time step.

    Raises
    ------
    LabelError
        If there are too few runs, or if the limit is not finite.

    Warns
    -----
    LabelWarning
        If there is only one run, or if run lengths differ by more than 25 %.
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
            f"scores of the normal runs must be finite at the limit, got {odd} of "
            f"{len(scores)} that are NaN or infinite: their frames have no risk, or "
            f"they are shorter than the trigger needs ({acts.words()}); leave these "
            "runs out"
        )
        raise LabelError(msg)
    half = min(half, limit) if math.isfinite(half) else limit
    lengths = [len(run) for run in runs]
    if max(lengths) > _EVEN * min(lengths):
        text = (
            "normal runs should all have the length of the runs that you will watch, "
            f"got {min(lengths)} to {max(lengths)} frames: the limit holds for a run "
            "drawn from these lengths, not for the longest run"
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

    ``1/2 + sum_t rho(t)`` up to the first t of at least five times the sum (Sokal 1997,
    doi:10.1007/978-1-4899-0319-8_6). It is 1/2 for a constant series.
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
    """Cut one run into blocks much longer than its autocorrelation time."""
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
        f"limits should come from several runs, got one, which is cut into {count} "
        f"blocks of {len(run) // count} frames: the limit is approximate for further "
        "runs, and does not cover other start structures and velocities"
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
