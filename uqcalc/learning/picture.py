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
    scale), otherwise row and ranking value. Colours show the ranking value.
    """
    axes = axes_of(ax)
    found = selection.candidates
    if not found.frames:
        axes.set_title("no candidates")
        return axes
    points = _points(selection)
    finite = np.where(np.isfinite(found.values), found.values, np.nan)
    shown = np.nan_to_num(finite, nan=np.nanmax(finite, initial=0.0))
    x, y = points.T
    dots = axes.scatter(x, y, c=shown, cmap="viridis", s=14, lw=0)
    axes.figure.colorbar(dots, ax=axes, label=selection.by)
    places = {int(row): index for index, row in enumerate(found.rows)}
    chosen = points[[places[int(row)] for row in selection.rows]]
    if len(chosen):
        ring = COLOURS[Level.UNRELIABLE]
        axes.scatter(
            chosen[:, 0], chosen[:, 1], s=70, facecolors="none", edgecolors=ring, lw=1.2
        )
    for number, place in enumerate(chosen[:_MOST_NUMBERED], start=1):
        axes.annotate(
            str(number),
            (float(place[0]), float(place[1])),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            color=INK,
        )
    if found.vectors is None:
        axes.set(xlabel="row", ylabel=selection.by)
    else:
        axes.set(xlabel="first component", ylabel="second component")
        axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(f"{len(selection)} of {len(found.frames)} frames chosen")
    return axes


def save_plot(draw: Callable[[Axes], object], path: Path) -> None:
    """Write the picture that ``draw`` makes on new axes, whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    draw(figure.add_subplot())
    save_figure(figure, path)


def plot_rounds(rounds: Sequence[RoundRow], ax: Axes | None = None) -> Axes:
    """Draw the median force error on the chosen frames of each round, in meV/Å.

    A round without a flagged frame has no labels, and is marked by a cross at zero.
    Below the number of the round is the number of runs that ended at a physically
    impossible frame.
    """
    axes = axes_of(ax)
    numbers = np.array([row.number for row in rounds])
    errors = np.array(
        [np.nan if row.error is None else 1000 * row.error for row in rounds]
    )
    axes.plot(numbers, errors, "o-", color=COLOURS[Level.UNRELIABLE], lw=1.2)
    quiet = np.array([row.flagged == 0 for row in rounds], dtype=bool)
    axes.plot(numbers[quiet], 0 * numbers[quiet], "x", color=INK, ms=8, clip_on=False)
    names = [f"{row.number}\n{row.wrecked} of {row.runs} wrecked" for row in rounds]
    axes.set_xticks(numbers, names)
    axes.set(xlabel="round", ylim=(0, None))
    axes.set_ylabel("force error of chosen frames [meV/Å]")
    return axes


def _points(selection: Selection) -> NDArray[np.float64]:
    """Return the place of each candidate, (candidates, 2)."""
    found = selection.candidates
    if found.vectors is None:
        return np.column_stack([found.rows, found.values])
    centred = found.vectors - found.vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    places = centred @ axes[:2].T
    missing = 2 - places.shape[1]
    return np.asarray(np.pad(places, ((0, 0), (0, missing))))
