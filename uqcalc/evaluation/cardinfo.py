"""The card of a probe as text, for `uqcalc info` and for the HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ase.data import chemical_symbols

from uqcalc.evaluation.report import (
    COVERAGE_COLUMNS,
    Part,
    coverage_rows,
    one_line,
    score_rows,
    size_of_test_set,
)
from uqcalc.geometry.environments import FEWEST
from uqcalc.probe.card import Card
from uqcalc.probe.validity import validity
from uqcalc.showing import in_words


@dataclass(frozen=True, slots=True)
class Info:
    """What `uqcalc info` prints: rows of (name, text), and optionally a table."""

    title: str
    rows: list[tuple[str, str]]
    caption: str = ""
    columns: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()


def card_info(card: Card) -> Info:
    """Return what a probe predicts, for which potential, and its scores, as text."""
    symbols = " ".join(chemical_symbols[z] for z in card.elements)
    boundary = in_words(card.boundary, card.unit, both=True)
    rule = card.training.get("boundary_rule", "")
    if not rule and card.percentile is not None:
        rule = f"percentile {card.percentile:g} of its training errors"
    if rule:
        boundary += f", {rule}"
    rows = [
        ("predicts", card.question),
        ("boundary", boundary),
        *_boundary_rows(card),
        ("for the backbone", card.fingerprint),
        ("elements", symbols or "not stated"),
        ("atoms per structure", " to ".join(map(str, card.sizes)) or "not stated"),
        (
            "cutoffs",
            f"SUSPECT below {card.suspect:g}, UNRELIABLE below {card.unreliable:g}",
        ),
        ("calibration", _calibration(card)),
        *_scope_rows(card),
        *_training_rows(card.training),
        *_score_rows(card.report),
        *_regime_rows(card.report),
        ("network", _network(card)),
        ("uqcalc", f"{card.uqcalc_version or 'not stated'} (schema {card.schema})"),
    ]
    rows.insert(2, ("valid", validity(card)))
    if card.guarantee is not None:
        rows.insert(2, ("guarantee", str(card.guarantee)))
    if card.description:
        rows.insert(0, ("description", card.description))
    coverage = tuple(coverage_rows(card.report))
    return Info("Probe", rows, "On its test set", COVERAGE_COLUMNS, coverage)


def _boundary_rows(card: Card) -> list[tuple[str, str]]:
    rows = []
    if known := card.calibration.boundaries:
        low, high = (in_words(x, card.unit, digits=3) for x in (known[0], known[-1]))
        text = f"any from {low} to {high}"
        rows.append(("other boundaries", text))
    if card.atom_boundary is not None:
        text = f"P(|ΔF_i| <= {card.atom_boundary:.4g} eV/Å) of each atom"
        rows.append(("single atoms", text))
    if card.offsets:
        rows.append(("energy offsets", f"of {len(card.offsets)} elements removed"))
    return rows


def _calibration(card: Card) -> str:
    found = card.calibration
    text = f"slope {found.slope:.3f}, intercept {found.intercept:.3f} of the logit"
    if found.knots:
        text += f", bent at {len(found.knots)} points (isotonic)"
    return text + (f", {found.labels} held-out labels" if found.labels else "")


def _scope_rows(card: Card) -> list[tuple[str, str]]:
    scope = card.scope
    if scope is None:
        return []
    text = (
        f"feature distance to {scope.distance:.3g} ({scope.level:.0%} of left-out "
        f"groups), {scope.sizes} atoms"
    )
    if limits := scope.mean_limits:
        text += f", mean over atoms to {limits[0]:.3g}"
        if scope.mean_slope:
            fewest, most = scope.element_counts
            noun = "element" if fewest == 1 else "elements"
            text += f" ({fewest} {noun}) down to {limits[1]:.3g} ({most} or more)"
    if scope.charges:
        text += f", total charges {', '.join(f'{q:+d}' for q in scope.charges)}"
    return [("scope", text)]


def _training_rows(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if sets := training.get("structures"):
        groups = training.get("groups") or {}
        parts = [
            f"{n} {name}" + (f" in {groups[name]} groups" if groups.get(name) else "")
            for name, n in sets.items()
        ]
        rows.append(("structures", ", ".join(parts)))
    if excluded := training.get("excluded"):
        parts = [f"{n} {defect}" for defect, n in excluded.items()]
        rows.append(("excluded", ", ".join(parts)))
    if added := training.get("prior"):
        checksum = added["checksum"] or "not known"
        rows.append(("prior", f"{added['statement']} (checksum {checksum})"))
    if paths := training.get("paths"):
        parts = [
            f"{row['path']} {row['weight']:.2f} (AUROC {row['auroc']:.3f})"
            for row in paths
        ]
        rows.append(("weight of each path", ", ".join(parts)))
    rows += _limit_rows(training)
    if recipe := training.get("recipe"):
        rows.append(("recipe", ", ".join(f"{k} {v}" for k, v in recipe.items())))
    return rows


def _limit_rows(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what `uqcalc.Flags` compares a structure with."""
    environments = training.get("environments")
    if environments is None:
        text = "not stored: coordination and regime of a structure are not compared"
        return [("limits of the labels", text)]
    counts = sorted(training["regimes"].items(), key=lambda row: -row[1])
    enough = sum(row["structures"] >= FEWEST for row in environments.values())
    rows = [
        ("regimes of the labels", ", ".join(f"{n} {name}" for name, n in counts)),
        (
            "coordination",
            f"known of {enough} elements with at least {FEWEST} structures",
        ),
    ]
    if (hottest := training.get("temperature_K")) is not None:
        rows.append(("temperature", f"labels up to {hottest:.0f} K"))
    return rows


def _score_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the scores: one row each for those of structures, one for other parts."""
    rows = []
    if "structures" in report:
        text = size_of_test_set(report)
        if unseen := report.get("unseen_elements"):
            text += f"; {unseen} more with unseen elements, not scored"
        rows.append(("test set", text))
    rows += [(row.score.name, str(row)) for row in score_rows(report, Part.STRUCTURES)]
    for part in (Part.BRIER, Part.SCOPE, Part.ATOMS):
        if found := score_rows(report, part):
            rows.append((f"test set: {part.value}", one_line(found)))
    return rows


def _regime_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (part["regime"], f"{size_of_test_set(part)}, {one_line(score_rows(part))}")
        for part in report.get("regimes", ())
    ]


def _network(card: Card) -> str:
    charges = ", reads charges" if card.charges else ""
    return f"{card.architecture}, for {card.feature_dim} features{charges}"
