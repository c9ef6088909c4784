"""What a fit hands back: the probe, and how good it is on unseen structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqcalc.probe.checkpoint import Probe


@dataclass(frozen=True, slots=True, eq=False)
class FitReport:
    """A fitted probe and how good it is on structures it never saw.

    Attributes
    ----------
    probe : Probe
    report : dict
        `uqcalc.scores.classification_report` on the test frames.
    probability, errors : arrays (test structures,)
        P(reliable), and the true errors in the unit of the boundary.
    curve : list of (training loss, validation loss)
    """

    probe: Probe
    report: dict[str, Any]
    probability: NDArray[np.float64]
    errors: NDArray[np.float64]
    curve: list[tuple[float, float]]

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
