"""The scores of a report as text, from one table, and problems that a report shows.

`SCORES` is the table. The terminal (`report_lines`), the page (`page.render`) and the
card (`cardinfo.card_info`) show its rows. A new score needs an entry in the report that
`uqcalc.statistics.scores.classification_report` returns, and one row in this table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from uqcalc.labels.setchecks import FEWEST_STRUCTURES, rare_class
from uqcalc.showing import in_words


FEWEST_TEST_GROUPS = 30
# A calibration error is significant if it exceeds the noise floor by this factor (used
# if the report lacks the chance level) and by this amount.
_FACTOR, _MORE = 1.5, 0.02
_OFTEN = 0.2  # share of right structures outside; by design about 0.06
_UNDEFINED = "not defined"


class Part(Enum):
    """Parts of a report; the value is the title."""

    STRUCTURES = "structures"
    BRIER = "Brier terms"
    SCOPE = "scope"
    GUARANTEE = "guarantee"
    ATOMS = "single atoms"


@dataclass(frozen=True, slots=True)
class Score:
    """A row of the table of scores.

    Attributes
    ----------
    part : Part
    key : str
        Entry of the report; a dot leads into a nested entry ("atoms.ece").
    name, meaning : str
    reference : str, float or None
        Value to compare with, as an entry of the report or as a number: the value
        without skill or, for the ECE, that of a perfect calibration.
    reference_name : str
    form : str
        Format of the value and of the reference, with the unit.
    optional : bool
        The row is left out if the value is NaN.
    """

    part: Part
    key: str
    name: str
    meaning: str
    reference: str | float | None = None
    reference_name: str = "chance"
    form: str = "{:z.3f}"
    optional: bool = False


SCORES = (
    Score(
        Part.STRUCTURES,
        "accuracy",
        "accuracy",
        "share of right answers, with the cutoff P = 0.5",
        "majority_accuracy",
        "majority class",
    ),
    Score(
        Part.STRUCTURES,
        "auroc",
        "AUROC",
        "probability that a right structure has a larger P than a wrong one; 1 is "
        "perfect",
        0.5,
    ),
    Score(
        Part.STRUCTURES,
        "auroc_at_median",
        "AUROC at the median",
        "the same where errors up to the median error of these structures are right",
        0.5,
    ),
    Score(
        Part.STRUCTURES,
        "mean_probability",
        "mean P",
        "mean of P(reliable); the share of reliable structures if P holds",
        "prevalence",
        "reliable",
    ),
    Score(
        Part.STRUCTURES,
        "spearman",
        "Spearman",
        "rank correlation of the true error and the risk 1 - P",
        0.0,
    ),
    Score(
        Part.STRUCTURES,
        "mcc",
        "MCC",
        "Matthews correlation of answer and truth, with the cutoff P = 0.5",
        0.0,
    ),
    Score(
        Part.STRUCTURES,
        "f1_unreliable",
        "F1 (unreliable)",
        "harmonic mean of precision and recall for unreliable structures, as in the "
        "paper on PROBE",
    ),
    Score(
        Part.STRUCTURES,
        "f1_reliable",
        "F1 (reliable)",
        "the same for reliable structures",
    ),
    Score(  # in reports of earlier versions
        Part.STRUCTURES, "f1", "F1 (reliable)", "the same for reliable structures"
    ),
    Score(
        Part.STRUCTURES,
        "ece",
        "ECE",
        "mean gap between probability and observed frequency; a perfectly calibrated "
        "probe has the noise floor",
        "ece_noise_floor",
        "noise floor",
    ),
    Score(
        Part.STRUCTURES,
        "brier",
        "Brier",
        "mean squared difference between probability and truth; 0 is perfect",
        "brier_decomposition.uncertainty",
        "base rate",
    ),
    Score(
        Part.BRIER,
        "brier_decomposition.reliability",
        "+ reliability",
        "cost of probabilities that differ from the frequencies",
        0.0,
        "perfect calibration",
    ),
    Score(
        Part.BRIER,
        "brier_decomposition.resolution",
        "- resolution",
        "gain from different probabilities for different structures",
        0.0,
    ),
    Score(
        Part.BRIER,
        "brier_decomposition.uncertainty",
        "+ uncertainty",
        "Brier score of the base rate for every structure",
    ),
    Score(
        Part.BRIER,
        "brier_decomposition.within_bins",
        "+ within bins",
        "remainder from differences inside the bins",
    ),
    Score(
        Part.SCOPE,
        "outside_scope",
        "outside the scope",
        "share of structures outside the limits of the calibration set",
        form="{:.1%}",
        optional=True,
    ),
    Score(
        Part.SCOPE,
        "right_outside",
        "right ones outside the scope",
        "share of the right structures with a P of RELIABLE that the scope makes "
        "SUSPECT; by design about 6 %",
        form="{:.1%}",
        optional=True,
    ),
    Score(
        Part.SCOPE,
        "false_trust",
        "trusted but wrong",
        "structures with a P of RELIABLE and an error above the boundary",
        form="{:d}",
    ),
    Score(
        Part.SCOPE,
        "false_trust_outside",
        "of these outside the scope",
        "share of the trusted but wrong structures that the scope makes SUSPECT",
        form="{:.0%}",
        optional=True,
    ),
    Score(
        Part.GUARANTEE,
        "guarantee.accepted",
        "accepted",
        "structures that the guarantee accepts, one of each group",
        form="{:d}",
    ),
    Score(
        Part.GUARANTEE,
        "guarantee.share",
        "wrong among them",
        "share of accepted structures with an error above the tolerance",
        "guarantee.risk",
        "guaranteed at most",
        form="{:.1%}",
    ),
    Score(Part.ATOMS, "atoms.atoms", "atoms", "atoms of the test set", form="{:d}"),
    Score(
        Part.ATOMS,
        "atoms.boundary",
        "boundary",
        "an atom is reliable if |ΔF_i| is at most this",
        form="{:.4g} eV/Å",
    ),
    Score(
        Part.ATOMS,
        "atoms.prevalence",
        "reliable",
        "share of reliable atoms",
        form="{:.1%}",
    ),
    Score(Part.ATOMS, "atoms.auroc", "AUROC", "as for structures", 0.5),
    Score(Part.ATOMS, "atoms.spearman", "Spearman", "as for structures", 0.0),
    Score(
        Part.ATOMS,
        "atoms.ece",
        "ECE",
        "as for structures",
        "atoms.ece_noise_floor",
        "noise floor",
    ),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A score of one report as text; ``reference`` is empty without one."""

    score: Score
    value: str
    reference: str

    def __str__(self) -> str:
        beside = f" ({self.reference})" if self.reference else ""
        return f"{self.value}{beside}"


def score_rows(report: Mapping[str, Any], *parts: Part) -> list[Row]:
    """Return the scores of a report as text, in the order of `SCORES`.

    Scores that the report lacks are left out, for example in a report of an earlier
    version. NaN and None give "not defined".

    Parameters
    ----------
    report : mapping
        `Evaluation.report`, or the report of a card.
    *parts : Part
        Parts to return; by default all.
    """
    return list(_rows(report, parts or tuple(Part)))


def _rows(report: Mapping[str, Any], parts: tuple[Part, ...]) -> Iterator[Row]:
    for score in SCORES:
        if score.part not in parts:
            continue
        found, value = _entry(report, score.key)
        text = _text(value, score.form)
        if not found or (score.optional and text == _UNDEFINED):
            continue
        reference: object = score.reference
        if isinstance(reference, str):
            _, reference = _entry(report, reference)
        beside = _text(reference, score.form)
        named = f"{score.reference_name} {beside}" if beside != _UNDEFINED else ""
        yield Row(score, text, named)


def _entry(report: Mapping[str, Any], key: str) -> tuple[bool, object]:
    """Return whether the report has an entry, and the entry."""
    value: object = report
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return False, None
        value = value[name]
    return True, value


def _text(value: object, form: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return _UNDEFINED
    if math.isnan(value):
        return _UNDEFINED
    return form.format(int(value) if form == "{:d}" else value)


def one_line(rows: list[Row]) -> str:
    """Return rows as one line: names, values and references, with commas."""
    return ", ".join(f"{row.score.name} {row}" for row in rows)


COVERAGE_COLUMNS = ("P(reliable) at least", "kept", "right among the kept")


def coverage_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return cutoff, share of kept structures, and share of right ones among these."""
    return [
        (
            _text(row["cutoff"], "{:.2f}"),
            _text(row["coverage"], "{:.1%}"),
            _text(row["precision"], "{:.1%}"),
        )
        for row in report.get("coverage", ())
    ]


def size_of_test_set(report: Mapping[str, Any]) -> str:
    """Return the size of the test set and the share of reliable structures."""
    groups = f" in {report['groups']} groups" if "groups" in report else ""
    return (
        f"{report['structures']} structures{groups}, {report['prevalence']:.1%} "
        "reliable"
    )


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of a report for a terminal."""
    lines = [f"test set: {size_of_test_set(report)}"]
    if text := whether_p_holds(report):
        lines.append(text)
    for part in Part:
        if rows := score_rows(report, part):
            lines.append(f"{part.value}:")
            lines += [
                f"  {row.score.name:<27}{row.value:>12}  {row.reference}".rstrip()
                for row in rows
            ]
    lines += members_lines(report.get("members", ()))
    if len(regimes := report.get("regimes", ())) > 1:
        lines.append("by regime:")
        lines += [f"  {row['regime']:<18}{_regime_line(row)}" for row in regimes]
    first, second, third = COVERAGE_COLUMNS
    lines.append(f"{first}  {second:>6}  {third}")
    lines += [
        f"{cutoff:>{len(first)}}  {kept:>6}  {right:>{len(third)}}"
        for cutoff, kept, right in coverage_rows(report)
    ]
    return [*lines, *(f"note: {text}" for text in findings(report))]


# Heads of the columns of `member_rows`.
MEMBER_COLUMNS = (
    "signal",
    "quantity",
    "CRPS",
    "Gaussian CRPS",
    "error without spread",
    "spread/skill",
    "NLL",
    "Spearman",
)


def member_rows(found: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the entries of `MemberScores.to_dict` as rows of text."""
    return [
        (
            f"{row['signal']} ({row['members']} members)",
            row["quantity"],
            *(
                in_words(row[name], row["unit"], digits=3)
                for name in ("crps", "crps_gaussian", "mae")
            ),
            *(
                "not defined" if value is None or math.isnan(value) else f"{value:.2f}"
                for value in (row[n] for n in ("spread_skill", "nll", "spearman"))
            ),
        )
        for row in found
    ]


def members_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the scores of distributions for a terminal; empty without any."""
    lines = []
    for signal, quantity, *values in member_rows(found):
        lines.append(f"{signal}, {quantity}:")
        pairs = zip(MEMBER_COLUMNS[2:], values, strict=True)
        lines += [f"  {name:<27}{value:>16}" for name, value in pairs]
    return lines


def _regime_line(row: Mapping[str, Any]) -> str:
    auroc = "-" if row["auroc"] is None else f"{row['auroc']:.3f}"
    return (
        f"{row['structures']:>6} structures, {row['prevalence']:.0%} right at a mean P "
        f"of {row['mean']:.2f}, AUROC {auroc}, ECE {row['ece']:.3f}"
    )


def findings(report: Mapping[str, Any]) -> list[str]:
    """Return the problems that a report shows, one sentence each."""
    found = _of_the_test_set(report)
    if not report.get("holds", {}).get("holds", True):
        found.append(whether_p_holds(report))
    found += _of_the_guarantee(report)
    for whose, scored in (("", report), (" of single atoms", report["atoms"])):
        if scored is not None and _is_miscalibrated(scored):
            found.append(
                f"the probabilities{whose} differ from the observed frequencies by "
                f"more than chance explains (ECE {scored['ece']:.3f}, noise floor "
                f"{scored['ece_noise_floor']:.3f}): the test structures probably "
                "differ from the calibration set"
            )
    if report.get("right_outside", math.nan) > _OFTEN:
        found.append(
            f"{report['right_outside']:.0%} of the right structures with a P of "
            "RELIABLE are outside the scope, and their level is SUSPECT at best: these "
            "structures differ from the labels; add labels like them"
        )
    if counts := report.get("excluded"):  # missing in probes of earlier versions
        listed = ", ".join(f"{count} {defect}" for defect, count in counts.items())
        found.append(f"frames left out before scoring: {listed}")
    if report["unseen_elements"]:
        found.append(
            f"{report['unseen_elements']} more structures contain elements that the "
            "labels of the probe lack: they have no probability and are not scored"
        )
    return found


def _of_the_test_set(report: Mapping[str, Any]) -> list[str]:
    """Return problems of the test set: too few structures or groups, one class."""
    found = []
    total = report["structures"]
    reliable = np.arange(total) < round(report["prevalence"] * total)
    if total < FEWEST_STRUCTURES:
        found.append(
            f"the test set has {total} structures, fewer than {FEWEST_STRUCTURES}: "
            "every score is uncertain"
        )
    if math.isnan(report["auroc"]):
        found.append(
            "all test structures are of one class: no score shows how well the probe "
            "separates reliable from unreliable structures"
        )
    elif report["accuracy"] <= report["majority_accuracy"]:
        found.append(
            "with the cutoff P = 0.5 the probe is no more accurate than the answer "
            "that every structure is of the more frequent class"
        )
    elif text := rare_class(reliable):
        found.append(
            f"of the test structures {text}: the scores of this class are uncertain"
        )
    if report.get("groups", FEWEST_TEST_GROUPS) < FEWEST_TEST_GROUPS:
        found.append(
            f"the test set has {report['groups']} groups, fewer than "
            f"{FEWEST_TEST_GROUPS}: on new groups every score may differ"
        )
    return found


def whether_p_holds(report: Mapping[str, Any]) -> str:
    """Return whether P agrees with these frames, as a sentence; empty if not known."""
    held = report.get("holds")
    if held is None:
        return ""
    text = (
        f"{report['prevalence']:.0%} of the structures are right, at a mean P of "
        f"{report['mean_probability']:.2f}"
    )
    if own := report.get("seen"):
        text += f" ({own} of them are labels of the probe itself)"
    if held["holds"]:
        return f"P holds on these frames: {text}"
    more = ", more than systems usually differ" if held["beyond_systems"] else ""
    remedy = "adapt the probe with 25 of them (uqcalc adapt)"
    if not held.get("adaptable", True):  # reports of earlier versions do not say so
        remedy = (
            "start from the original probe, with some of these frames among the labels "
            "(uqcalc adapt, uqcalc fit --prior)"
        )
    return f"P does not hold on these frames: {text}{more}; {remedy}"


def _of_the_guarantee(report: Mapping[str, Any]) -> list[str]:
    made = report.get("guarantee")
    if made is None or not made["accepted"] or made["low"] <= made["risk"]:
        return []
    return [
        f"the guarantee of the card does not hold on these frames: {made['wrong']} of "
        f"{made['accepted']} accepted structures are wrong (95 % interval "
        f"{made['low']:.0%} to {made['high']:.0%}), it allows {made['risk']:.0%}"
    ]


def _is_miscalibrated(scored: Mapping[str, Any]) -> bool:
    floor = scored["ece_noise_floor"]
    # reports of earlier versions lack it: they assumed independent structures
    chance = scored.get("ece_chance", _FACTOR * floor)
    return bool(scored["ece"] > max(chance, floor + _MORE))
