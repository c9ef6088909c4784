"""The pictures of an evaluation, together or one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple


if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from uqcalc.probe.reporting.scored import Scored


class Panel(NamedTuple):
    """One picture: its title, what to see in it, and what draws it."""

    title: str
    caption: str
    draw: Callable[[Axes], object]


def panels(seen: Scored) -> dict[str, Panel]:
    """Return the pictures that there are numbers for, by name."""
    drawn = {
        "reliability": Panel(
            "Is the probability right?",
            "On the dashed line it is. Bars: 95 % Wilson intervals, as if structures "
            "were independent of each other; the noise floor knows of groups. Grey: "
            "structures in each bin.",
            lambda ax: _reliability(seen, ax),
        ),
        "risk": Panel(
            "What does it buy?",
            "Mean true error of what is kept, where the least risky are kept first. "
            "Dashed: what knowing every error would give.",
            lambda ax: _risk(seen, ax),
        ),
        "errors": Panel(
            "Error against probability",
            "Each point a test structure; red are wrong, crosses lie outside the "
            "scope. Wrong ones to the right were trusted.",
            lambda ax: _errors(seen, ax),
        ),
    }
    tested = seen.tested
    errors, belief, novelty = (
        tested.atom_errors,
        tested.atom_probability,
        tested.novelty,
    )
    if seen.report["atoms"] is not None and errors is not None and belief is not None:
        right = errors <= seen.report["atoms"]["boundary"]
        drawn["atoms"] = Panel(
            "Single atoms",
            "The same for the probability of each atom. Atoms of one structure are not "
            "independent: the intervals are too narrow.",
            lambda ax: _atoms(right, belief, seen.report["atoms"], ax),
        )
    if weights := path_weights(seen):
        drawn["paths"] = Panel(
            "Weight of each path",
            "What the verdict rests on, from the spread that each path adds to the "
            "score. The attention shown on atoms explains its own share alone.",
            lambda ax: _paths(weights, ax),
        )
    if novelty is not None:
        drawn["scope"] = Panel(
            "Error against distance",
            "Feature distance from the labels, in units of the scope's limit: to the "
            "right of the line a structure is outside.",
            lambda ax: _scope(seen, novelty, ax),
        )
    return drawn


def path_weights(seen: Scored) -> dict[str, float]:
    """Return the weight of each path of the probe; empty where it is all one."""
    rows = seen.probe.card.training.get("paths") or []
    return {row["path"]: float(row["weight"]) for row in rows}


def draw_all(seen: Scored) -> Figure:
    """Draw every picture there is into one figure, three in a row."""
    import matplotlib.pyplot as plt

    chosen = list(panels(seen).values())
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
    """Draw one picture into a figure of its own."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(4.8, 3.9), layout="constrained")
    _draw(panel, ax)
    return figure


def _draw(panel: Panel, ax: Axes) -> None:
    panel.draw(ax)
    said: Any = ax.get_title()
    title = f"{panel.title}\n{said}" if said else panel.title
    ax.set_title(title, fontsize=10, loc="left")
    if said:
        ax.set_title("")
    ax.spines[["top", "right"]].set_visible(False)


def _reliability(seen: Scored, ax: Axes) -> None:
    from uqcalc.plotting import plot_reliability_diagram

    plot_reliability_diagram(
        seen.errors <= seen.probe.card.boundary,
        seen.probability,
        ax,
        noise_floor=seen.report["ece_noise_floor"],
    )


def _risk(seen: Scored, ax: Axes) -> None:
    from uqcalc.plotting import plot_risk_coverage

    plot_risk_coverage(
        seen.errors, {"probe": 1 - seen.probability}, seen.probe.card.unit, ax
    )


def _errors(seen: Scored, ax: Axes) -> None:
    from uqcalc.plotting import plot_errors

    card = seen.probe.card
    plot_errors(
        seen.probability,
        seen.errors,
        card.boundary,
        card.unit,
        ax,
        outside=seen.tested.outside,
    )
    ax.set(xlim=(-0.02, 1.02), xlabel="predicted P(reliable)")


def _atoms(
    right: NDArray[np.bool_],
    belief: NDArray[np.float64],
    scored: dict[str, Any],
    ax: Axes,
) -> None:
    from uqcalc.plotting import plot_reliability_diagram

    floor = scored["ece_noise_floor"]
    plot_reliability_diagram(right, belief, ax, noise_floor=floor)
    ax.set(xlabel="predicted P(reliable) of an atom")


def _paths(weights: dict[str, float], ax: Axes) -> None:
    from uqcalc.plotting import plot_path_weights

    plot_path_weights(weights, ax)


def _scope(seen: Scored, novelty: NDArray[np.float64], ax: Axes) -> None:
    from uqcalc.plotting import INK, plot_errors
    from uqcalc.scoreplots import plain_decades

    card = seen.probe.card
    plot_errors(
        novelty,
        seen.errors,
        card.boundary,
        card.unit,
        ax,
        outside=seen.tested.outside,
    )
    ax.axvline(1.0, color=INK, lw=0.8)
    ax.set(xscale="log", xlabel="distance / limit of the scope")
    plain_decades(ax.xaxis)
