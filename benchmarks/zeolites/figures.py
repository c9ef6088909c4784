"""Figure of `force_delta.py`, from the rows of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from common import RESULTS
from matplotlib.axes import Axes

from uqcalc.plotting import (
    QUIET,
    SERIES,
    STYLE,
    letter_panels,
    save_figure,
    with_unit,
)


MARKS = {
    "force_delta": ("o", "Force Delta"),
    "ensemble spread": ("s", "spread of five models"),
    "latent distance": ("^", "latent distance"),
    "largest force": ("D", "largest force"),
}
_APART = 0.17  # height between the signals of one block


def draw(rows: Sequence[Mapping[str, Any]], signals: Sequence[str]) -> None:
    """Draw the medians of U and of the error, and the correlations, by block."""
    chosen = [row for row in rows if "CHGNet" not in row["block"]]
    heights = np.arange(len(chosen))[::-1].astype(float)
    with mpl.rc_context(rc=STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(10, 5.6), sharey=True, width_ratios=(1, 1.6)
        )
        _medians(left, chosen, heights)
        _correlations(right, chosen, heights, signals)
        left.set_yticks(heights, [_named(row) for row in chosen])
        for axis in (left, right):
            axis.axhline(1.5, lw=0.8, color=QUIET)  # below: all blocks together
            axis.grid(axis="y", lw=0.4, color="#dddddd")
            axis.set_ylim(-0.6, len(chosen) - 0.4)
        letter_panels((left, right))
        save_figure(figure, RESULTS / "force_delta.png")


def _medians(axis: Axes, rows: Sequence[Mapping[str, Any]], at: np.ndarray) -> None:
    known = [k for k, row in enumerate(rows) if "median error" in row]
    of_u = [rows[k]["median force_delta"] for k in known]
    errors = [rows[k]["median error"] for k in known]
    axis.hlines(at[known], of_u, errors, lw=1.2, color=QUIET, zorder=1)
    axis.plot(of_u, at[known], "o", ms=6, color=SERIES[0], label="Force Delta U")
    axis.plot(
        errors, at[known], "D", ms=5.5, mfc="white", color="#222222", label="true error"
    )
    axis.set(xscale="log", xlim=(0.04, 4), xlabel=with_unit("median", "eV/Å"))
    axis.set_title("U is smaller than the RMS force error")
    axis.legend(loc="lower right")


def _correlations(
    axis: Axes,
    rows: Sequence[Mapping[str, Any]],
    at: np.ndarray,
    signals: Sequence[str],
) -> None:
    middle = (len(signals) - 1) / 2
    for place, signal in enumerate(signals):
        mark, label = MARKS[signal]
        axis.errorbar(
            [row[signal] for row in rows],
            at + (middle - place) * _APART,
            xerr=[row.get(f"{signal}, spread over members", 0.0) for row in rows],
            fmt=mark, ms=5.5, mew=0, elinewidth=1.0, color=SERIES[place], label=label,
        )  # fmt: skip
    axis.set(xlim=(0.15, 1.03), xlabel="Spearman's r with the true error")
    axis.set_title("mean and standard deviation over five models")
    axis.legend(loc="lower left")


def _named(row: Mapping[str, Any]) -> str:
    if row["block"] == "mean over blocks":
        return f"mean over {row['structures']} blocks"
    return f"{row['block']} (n = {row['structures']})"
