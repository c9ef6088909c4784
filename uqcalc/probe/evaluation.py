"""`evaluate`: how good a probe is on labelled structures it never saw."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from uqcalc import scores
from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError
from uqcalc.files import strict_json, whole
from uqcalc.probe.checkpoint import Probe
from uqcalc.probe.dataset import Dataset, build_dataset
from uqcalc.probe.labels import Labels
from uqcalc.probe.optimise import margins


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A probe, and how good it is on structures it never saw.

    Attributes
    ----------
    probe : Probe
    report : dict
        `uqcalc.scores.classification_report` on the structures.
    probability, errors : arrays (structures,)
        P(reliable), and the true errors in the unit of the boundary.
    """

    probe: Probe
    report: dict[str, Any]
    probability: NDArray[np.float64]
    errors: NDArray[np.float64]

    def __str__(self) -> str:
        r = self.report
        lines = [
            str(self.probe.card),
            f"test: {r['structures']} structures, {r['prevalence']:.3f} reliable",
            f"accuracy {r['accuracy']:.3f} "
            f"(majority class {r['majority_accuracy']:.3f})"
            f"  MCC {r['mcc']:.3f}  F1 {r['f1']:.3f}  AUROC {r['auroc']:.3f}",
            f"ECE {r['ece']:.3f} (noise floor {r['ece_noise_floor']:.3f})"
            f"  Brier {r['brier']:.3f}  Spearman(error, risk) {r['spearman']:.3f}",
            "P(reliable) at least:  kept   of them right",
        ]
        lines += [
            f"{row['cutoff']:>20.2f}  {row['coverage']:>5.1%}  {row['precision']:>6.1%}"
            for row in r["coverage"]
        ]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the reliability diagram beside the risk-coverage curve."""
        import matplotlib.pyplot as plt

        from uqcalc.plotting import plot_reliability_diagram, plot_risk_coverage

        card = self.probe.card
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        reliable = self.errors <= card.boundary
        plot_reliability_diagram(reliable, self.probability, left)
        risks = {"probe": 1 - self.probability}
        plot_risk_coverage(self.errors, risks, card.unit, right)
        return figure

    def write(self, stem: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write ``STEM.json`` (card and scores) and ``STEM.png``; return both paths."""
        from uqcalc.plotting import save_figure

        base = Path(stem).absolute()
        numbers, picture = (
            base.with_name(f"{base.name}.{ending}") for ending in ("json", "png")
        )
        content = {"card": self.probe.card.to_dict(), "report": self.report}
        text = json.dumps(strict_json(content), indent=1, ensure_ascii=False)
        with whole(numbers) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
        save_figure(self.figure(), picture)
        return numbers, picture


def evaluate(
    probe: Probe,
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    labels: Labels | None = None,
    *,
    exclude: Collection[str] = (),
) -> Evaluation:
    """Score ``probe`` on labelled frames that it was not fitted on.

    Parameters
    ----------
    frames : sequence of Atoms
        With labels as `Labels` says.
    calculator : ase calculator or Backbone
        The potential that the probe belongs to.
    labels : Labels, optional
        Where the reference is; its boundary is the probe's own in any case.
    exclude : collection of str
        Defects of frames to leave out instead of refusing (see `build_dataset`).

    Raises
    ------
    ProbeError
        If the probe belongs to another backbone.
    LabelError
        For unusable labels, or labels of another target than the probe's.
    """
    card = probe.card
    wanted = labels or Labels(card.target)
    if wanted.target != card.target:
        msg = (
            f"labels must be of the probe's own target {card.target!r}, got "
            f"{wanted.target!r}"
        )
        raise LabelError(msg)
    backbone = tap(calculator)
    probe.check(backbone)
    data = build_dataset(frames, backbone, wanted, exclude=exclude)
    return evaluate_dataset(probe, data)


def evaluate_dataset(probe: Probe, data: Dataset) -> Evaluation:
    """Do what `evaluate` does, from a dataset whose features are there already.

    Structures with elements that the probe's labels lacked get no probability from
    it; they are counted in ``report["unseen_elements"]`` and not scored.
    """
    known = [
        i
        for i, prediction in enumerate(data.predictions)
        if not probe.unseen_elements(prediction.numbers)
    ]
    if not known:
        msg = (
            f"at least one of the {len(data)} structures must be made of the probe's "
            f"elements, got none; {probe.card}"
        )
        raise LabelError(msg)
    scored = data if len(known) == len(data) else data.subset(known)
    slope, intercept = probe.card.calibration
    logits = slope * margins(probe, scored) + intercept
    probability = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    report = scores.classification_report(
        scored.errors <= probe.card.boundary, probability
    )
    report["spearman"] = scores.spearman(scored.errors, 1 - probability)
    report["median_error"] = float(np.median(scored.errors))
    report["unseen_elements"] = len(data) - len(known)
    return Evaluation(probe, report, np.asarray(probability), scored.errors)
