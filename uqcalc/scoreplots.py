"""Pictures of scores: whether a probability is right, and what it buys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from uqcalc import scores
from uqcalc.canvas import COLOURS, INK, QUIET, axes_of
from uqcalc.records import Level


if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHED = (0, (4, 3))
_TALLEST = 0.16  # of the bars that show how many there are in a bin


def plot_reliability_diagram(
    reliable: ArrayLike,
    probability: ArrayLike,
    ax: Axes | None = None,
    bins: int = 10,
    *,
    noise_floor: float | None = None,
) -> Axes:
    """Draw observed frequency against predicted P(reliable), with counts.

    Error bars are 95 % Wilson intervals, as if structures were independent of each
    other; grey bars and the numbers above are the structures in each bin. The noise
    floor in the title is the one given, or that of independent structures.
    """
    axes = axes_of(ax)
    found = scores.reliability_bins(reliable, probability, bins)
    filled = np.flatnonzero(found.counts)
    counts, observed = found.counts[filled], found.observed[filled]
    low, high = scores.wilson_interval(observed * counts, counts)
    heights = _TALLEST * counts / counts.max()
    centres = (filled + 0.5) / bins
    axes.bar(centres, heights, width=0.9 / bins, color=QUIET, alpha=0.3, lw=0)
    for x, count in zip(centres, counts, strict=True):
        axes.text(x, 1.05, str(count), ha="center", fontsize=7, color=QUIET)
    axes.plot([0, 1], [0, 1], color=QUIET, lw=0.8, ls=_DASHED)
    axes.errorbar(
        found.predicted[filled],
        observed,
        yerr=np.clip([observed - low, high - observed], 0, None),
        fmt="o-",
        color=COLOURS[Level.RELIABLE],
        lw=1,
        ms=4,
        elinewidth=1,
        capsize=2,
    )
    ece = scores.expected_calibration_error(reliable, probability, bins)
    floor = noise_floor
    if floor is None:
        floor = scores.calibration_noise_floor(probability, bins)
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1.11),
        yticks=np.linspace(0, 1, 6),
        xlabel="predicted P(reliable)",
        ylabel="observed frequency",
        title=f"ECE {ece:.3f} (noise floor {floor:.3f})",
    )
    return axes


def plot_risk_coverage(
    error: ArrayLike, risks: dict[str, Any], unit: str, ax: Axes | None = None
) -> Axes:
    """Draw mean true error of the kept structures against coverage, per risk."""
    axes = axes_of(ax)
    for name, risk in (risks | {"perfect": np.asarray(error)}).items():
        coverage, kept = scores.risk_coverage(error, risk)
        (line,) = axes.plot(coverage, kept, lw=1.2, label=name)
        if name == "perfect":
            line.set(color=QUIET, linestyle=_DASHED)
    axes.set(xlim=(0, 1), xlabel="coverage", ylabel=f"mean error of the kept [{unit}]")
    axes.legend(frameon=False)
    return axes


def plot_errors(
    values: ArrayLike,
    errors: ArrayLike,
    boundary: float,
    unit: str,
    ax: Axes | None = None,
    *,
    outside: ArrayLike | None = None,
) -> Axes:
    """Draw true errors, on a logarithmic axis, against what was said of each.

    Parameters
    ----------
    values, errors : arrays (structures,)
        Such as P(reliable), and the errors in ``unit``. Errors beyond ``boundary`` are
        red.
    outside : boolean array (structures,), optional
        Drawn as crosses: structures outside the scope of a probe.
    """
    axes = axes_of(ax)
    x, y = np.asarray(values, dtype=float), np.asarray(errors, dtype=float)
    away = np.zeros(len(x), bool) if outside is None else np.asarray(outside, bool)
    # nothing is below zero, and a logarithm has no place for it
    y = np.maximum(y, 1e-3 * boundary)
    for wrong, level in ((False, Level.RELIABLE), (True, Level.UNRELIABLE)):
        for crossed, marker in ((False, "."), (True, "x")):
            rows = ((y > boundary) == wrong) & (away == crossed)
            axes.scatter(
                x[rows],
                y[rows],
                s=14,
                marker=marker,
                color=COLOURS[level],
                alpha=0.7,
                linewidths=0.8,
                rasterized=True,  # thousands of points would swell an SVG
            )
    axes.axhline(boundary, color=INK, lw=0.8, ls=_DASHED)
    axes.set(yscale="log", ylabel=f"true error [{unit}]")
    plain_decades(axes.yaxis)
    return axes


def plain_decades(axis: Any) -> None:
    """Write 0.1, 0.2, 0.5 on a logarithmic axis; over many decades these alone."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_data_interval()
    wide = not 0 < high <= 100 * low
    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=7))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def plot_path_weights(weights: Mapping[str, float], ax: Axes | None = None) -> Axes:
    """Draw the share that each path of a probe has in its verdicts."""
    axes = axes_of(ax)
    values = np.array(list(weights.values()), dtype=float)
    shares = values / values.sum()
    places = np.arange(len(shares))[::-1]
    axes.barh(places, shares, height=0.55, color=COLOURS[Level.RELIABLE])
    for place, share in zip(places, shares, strict=True):
        axes.text(share + 0.015, place, f"{share:.0%}", va="center", fontsize=9)
    axes.set(
        xlim=(0, 1.12),
        yticks=places,
        yticklabels=list(weights),
        xlabel="share of the spread in the score",
    )
    return axes
