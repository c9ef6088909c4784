"""One style for all figures: palette, units, panel letters, and how they are saved."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ase.formula import Formula

from uqcalc.files.writing import whole
from uqcalc.records import Level


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Readers with any kind of colour blindness can tell these apart: they differ in
# lightness, too.
COLOURS = {
    Level.RELIABLE: "#2c6e9e",
    Level.SUSPECT: "#d9a441",
    Level.UNRELIABLE: "#b3312c",
}
INK, QUIET = "#222222", "#8a8a8a"
# The same for words on white: sand alone would be too pale to read.
WORDS = COLOURS | {Level.SUSPECT: "#8a6414"}
NOT_JUDGED = "#dddddd"
# Series without a meaning of their own (Okabe and Ito, doi:10.1038/nmeth.1618).
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
# Atoms: from dark blue (worst) to pale yellow (best); its lightness rises evenly.
ATOM_MAP = "cividis"

STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.prop_cycle": "cycler('color', [" + ", ".join(f"'{c}'" for c in SERIES) + "])",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.1,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


def with_unit(name: str, unit: str) -> str:
    """Return the label of an axis: the unit stands in square brackets.

    Examples
    --------
    >>> with_unit("temperature", "K"), with_unit("P(reliable)", "")
    ('temperature [K]', 'P(reliable)')
    """
    return f"{name} [{unit}]" if unit else name


def shown_formula(symbols: str) -> str:
    """Return a formula with C and H first, or with metals first; "" if it is none.

    Examples
    --------
    >>> shown_formula("C2OH6"), shown_formula("O2Ti")
    ('C2H6O', 'TiO2')
    """
    try:
        formula = Formula(symbols)
    except ValueError:
        return ""
    return formula.format("hill" if "C" in formula else "metal")


def page_style() -> str:
    """Return the style sheet that all HTML pages share; they follow a dark desktop."""
    return (files("uqcalc.plotting") / "page.css").read_text(encoding="utf-8")


def axes_of(ax: Axes | None) -> Axes:
    """Return ``ax``, or the axes of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def letter_panels(axes: Iterable[Axes]) -> None:
    """Write a, b, c, ... above the left end of each panel."""
    for letter, ax in zip("abcdefghijklmnopqrstuvwxyz", axes, strict=False):
        ax.annotate(
            letter,
            (0, 1),
            xycoords="axes fraction",
            textcoords="offset points",
            xytext=(-30, 4),
            fontweight="bold",
            fontsize=10,
            va="bottom",
        )


def save_figure(
    figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160
) -> None:
    """Write a picture, whole or not at all, and close it.

    The format follows from the end of the name: .png, .svg, .pdf and others that
    matplotlib writes. The file has no date in it.
    """
    import matplotlib.pyplot as plt

    kind = str(path).rpartition(".")[2].lower()
    with whole(path) as partial:
        figure.savefig(partial, dpi=dpi, metadata=_without_date(kind))
    plt.close(figure)


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """Return a picture as "svg" or "png" without a date in it, and close it."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=160, metadata=_without_date(kind))
    plt.close(figure)
    return buffer.getvalue()


def _without_date(kind: str) -> dict[str, Any] | None:
    """Return metadata with which two runs on the same data give the same file."""
    names = {"svg": "Date", "pdf": "CreationDate"}
    return {names[kind]: None} if kind in names else None
