"""Figures: AUROC by number of labels, risk-coverage, and reliability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import RESULTS
from matplotlib.axes import Axes

from discriminating.rows import OURS, ROWS, judged, ours
from discriminating.tasks import TARGETS, Task, divide, opened
from uqcalc.evaluation.panels import plot_reliability_diagram, plot_risk_coverage
from uqcalc.fitting.network import margins
from uqcalc.plotting import save_figure


SHOWN = (
    OURS,
    "boosting, pooled",
    "logistic, pooled",
    "prediction rigidity",
    "max force",
    "latent distance",
)
# Networks take minutes a fit, so they are in the figure by number of labels only.
BY_LABELS = (
    *SHOWN,
    "our attention alone",
    "published, standardised",
    "published, raw",
    "committee",
)
NAMES = {"energy": "total energy", "forces": "RMS force", "atoms": "force of an atom"}


def draw(rows: list[dict[str, Any]], cache: Path) -> None:
    """Write ``discrimination.png`` (by labels) and ``discrimination_curves.png``."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.5), layout="constrained")
    for line, block in zip(axes, ("random", "composition"), strict=True):
        for axis, kind in zip(line, TARGETS, strict=True):
            _efficiency(axis, rows, block, kind)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncol=5, fontsize=8)
    save_figure(figure, RESULTS / "discrimination.png")
    _curves(cache)


def _efficiency(axis: Axes, rows: list[dict[str, Any]], block: str, kind: str) -> None:
    for i, name in enumerate(BY_LABELS):
        cells = sorted(
            (r["labels"], r["auroc"], r["auroc_spread"] or 0.0)
            for r in rows
            if (r["block"], r["target"], r["row"]) == (block, kind, name)
        )
        if cells:
            x, y, spread = np.array(cells).T
            axis.errorbar(
                x, y, spread, marker="o", ms=3, capsize=2, label=name, color=f"C{i}",
                lw=2 if name == OURS else 1,
            )  # fmt: skip
    axis.set(xscale="log", xlabel="labels", ylabel="AUROC at the median")
    axis.set_xticks([250, 1000, 3900], ["250", "1 000", "3 900"])
    axis.minorticks_off()
    where = "frames at random" if block == "random" else "by composition"
    axis.set_title(f"{NAMES.get(kind, kind.replace('_', ' '))}, {where}", fontsize=9)


def _curves(cache: Path) -> None:
    """Draw the curves of one seed by composition; this fits the rows again."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 7.5), layout="constrained")
    data = opened("composition", cache)
    for line, kind in zip(axes, ("energy", "forces"), strict=True):
        task = Task("composition", "all", kind, 1000, 0)
        labelled, tested = divide(task, data)
        train = data.dataset(kind, labelled, grouped=True)
        test = data.dataset(kind, tested, grouped=True)
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
            axis.set_title(f"{NAMES[kind]}, 1 000 labels, by composition", fontsize=9)
    save_figure(figure, RESULTS / "discrimination_curves.png")
