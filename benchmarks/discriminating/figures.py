"""Figures: AUROC by number of labels, risk-coverage, and reliability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from common import RESULTS
from matplotlib.axes import Axes

from discriminating.rows import OURS, ROWS, judged, ours
from discriminating.tasks import TARGETS, Task, divide, moving, opened
from uqcalc.evaluation.panels import plot_reliability_diagram, plot_risk_coverage
from uqcalc.fitting.network import margins
from uqcalc.plotting import QUIET, SERIES, STYLE, letter_panels, save_figure


SHOWN = (
    OURS,
    "boosting, pooled",
    "logistic, pooled",
    "prediction rigidity",
    "max force",
    "latent distance",
)
# A fit of a network takes minutes: networks are only in the figure by labels.
BY_LABELS = (
    *SHOWN,
    "our attention alone",
    "published, standardised",
    "published, raw",
    "committee",
)
NAMES = {"energy": "total energy", "forces": "RMS force", "atoms": "force of an atom"}


# Rows with a special colour and marker; the others are grey, because the tables have
# their numbers.
NAMED = {
    OURS: "o",
    "published, standardised": "s",
    "committee": "D",
    "max force": "^",
    "prediction rigidity": "v",
    "boosting, pooled": "P",
}


def draw(rows: list[dict[str, Any]], cache: Path) -> None:
    """Write ``discrimination.png`` (by labels) and ``discrimination_curves.png``."""
    draw_by_labels(rows)
    with mpl.rc_context(rc=STYLE):
        _curves(cache)


def draw_by_labels(rows: list[dict[str, Any]]) -> None:
    """Write ``discrimination.png``; its rows are those of ``discrimination.json``."""
    with mpl.rc_context(rc=STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(10, 6.6), sharex=True, sharey=True)
        for line, block in zip(axes, ("random", "composition"), strict=True):
            for axis, kind in zip(line, TARGETS, strict=True):
                _efficiency(axis, rows, block, kind)
        for axis in axes[:, 0]:
            axis.set(ylabel="AUROC at the median error")
        for axis in axes[1]:
            axis.set(xlabel="labels")
        letter_panels(axes.flat)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower left", ncol=4)
        save_figure(figure, RESULTS / "discrimination.png")


def _efficiency(axis: Axes, rows: list[dict[str, Any]], block: str, kind: str) -> None:
    colours = dict(zip(NAMED, SERIES, strict=False))
    axis.axhline(0.5, color=QUIET, lw=0.8, ls=(0, (4, 3)))
    first = True
    for name in sorted(BY_LABELS, key=lambda name: (name in NAMED, name == OURS)):
        cells = sorted(
            (r["labels"], r["auroc"], r["auroc_spread"] or 0.0)
            for r in rows
            if (r["block"], r["part"], r["target"], r["row"])
            == (block, "all", kind, name)
        )
        if not cells:
            continue
        x, y, spread = np.array(cells).T
        if name not in NAMED:
            label = "other rows of the tables" if first else None
            axis.plot(x, y, color="#bdbdbd", lw=0.9, label=label, zorder=1)
            first = False
            continue
        # side by side, so that no marker or bar covers another
        place = x * 1.05 ** (list(NAMED).index(name) - len(NAMED) / 2)
        axis.errorbar(
            place, y, spread, marker=NAMED[name], ms=4.5, capsize=2, elinewidth=0.9,
            color=colours[name], lw=2.2 if name == OURS else 1.1, label=name,
        )  # fmt: skip
    axis.set(xscale="log", ylim=(0.48, 1.0), xlim=(195, 5000))
    axis.set_xticks([250, 1000, 3900], ["250", "1 000", "3 900"])
    axis.minorticks_off()
    where = "frames at random" if block == "random" else "by composition"
    axis.set_title(f"{NAMES.get(kind, kind.replace('_', ' '))}, {where}")


def _curves(cache: Path) -> None:
    """Draw the curves of one seed by composition; this fits the rows again."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 7.5))
    data = opened("composition", cache)
    for line, kind in zip(axes, ("energy", "forces"), strict=True):
        task = Task("composition", "all", kind, 1000, 0)
        labelled, tested = divide(task, data)
        train = data.dataset(kind, labelled, grouped=True)
        test = data.dataset(kind, tested, grouped=True)
        if kind == "forces":
            test = test.subset(np.flatnonzero(moving(test)))
        boundary = float(np.median(train.errors))
        probe = ours(train, kind, boundary, 0)
        scored = torch.from_numpy(margins(probe, test))
        risks = {OURS: -scored.numpy()}
        for name in SHOWN[1:]:
            risks[name] = judged(
                ROWS[name], train, test, kind, boundary, believed=True
            )[0]
        belief = probe.card.calibration.logits(scored).sigmoid().numpy()
        plot_reliability_diagram(test.errors <= boundary, belief, line[0])
        plot_risk_coverage(test.errors, risks, probe.card.unit, line[1])
        line[1].set_yscale("log")
        for axis in line:
            among = ", nonzero" if kind == "forces" else ""
            axis.set_title(f"{NAMES[kind]}, by composition{among} (n = {len(test)})")
    letter_panels(axes.flat)
    save_figure(figure, RESULTS / "discrimination_curves.png")
