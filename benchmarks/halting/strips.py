"""Figures: one strip a run, true error above and verdict below; and the trade-off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import ListedColormap, TwoSlopeNorm

from halting.cached import Cached
from halting.judging import TOLERANCE, Rule, find_halt, judge
from halting.runs import FRAME_FS, RMD17
from uqcalc.plotting import COLOURS, INK, QUIET, save_figure
from uqcalc.records import Level


if TYPE_CHECKING:
    from matplotlib.axes import Axes


LINES = {
    "probe": ("#2c6e9e", "-"),
    "committee of four": ("#b3312c", "-"),
    "largest force": ("#d9a441", "-"),
    "latent distance": ("#5b8c5a", "-"),
    "latent distance, farthest atom": ("#5b8c5a", ":"),
}


def draw_strips(runs: Sequence[Cached], rule: Rule, folder: Path) -> None:
    """Draw all runs, heated left and steady right, molecule by molecule."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 2, figsize=(15, 17), layout="constrained", sharey=True
    )
    for ax, kind in zip(axes, ("heated", "steady"), strict=True):
        alike = [run for run in runs if run.spec.kind == kind]
        alike.sort(key=lambda run: (RMD17.index(run.spec.molecule), run.spec.seed))
        for row, run in enumerate(alike):
            strip(ax, run, row, rule)
        number = len(alike)
        each = number // len(RMD17)
        names = [name.replace("_", " ") for name in RMD17]
        middles = np.arange(len(RMD17)) * each + each / 2
        ax.set(
            ylim=(number, 0),
            yticks=middles,
            yticklabels=names,
            xlim=(0, 5),
            xlabel="time [ps]",
        )
        for line in range(0, number + 1, each):
            ax.axhline(line, color=INK, lw=0.8)
        ax.tick_params(axis="y", length=0)
    axes[0].set_title("heated from 300 to 2 500 K within 5 ps", loc="left")
    axes[1].set_title("kept at 300 K", loc="left")
    figure.suptitle(
        "Upper half of a strip: true RMS force error, white at 200 meV/Å, red above. "
        "Lower half: the verdict (blue RELIABLE, sand SUSPECT, red UNRELIABLE).\n"
        "Line: the failure begins. Triangle: the run is halted "
        "(filled: within 500 fs before to 100 fs after; open: not).",
        ha="left",
        x=0.01,
        fontsize=11,
    )
    save_figure(figure, folder / "halts_when_it_should.png", dpi=110)


def strip(ax: Axes, run: Cached, row: int, rule: Rule) -> None:
    """Draw one run in the rows from `row` to `row + 1`; the rule is for the verdict."""
    error, risk = run.arrays["error"], run.arrays["verdict"]
    edges = np.arange(len(error) + 1) * FRAME_FS / 1000
    truth = TwoSlopeNorm(TOLERANCE, 0.0, 3 * TOLERANCE)
    ax.pcolormesh(edges, [row + 0.08, row + 0.5], error[None], cmap="RdBu_r",
                  norm=truth, rasterized=True)  # fmt: skip
    colours = ListedColormap([COLOURS[level] for level in Level])
    ax.pcolormesh(edges, [row + 0.5, row + 0.92], 2 * risk[None], cmap=colours,
                  vmin=0, vmax=len(Level) - 1, rasterized=True)  # fmt: skip
    trace = run.trace(risk)
    if trace.onset is not None:
        ax.plot([edges[trace.onset]] * 2, [row, row + 1], color=INK, lw=1.6)
    halt = find_halt(risk, rule)
    if halt is not None:
        right = judge(trace, rule).name == "right"
        ax.plot(edges[halt + 1], row + 0.72, marker="<", ms=6, mec=INK, zorder=5,
                mfc=INK if right else "white")  # fmt: skip


def draw_curves(
    curves: Mapping[str, np.ndarray], most_false: float, folder: Path
) -> None:
    """Draw the share that is halted in time against false and early halts."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 2, figsize=(10, 4.3), layout="constrained", sharey=True
    )
    words = ("false halts per ps of steady run", "share of heated runs halted early")
    for column, (ax, wide, most) in enumerate(
        zip(axes, (0.15, 1.0), (most_false, 0.1), strict=True)
    ):
        allowed = np.linspace(0, wide, 400)
        for name, points in curves.items():
            colour, style = LINES[name]
            best = [points[points[:, column] <= x + 1e-12, 2].max() for x in allowed]
            ax.plot(allowed, best, style, color=colour, label=name, lw=1.5)
        ax.axvline(most, color=QUIET, ls=(0, (4, 3)), lw=0.9)
        ax.set(xlabel=f"allowed: {words[column]}", xlim=(0, wide), ylim=(0, 1))
    axes[0].set_ylabel("best share of heated runs halted in time")
    axes[0].legend(frameon=False, fontsize=9)
    save_figure(figure, folder / "halts_trade_off.png", dpi=130)
