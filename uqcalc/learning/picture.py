"""Picture of a selection: all candidates, and the chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uqcalc.plotting import COLOURS, INK, axes_of, save_figure
from uqcalc.records import Level


if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from uqcalc.learning.rounds import RoundRow
    from uqcalc.learning.selection import Selection

_MOST_NUMBERED = 60


def plot_selection(selection: Selection, ax: Axes | None = None) -> Axes:
    """Draw candidates as dots and chosen ones as circles numbered in their order.

    With descriptors the axes are the two main components of the descriptors (same
    scale), and a grey line joins the frames of an event. Otherwise the axes are row and
    ranking value. Dark dots have a large ranking value.
    """
    axes = axes_of(ax)
    found = selection.candidates
    if not found.frames:
        axes.set_title("no candidates")
        return axes
    places = {int(row): index for index, row in enumerate(found.rows)}
    chosen = [places[int(row)] for row in selection.rows]
    if found.vectors is None:
        points = np.column_stack([found.rows, found.values])
        x, y = points.T
        axes.scatter(x, y, color="0.6", s=14, lw=0, label="candidate")
        _draw_chosen(axes, points[chosen], "chosen", numbered=False)
        axes.set(xlabel="row", ylabel=selection.by)
    else:
        points, shares = _components(found.vectors)
        _draw_events(axes, points, found.events)
        finite = np.where(np.isfinite(found.values), found.values, np.nan)
        shown = np.nan_to_num(finite, nan=np.nanmax(finite, initial=0.0))
        x, y = points.T
        dots = axes.scatter(
            x, y, c=shown, cmap="viridis_r", s=14, lw=0, label="candidate"
        )
        axes.figure.colorbar(dots, ax=axes, label=selection.by)
        _draw_chosen(axes, points[chosen], "chosen; 1 is the first", numbered=True)
        for axis, name, share in zip("xy", ("first", "second"), shares, strict=True):
            text = f"{name} component of the descriptors ({share:.0%} of variance)"
            axes.set(**{f"{axis}label": text})
        axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(f"{len(selection)} of {len(found.frames)} frames chosen")
    axes.legend(fontsize=7, loc="best", framealpha=0.8)
    return axes


def _draw_events(
    axes: Axes, points: NDArray[np.float64], events: Sequence[str]
) -> None:
    """Join the frames of each event, in the order of the file."""
    names = np.array(events, dtype=object)
    for event in dict.fromkeys(events):
        x, y = points[names == event].T
        axes.plot(x, y, "-", color="0.8", lw=0.6, zorder=0)


def _draw_chosen(
    axes: Axes, points: NDArray[np.float64], name: str, *, numbered: bool
) -> None:
    """Draw a circle round each chosen frame, with its number if asked for."""
    from matplotlib.patheffects import withStroke

    if not len(points):
        return
    ring = COLOURS[Level.UNRELIABLE]
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=70,
        facecolors="none",
        edgecolors=ring,
        lw=1.2,
        label=name,
    )
    for number, (x, y) in enumerate(points[: _MOST_NUMBERED * numbered], start=1):
        axes.annotate(
            str(number),
            (float(x), float(y)),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            color=INK,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )


def save_plot(draw: Callable[[Axes], object], path: Path) -> None:
    """Write the picture that ``draw`` makes on new axes, whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    draw(figure.add_subplot())
    save_figure(figure, path)


def plot_rounds(rounds: Sequence[RoundRow], ax: Axes | None = None) -> Axes:
    """Draw the median force error on the chosen frames of each round, in meV/Å.

    A round without a flagged frame has no labels, and is marked by a cross at zero.
    Below the number of the round are the numbers of runs that ended at a physically
    impossible frame (wrecked), and with other bonds than at their start (broken).
    """
    axes = axes_of(ax)
    numbers = np.array([row.number for row in rounds])
    errors = np.array(
        [np.nan if row.error is None else 1000 * row.error for row in rounds]
    )
    axes.plot(numbers, errors, "o-", color=COLOURS[Level.UNRELIABLE], lw=1.2)
    quiet = np.array([row.flagged == 0 for row in rounds], dtype=bool)
    axes.plot(numbers[quiet], 0 * numbers[quiet], "x", color=INK, ms=8, clip_on=False)
    names = [
        f"{row.number}\nof {row.runs} runs {row.wrecked} wrecked, {row.broken} broken"
        for row in rounds
    ]
    axes.set_xticks(numbers, names)
    axes.set(xlabel="round", ylim=(0, None))
    axes.set_ylabel("force error of chosen frames [meV/Å]")
    return axes


def _components(
    vectors: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two main components of each vector, and their shares of the variance.

    Shapes (vectors, 2) and (2,); a component that does not exist is 0.
    """
    centred = vectors - vectors.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    places = centred @ axes[:2].T
    missing = 2 - places.shape[1]
    variances = np.pad(sizes[:2] ** 2, (0, missing))
    total = max(float(np.sum(sizes**2)), np.finfo(float).tiny)
    return np.pad(places, ((0, 0), (0, missing))), variances / total
