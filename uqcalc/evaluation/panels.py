"""Plots of scores, and the panels of an evaluation, in one figure or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uqcalc.plotting import COLOURS, INK, QUIET, axes_of
from uqcalc.records import Level
from uqcalc.showing import shown_in
from uqcalc.statistics import scores


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from uqcalc.evaluation.evaluation import Evaluation


_DASHED = (0, (4, 3))
_TALLEST = 0.16  # height of the tallest bar of counts


def plot_reliability_diagram(
    reliable: ArrayLike,
    probability: ArrayLike,
    ax: Axes | None = None,
    bins: int = 10,
    *,
    noise_floor: float | None = None,
) -> Axes:
    """Draw observed frequency against predicted P(reliable), with counts.

    Error bars are 95 % Wilson intervals for independent structures. Grey bars and the
    numbers above them are counts of structures in each bin. The title has the ECE and
    the noise floor; by default the noise floor of independent structures.
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
    """Draw the mean true error of the kept structures against coverage.

    One curve for each entry of ``risks`` (name -> risk, (structures,)), and one for a
    perfect ranking. ``error`` (structures,) is in ``unit``.
    """
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
    """Draw true errors, on a logarithmic axis, against another value.

    Parameters
    ----------
    values, errors : arrays (structures,)
        Values such as P(reliable), and errors in ``unit``. Errors above ``boundary``
        are red.
    outside : boolean array (structures,), optional
        Structures outside the scope of a probe, drawn as crosses.
    """
    axes = axes_of(ax)
    x, y = np.asarray(values, dtype=float), np.asarray(errors, dtype=float)
    away = np.zeros(len(x), bool) if outside is None else np.asarray(outside, bool)
    # the logarithmic axis cannot show an error of 0
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
                rasterized=True,  # thousands of points make an SVG large
            )
    axes.axhline(boundary, color=INK, lw=0.8, ls=_DASHED)
    axes.set(yscale="log", ylabel=f"true error [{unit}]")
    plain_decades(axes.yaxis)
    return axes


def plain_decades(axis: Any) -> None:
    """Label a logarithmic axis with 0.1, 0.2, 0.5; above two decades 0.1, 1, 10."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_data_interval()
    wide = not 0 < high <= 100 * low
    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=7))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def plot_path_weights(weights: Mapping[str, float], ax: Axes | None = None) -> Axes:
    """Draw the share of each path of a probe in the spread of the score."""
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


class Panel(NamedTuple):
    """One plot: its title, its caption, and the function that draws it."""

    title: str
    caption: str
    draw: Callable[[Axes], object]


def panels(evaluation: Evaluation) -> dict[str, Panel]:
    """Return the panels of an evaluation by name, without panels that lack data."""
    drawn = {
        "reliability": Panel(
            "Predicted and observed frequency",
            "On the dashed line the probability is right. The bars are 95 % Wilson "
            "intervals for independent structures. The noise floor takes the groups "
            "into account. Grey: number of structures in each bin.",
            lambda ax: _reliability(evaluation, ax),
        ),
        "risk": Panel(
            "Error of the kept structures",
            "Mean true error of the kept structures. Structures with the smallest "
            "risk are kept first. Dashed: the order of the true errors.",
            lambda ax: _risk(evaluation, ax),
        ),
        "errors": Panel(
            "Error against probability",
            "Each point is a test structure. Red: the error is above the boundary. "
            "Cross: outside the scope. Red points at the right are trusted but wrong.",
            lambda ax: _errors(evaluation, ax),
        ),
    }
    drawn |= _panels_by_size(evaluation) | _atom_panel(evaluation)
    if weights := path_weights(evaluation):
        drawn["paths"] = Panel(
            "Weight of each path",
            "Share of each path in the spread of the score. The attention of an atom "
            "explains only the share of the attention path.",
            lambda ax: _paths(weights, ax),
        )
    if (novelty := evaluation.tested.novelty) is not None:
        drawn["scope"] = Panel(
            "Error against distance",
            "Distance of the features from those of the labels, divided by the limit "
            "of the scope. Structures to the right of the line are outside the scope.",
            lambda ax: _scope(evaluation, novelty, ax),
        )
    return drawn


def _panels_by_size(evaluation: Evaluation) -> dict[str, Panel]:
    from uqcalc.evaluation.bysize import plot_accuracy_by_error, plot_error_histogram

    card = evaluation.probe.card
    unit, factor = shown_in(card.unit)
    errors, boundary = evaluation.errors * factor, card.boundary * factor
    p, cutoffs = evaluation.probability, (card.suspect, card.unreliable)
    return {
        "histogram": Panel(
            "Errors of each level",
            "True errors of the test structures by the level that P gives. Dashed: the "
            "boundary. A good probe has little red at its left and little blue at its "
            "right.",
            lambda ax: plot_error_histogram(errors, p, cutoffs, boundary, unit, ax),
        ),
        "by size": Panel(
            "Right answers by the size of the error",
            "Share of structures for which P >= 0.5 names the right side of the "
            "boundary (dashed), in ten groups of equal size, with 95 % Wilson "
            "intervals. Errors near the boundary are the hardest.",
            lambda ax: plot_accuracy_by_error(errors, p, boundary, unit, ax),
        ),
    }


def _atom_panel(evaluation: Evaluation) -> dict[str, Panel]:
    scored = evaluation.report["atoms"]
    errors = evaluation.tested.atom_errors
    probability = evaluation.tested.atom_probability
    if scored is None or errors is None or probability is None:
        return {}
    panel = Panel(
        "Predicted and observed frequency of atoms",
        "As the first figure, for the probability of each atom. The atoms of one "
        "structure are not independent: the intervals are too narrow.",
        lambda ax: _atoms(errors <= scored["boundary"], probability, scored, ax),
    )
    return {"atoms": panel}


def path_weights(evaluation: Evaluation) -> dict[str, float]:
    """Return the weight of each path of the probe; empty if it has only one path."""
    rows = evaluation.probe.card.training.get("paths") or []
    return {row["path"]: float(row["weight"]) for row in rows}


def draw_all(evaluation: Evaluation) -> Figure:
    """Draw all panels in one figure, three in a row."""
    import matplotlib.pyplot as plt

    chosen = list(panels(evaluation).values())
    rows = -(-len(chosen) // 3)
    figure, axes = plt.subplots(
        rows, 3, figsize=(13, 4.2 * rows), layout="constrained", squeeze=False
    )
    for place, ax in enumerate(axes.flat):
        if place < len(chosen):
            _draw(chosen[place], ax)
        else:
            ax.axis("off")
    return figure


def draw_one(panel: Panel) -> Figure:
    """Draw one panel in its own figure."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(4.2, 3.5), layout="constrained")
    _draw(panel, ax)
    return figure


def _draw(panel: Panel, ax: Axes) -> None:
    panel.draw(ax)
    scores_in_title: Any = ax.get_title()
    ax.set_title("")
    title = f"{panel.title}\n{scores_in_title}".rstrip()
    ax.set_title(title, fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)


def _reliability(evaluation: Evaluation, ax: Axes) -> None:
    plot_reliability_diagram(
        evaluation.errors <= evaluation.probe.card.boundary,
        evaluation.probability,
        ax,
        noise_floor=evaluation.report["ece_noise_floor"],
    )


def _risk(evaluation: Evaluation, ax: Axes) -> None:
    risks = {"probe": 1 - evaluation.probability}
    unit, factor = shown_in(evaluation.probe.card.unit)
    plot_risk_coverage(evaluation.errors * factor, risks, unit, ax)


def _errors(evaluation: Evaluation, ax: Axes) -> None:
    card = evaluation.probe.card
    unit, factor = shown_in(card.unit)
    plot_errors(
        evaluation.probability,
        evaluation.errors * factor,
        card.boundary * factor,
        unit,
        ax,
        outside=evaluation.tested.outside,
    )
    ax.set(xlim=(-0.02, 1.02), xlabel="predicted P(reliable)")


def _atoms(
    reliable: NDArray[np.bool_],
    probability: NDArray[np.float64],
    scored: dict[str, Any],
    ax: Axes,
) -> None:
    floor = scored["ece_noise_floor"]
    plot_reliability_diagram(reliable, probability, ax, noise_floor=floor)
    ax.set(xlabel="predicted P(reliable) of an atom")


def _paths(weights: dict[str, float], ax: Axes) -> None:
    plot_path_weights(weights, ax)


def _scope(evaluation: Evaluation, novelty: NDArray[np.float64], ax: Axes) -> None:
    card = evaluation.probe.card
    unit, factor = shown_in(card.unit)
    plot_errors(
        novelty,
        evaluation.errors * factor,
        card.boundary * factor,
        unit,
        ax,
        outside=evaluation.tested.outside,
    )
    ax.axvline(1.0, color=INK, lw=0.8)
    ax.set(xscale="log", xlabel="distance / limit of the scope")
    plain_decades(ax.xaxis)
