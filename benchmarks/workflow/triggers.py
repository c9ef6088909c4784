"""Conditions for a halt along a run: windows, filters of the logit of P, sums.

Each is causal, keeps a bounded memory, and is written for any time between frames. It
gets a risk per frame and its limit, and returns at which frames it acts. NaN counts as
above the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.signal import lfilter


WINDOWS = (
    (50, 0.5), (25, 0.5), (25, 1.0), (50, 0.7), (100, 0.5), (100, 0.6), (150, 0.5),
)  # fmt: skip
MOST = 12.0  # largest logit: limits the effect of a single frame

Acts = Callable[[np.ndarray, float], np.ndarray]


@dataclass(frozen=True)
class Condition:
    """A named condition; ``kind`` is window, filter, sum or streak."""

    name: str
    kind: str
    acts: Acts


def window(
    risk: np.ndarray, limit: float, *, spacing_fs: float, length_fs: float, share: float
) -> np.ndarray:
    """Act if the frame and ``share`` of the last ``length_fs`` are above the limit."""
    bad = ~(risk <= limit)
    size = max(1, round(length_fs / spacing_fs))
    needed = max(1, math.ceil(share * size - 1e-9))
    total = np.cumsum(bad)
    before = np.concatenate([np.zeros(size, dtype=int), total])[: len(total)]
    return bad & (total - before >= needed)


def logit(risk: np.ndarray) -> np.ndarray:
    """Return the logit of a probability, bounded; the bound for NaN."""
    p = np.clip(np.nan_to_num(risk, nan=1.0), 1e-9, 1 - 1e-9)
    return np.clip(np.log(p / (1 - p)), -MOST, MOST)


def filtered(
    risk: np.ndarray, limit: float, *, spacing_fs: float, memory_fs: float
) -> np.ndarray:
    """Act if the frame and the exponentially weighted mean logit are above the limit.

    It is the steady state of a Kalman filter for an error that is a random walk with
    white noise; ``memory_fs`` is the time in which a weight falls to 1/e. A frame at
    the bound (NaN) acts at once.
    """
    values = logit(risk)
    keep = math.exp(-spacing_fs / memory_fs)
    start = [keep * values[0]]
    mean, _ = lfilter([1 - keep], [1, -keep], values, zi=start)
    above = mean > float(logit(np.array([limit]))[0])
    return (above & ~(risk <= limit)) | np.isnan(risk)


def two_scales(
    risk: np.ndarray,
    limit: float,
    *,
    spacing_fs: float,
    fast_fs: float,
    slow_fs: float,
) -> np.ndarray:
    """Act if the fast and the slow mean of the logit are above that of the limit."""
    options = {"spacing_fs": spacing_fs}
    return filtered(risk, limit, memory_fs=fast_fs, **options) & filtered(
        risk, limit, memory_fs=slow_fs, **options
    )


def summed(
    risk: np.ndarray, limit: float, *, spacing_fs: float, memory_fs: float, most: float
) -> np.ndarray:
    """Act if the cumulative sum of the log odds above the limit reaches ``most``.

    Page's CUSUM (1954, doi:10.1093/biomet/41.1-2.100); a frame counts as
    ``spacing_fs / memory_fs`` independent ones.
    """
    evidence = (logit(risk) - float(logit(np.array([limit]))[0])) * spacing_fs
    total, acts = 0.0, np.zeros(len(risk), dtype=bool)
    for index, value in enumerate(evidence / memory_fs):
        total = max(0.0, total + value)
        acts[index] = total >= most
    return acts | np.isnan(risk)


def conditions(spacing_fs: float) -> list[Condition]:
    """Return all conditions; the first is the monitor's default."""
    found = []
    for length, share in WINDOWS:
        acts = partial(window, spacing_fs=spacing_fs, length_fs=length, share=share)
        found.append(Condition(f"{share:g} of the last {length} fs", "window", acts))
    found += [
        Condition(
            f"mean of the logit, memory {memory} fs",
            "filter",
            partial(filtered, spacing_fs=spacing_fs, memory_fs=memory),
        )
        for memory in (5, 10, 20, 50, 100)
    ]
    found += [
        Condition(
            f"means of the logit, memory {fast} and {slow} fs",
            "filter",
            partial(two_scales, spacing_fs=spacing_fs, fast_fs=fast, slow_fs=slow),
        )
        for fast, slow in ((5, 50), (10, 100))
    ]
    found += [
        Condition(
            f"sum of the log odds, memory {memory} fs, {most:g}",
            "sum",
            partial(summed, spacing_fs=spacing_fs, memory_fs=memory, most=most),
        )
        for memory in (20, 50)
        for most in (0.5, 1.0, 2.0)
    ]
    return found
