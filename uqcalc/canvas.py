"""What all pictures share: colours, axes, and how they are kept."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from uqcalc.files import whole
from uqcalc.records import Level


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind safe: blue is fine, sand is a question, red is a stop.
COLOURS = {
    Level.RELIABLE: "#2c6e9e",
    Level.SUSPECT: "#d9a441",
    Level.UNRELIABLE: "#b3312c",
}
INK, QUIET = "#222222", "#8a8a8a"


def axes_of(ax: Axes | None) -> Axes:
    """Return ``ax``, or the axes of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def save_figure(
    figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160
) -> None:
    """Write a picture, whole or not at all, and close it."""
    import matplotlib.pyplot as plt

    with whole(path) as partial:
        figure.savefig(partial, dpi=dpi)
    plt.close(figure)


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """Return a picture as "svg" or "png" without a date in it, and close it."""
    import matplotlib.pyplot as plt

    # only SVG knows a date; two runs on the same data should give the same file
    metadata = {"Date": None} if kind == "svg" else None
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    plt.close(figure)
    return buffer.getvalue()
