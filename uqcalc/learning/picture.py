"""Picture of a selection: all candidates, and the chosen ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uqcalc.plotting import COLOURS, INK, axes_of
from uqcalc.records import Level


if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    dots = axes.scatter(*points.T, c=shown, cmap="viridis", s=14, lw=0)
    axes.figure.colorbar(dots, ax=axes, label=selection.by)
    places = {int(row): index for index, row in enumerate(found.rows)}
    chosen = points[[places[int(row)] for row in selection.rows]]
    if len(chosen):
        ring = COLOURS[Level.UNRELIABLE]
        axes.scatter(*chosen.T, s=70, facecolors="none", edgecolors=ring, lw=1.2)
    for number, (x, y) in enumerate(chosen[:_MOST_NUMBERED], start=1):
        style = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7}
        axes.annotate(str(number), (x, y), color=INK, **style)
    if found.vectors is None:
        axes.set(xlabel="row", ylabel=selection.by)
    else:
        axes.set(xlabel="first component", ylabel="second component")
        axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(f"{len(selection)} of {len(found.frames)} frames chosen")
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
