"""The scores of a probe as text, each with its value without skill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from uqcalc.labels.setchecks import FEWEST_STRUCTURES, rare_class


FEWEST_TEST_GROUPS = 30
# A calibration error is significant if it exceeds the noise floor by this factor (used
# if the report lacks the chance level) and by this amount.
_FACTOR, _MORE = 1.5, 0.02
_OFTEN = 0.05  # share outside the scope that is too large: five times the design value


class Score(NamedTuple):
    """A score, and its value without skill (``beside``)."""

    name: str
    value: float
    beside: str
    meaning: str


def score_table(report: Mapping[str, Any]) -> list[Score]:
    """Return the scores of a report, each with its value without skill."""
    parts = report["brier_decomposition"]
    return [
        Score(
            "accuracy",
            report["accuracy"],
            f"{report['majority_accuracy']:.3f} (commoner class)",
            "share of right answers at P = 0.5",
        ),
        Score("AUROC", report["auroc"], "0.500", "does it rank? 1 is perfect"),
        Score("MCC", report["mcc"], "0.000", "correlation of answer and truth"),
        Score(
            "Spearman",
            report["spearman"],
            "0.000",
            "rank correlation of true error and risk",
        ),
        Score(
            "ECE",
            report["ece"],
            f"{report['ece_noise_floor']:.3f} (noise floor)",
            "mean gap of probability and frequency; a perfect one has the noise floor",
        ),
        Score(
            "Brier",
            report["brier"],
            f"{parts['uncertainty']:.3f} (base rate)",
            "mean squared distance from the truth, 0 is perfect; the sum of:",
        ),
        Score(
            "+ reliability",
            parts["reliability"],
            "0.000",
            "cost of probabilities that are off",
        ),
        Score(
            "- resolution",
            parts["resolution"],
            "0.000",
            "gain by telling structures apart",
        ),
        Score("+ uncertainty", parts["uncertainty"], "", "of the base rate alone"),
        Score("+ within bins", parts["within_bins"], "0.000", "rest inside the bins"),
    ]


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of the report for a terminal."""
    parts = report["brier_decomposition"]
    lines = [
        f"test: {report['structures']} structures in {report['groups']} groups, "
        f"{report['prevalence']:.3f} reliable",
        f"accuracy {report['accuracy']:.3f} "
        f"(majority class {report['majority_accuracy']:.3f})"
        f"  MCC {report['mcc']:.3f}  {f1_line(report)}  "
        f"AUROC {number(report['auroc'])}",
        f"ECE {report['ece']:.3f} (noise floor {report['ece_noise_floor']:.3f})"
        f"  Spearman(error, risk) {report['spearman']:.3f}",
        f"Brier {report['brier']:.3f} (base rate {parts['uncertainty']:.3f}; "
        f"reliability {parts['reliability']:.3f}, resolution "
        f"{parts['resolution']:.3f})",
    ]
    if text := one_kind(report):
        lines.append(text)
    if text := left_out(report):
        lines.append(text)
    if not math.isnan(report["outside_scope"]):
        lines.append(scope_line(report))
    if (atoms := report["atoms"]) is not None:
        lines.append(atom_line(atoms))
    lines.append("P(reliable) at least:  kept   of them right")
    lines += [
        f"{row['cutoff']:>20.2f}  {row['coverage']:>5.1%}  {share(row['precision']):>6}"
        for row in report["coverage"]
    ]
    return lines


def f1_line(report: Mapping[str, Any]) -> str:
    """Return F1 for each positive class; in the paper it is the unreliable class."""
    if "f1_unreliable" not in report:  # probe of an earlier version
        return f"F1 (reliable) {report['f1']:.3f}"
    return (
        f"F1 (unreliable, the paper's) {report['f1_unreliable']:.3f}  "
        f"F1 (reliable) {report['f1_reliable']:.3f}"
    )


def number(value: float | None) -> str:
    """Return a score as text; a phrase if it is None or NaN."""
    if value is None or math.isnan(value):
        return "not known (one kind only)"
    return f"{value:.3f}"


def one_kind(report: Mapping[str, Any]) -> str:
    """Return a sentence if one kind of structure is rare, else an empty text."""
    total, right = (
        report["structures"],
        round(report["prevalence"] * report["structures"]),
    )
    text = rare_class(np.arange(total) < right)
    return f"few of a kind: {text}; what is said of those is rough" if text else ""


def left_out(report: Mapping[str, Any]) -> str:
    """Return how many frames were left out for which defect; empty if none."""
    counts = report.get("excluded") or {}  # missing in probes of earlier versions
    listed = ", ".join(f"{count} {defect}" for defect, count in counts.items())
    return f"left out before scoring: {listed}" if listed else ""


def share(value: float) -> str:
    """Return a share as a percentage; "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.1%}"


def scope_line(report: Mapping[str, Any]) -> str:
    """Return the share outside the scope, and of wrong but trusted ones, as text."""
    text = f"outside the scope: {report['outside_scope']:.1%} of the structures"
    wrong = report["false_trust"]
    if not wrong:
        return f"{text}; none was trusted and wrong"
    return (
        f"{text}; of {wrong} that were trusted and wrong it tells "
        f"{report['false_trust_outside']:.0%}"
    )


def atom_line(atoms: Mapping[str, Any]) -> str:
    """Return the scores of the probabilities of single atoms as text."""
    return (
        f"single atoms: P(|ΔF_i| <= {atoms['boundary']:.4g} eV/Å) of {atoms['atoms']}, "
        f"AUROC {atoms['auroc']:.3f}, ECE {atoms['ece']:.3f} "
        f"(noise floor {atoms['ece_noise_floor']:.3f})"
    )


def findings(report: Mapping[str, Any]) -> list[str]:
    """Return the problems that a report shows, one sentence each."""
    found = _of_the_test(report)
    for whose, scored in (("", report), (" of single atoms", report["atoms"])):
        if scored is not None and _is_off(scored):
            found.append(
                f"the probabilities{whose} are off by more than chance explains (ECE "
                f"{scored['ece']:.3f}, noise floor {scored['ece_noise_floor']:.3f}): "
                "these structures differ from those that the probe was calibrated on"
            )
    if report["outside_scope"] > _OFTEN:
        found.append(
            f"{report['outside_scope']:.0%} of the structures lie outside the scope: "
            "their probabilities are extrapolated, and their verdict is SUSPECT at best"
        )
    if text := left_out(report):
        found.append(text)
    if report["unseen_elements"]:
        found.append(
            f"{report['unseen_elements']} further structures hold elements that the "
            "probe's labels lacked; they get no probability and are not scored"
        )
    return found


def _of_the_test(report: Mapping[str, Any]) -> list[str]:
    """Return problems of the test set: too few structures or groups, one class."""
    found = []
    if report["structures"] < FEWEST_STRUCTURES:
        found.append(
            f"{report['structures']} test structures are few: every score here is rough"
        )
    if math.isnan(report["auroc"]):
        found.append(
            "all test structures are of one class: nothing can be said of how well the "
            "probe tells them apart"
        )
    elif report["accuracy"] <= report["majority_accuracy"]:
        found.append(
            "at P = 0.5 the answers are no better than always naming the commoner class"
        )
    elif text := one_kind(report):
        found.append(text)
    if report.get("groups", FEWEST_TEST_GROUPS) < FEWEST_TEST_GROUPS:
        found.append(
            f"the structures come in {report['groups']} groups, fewer than "
            f"{FEWEST_TEST_GROUPS}: on further groups every score may be another"
        )
    return found


def _is_off(scored: Mapping[str, Any]) -> bool:
    floor = scored["ece_noise_floor"]
    # reports of earlier versions lack it: they assumed independent structures
    chance = scored.get("ece_chance", _FACTOR * floor)
    return bool(scored["ece"] > max(chance, floor + _MORE))
