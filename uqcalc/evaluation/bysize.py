"""How a probe judges small and large errors, as in the PROBE paper (arXiv:2605.00640).

Histograms of the true errors, the share of right answers against the size of the error,
and the table of two-sided cutoffs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqcalc.plotting import COLOURS, INK, QUIET, axes_of
from uqcalc.records import Level
from uqcalc.statistics import scores


if TYPE_CHECKING:
    from matplotlib.axes import Axes

TWO_SIDED_COLUMNS = ("sure at least", "decided", "right among the decided")
SURE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_BINS = 24
_GROUPS = 10
_DASHED = (0, (4, 3))


def plot_error_histogram(
    errors: ArrayLike,
    probability: ArrayLike,
    cutoffs: tuple[float, float],
    boundary: float,
    unit: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw histograms of the true errors on a logarithmic axis, stacked by level.

    Parameters
    ----------
    errors, probability : arrays (structures,)
        Errors in ``unit``, and P(reliable). NaN in P is UNRELIABLE.
    cutoffs : (float, float)
        SUSPECT below the first, UNRELIABLE below the second.
    boundary : float
        In ``unit``; a dashed line.
    """
    from uqcalc.evaluation.panels import plain_decades

    axes = axes_of(ax)
    e, p = np.asarray(errors, dtype=float), np.asarray(probability, dtype=float)
    shown = np.maximum(e, 1e-3 * boundary)  # the axis cannot show an error of 0
    edges = np.geomspace(shown.min() * 0.999, shown.max() * 1.001, _BINS + 1)
    suspect, unreliable = cutoffs
    masks = {
        Level.RELIABLE: p >= suspect,
        Level.SUSPECT: (p < suspect) & (p >= unreliable),
        Level.UNRELIABLE: ~(p >= unreliable),
    }
    axes.hist(
        [shown[mask] for mask in masks.values()],
        bins=edges.tolist(),
        stacked=True,
        color=[COLOURS[level] for level in masks],
        label=[f"{level.name} ({mask.sum()})" for level, mask in masks.items()],
    )
    axes.axvline(boundary, color=INK, lw=0.8, ls=_DASHED)
    axes.set(xscale="log", xlabel=f"true error [{unit}]", ylabel="structures")
    plain_decades(axes.xaxis)
    axes.legend(frameon=False, fontsize=7.5)
    return axes


def plot_accuracy_by_error(
    errors: ArrayLike,
    probability: ArrayLike,
    boundary: float,
    unit: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of right answers against the size of the true error.

    The answer of the probe is P >= 0.5; NaN is "not reliable". The points stand for ten
    groups of equal size; the bars are 95 % Wilson intervals.

    Parameters
    ----------
    errors, probability : arrays (structures,)
        Errors in ``unit``, and P(reliable).
    boundary : float
        In ``unit``; a dashed line.
    """
    from uqcalc.evaluation.panels import plain_decades

    axes = axes_of(ax)
    e, p = np.asarray(errors, dtype=float), np.asarray(probability, dtype=float)
    right = (p >= 0.5) == (e <= boundary)
    parts = [g for g in np.array_split(np.argsort(e, kind="stable"), _GROUPS) if len(g)]
    hits = np.array([right[g].sum() for g in parts], dtype=float)
    counts = np.array([len(g) for g in parts], dtype=float)
    low, high = scores.wilson_interval(hits, counts)
    share = hits / counts
    axes.errorbar(
        [max(float(np.median(e[g])), 1e-3 * boundary) for g in parts],
        share,
        yerr=np.clip([share - low, high - share], 0, None),
        fmt="o-",
        color=COLOURS[Level.RELIABLE],
        lw=1,
        ms=4,
        elinewidth=1,
        capsize=2,
    )
    axes.axvline(boundary, color=INK, lw=0.8, ls=_DASHED)
    axes.axhline(0.5, color=QUIET, lw=0.8, ls=_DASHED)
    axes.set(xscale="log", ylim=(0, 1.03), xlabel=f"true error [{unit}]",
             ylabel="share of right answers")  # fmt: skip
    plain_decades(axes.xaxis)
    return axes


def two_sided_rows(
    reliable: NDArray[np.bool_], probability: NDArray[np.float64]
) -> list[tuple[str, str, str]]:
    """Return rows of the table of two-sided cutoffs.

    With a cutoff c the structures with P >= c are called reliable, those with
    P <= 1 - c not reliable, and the others are not decided. NaN is not decided.

    Returns
    -------
    list of (str, str, str)
        Cutoff, share of the decided structures, share of right answers among these.
    """
    rows = []
    for cutoff in SURE:
        yes, no = probability >= cutoff, probability <= 1 - cutoff
        decided = yes | no
        right = (yes & reliable) | (no & ~yes & ~reliable)
        share = f"{right[decided].mean():.1%}" if decided.any() else "-"
        rows.append((f"{cutoff:.2f}", f"{decided.mean():.1%}", share))
    return rows
