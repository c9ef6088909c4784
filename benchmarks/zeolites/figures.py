"""Figures of `force_delta.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import RESULTS

from uqcalc.plotting import save_figure


PALETTE = (
    "#2c6e9e",
    "#3f9b8f",
    "#7fb069",
    "#8a6fae",
    "#b3312c",
    "#d9a441",
    "#7a5c3e",
    "#222222",
)
MARKS = {
    "force_delta": ("o", "#b3312c", "Force Delta"),
    "ensemble spread": ("s", "#2c6e9e", "spread of five"),
    "latent distance": ("^", "#3f9b8f", "latent distance"),
    "largest force": ("D", "#d9a441", "largest force"),
}


def draw(
    readings: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    rows: Sequence[Mapping[str, Any]],
    signals: Sequence[str],
) -> None:
    """Draw U against the true error, and the Spearman correlations by block."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.8), layout="constrained", width_ratios=(1, 1.15)
    )
    for colour, (name, members) in zip(PALETTE, readings.items(), strict=True):
        one = members[0]
        left.plot(one["force_delta"], one["error"], ".", ms=3, color=colour, label=name)
    ends = np.array([0.02, 30.0])
    left.plot(ends, ends, "-", lw=0.8, color="#8a8a8a")
    left.set(
        xscale="log",
        yscale="log",
        xlabel="Force Delta U (eV/Å)",
        ylabel="true RMS force error (eV/Å)",
        title="one member; the line is U = error",
    )
    left.legend(fontsize=7, markerscale=3, frameon=False)
    chosen = [row for row in rows if "CHGNet" not in row["block"]]
    heights = np.arange(len(chosen))[::-1]
    for signal in signals:
        mark, colour, label = MARKS[signal]
        values = [row[signal] for row in chosen]
        right.plot(values, heights, mark, color=colour, label=label, ms=6, mew=0)
    right.set_yticks(heights, [row["block"] for row in chosen])
    right.axvline(0, lw=0.8, color="#8a8a8a")
    right.axhline(1.5, lw=0.8, color="#8a8a8a")
    right.set(xlabel="Spearman's r with the true error", xlim=(-0.2, 1.02))
    right.grid(axis="y", lw=0.4, color="#dddddd")
    right.legend(fontsize=8, loc="lower left", framealpha=1.0, edgecolor="none")
    save_figure(figure, RESULTS / "force_delta.png")
