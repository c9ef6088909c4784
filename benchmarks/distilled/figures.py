"""Figure of `distilled_head.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import RESULTS
from matplotlib.axes import Axes

from distilled.ranking import SIGNALS, Readings, known
from uqcalc.plotting import save_figure


PALETTE = ("#2c6e9e", "#3f9b8f", "#7fb069", "#d9a441", "#b3312c", "#8a6fae")
MARKS = {
    "force_delta": ("o", "#b3312c", "distilled Force Delta"),
    "committee": ("s", "#2c6e9e", "committee of four"),
    "latent distance": ("^", "#3f9b8f", "latent distance"),
    "largest force": ("D", "#d9a441", "largest force"),
}


def draw(
    studies: Mapping[str, Mapping[str, Readings]], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Draw U against the true error, and the Spearman correlations by block."""
    figure, axes = plt.subplots(
        2,
        len(studies),
        figsize=(5.6 * len(studies), 8.2),
        layout="constrained",
        height_ratios=(1.25, 1),
        squeeze=False,
    )
    for column, (potential, blocks) in enumerate(studies.items()):
        _scatter(axes[0, column], potential, blocks)
        own = [row for row in rows if row["potential"] == potential]
        _ranks(axes[1, column], own)
    axes[1, 0].legend(fontsize=8, loc="upper left", frameon=False)
    save_figure(figure, RESULTS / "distilled_head.png")


def _scatter(ax: Axes, potential: str, blocks: Mapping[str, Readings]) -> None:
    for colour, (name, block) in zip(PALETTE, blocks.items(), strict=False):
        some = known(block)
        ax.plot(some["force_delta"], some["error"], ".", ms=4, color=colour,
                label=name, alpha=0.7, mew=0)  # fmt: skip
    values = [known(block)[key] for block in blocks.values()
              for key in ("force_delta", "error")]  # fmt: skip
    ends = np.quantile(np.concatenate(values), (0.002, 0.998))
    ax.plot(ends, ends, "-", lw=0.8, color="#8a8a8a")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="distilled Force Delta U (eV/Å)",
        ylabel="true RMS force error (eV/Å)",
        title=f"{potential}; the line is U = error",
    )
    ax.legend(fontsize=8, markerscale=2.5, frameon=False)


def _ranks(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    heights = np.arange(len(rows))[::-1]
    for signal in SIGNALS:
        if signal in rows[0]:
            mark, colour, label = MARKS[signal]
            values = [row[signal] for row in rows]
            ax.plot(values, heights, mark, color=colour, label=label, ms=6, mew=0)
    ax.set_yticks(heights, [row["block"] for row in rows])
    ax.axvline(0, lw=0.8, color="#8a8a8a")
    ax.axhline(1.5, lw=0.8, color="#8a8a8a")
    ax.set(xlabel="Spearman's r with the true error", xlim=(-0.55, 1.02))
    ax.grid(axis="y", lw=0.4, color="#dddddd")
