"""An evaluation as one HTML page without external files and scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from uqcalc.evaluation.bysize import TWO_SIDED_COLUMNS, two_sided_rows
from uqcalc.evaluation.cardinfo import card_info
from uqcalc.evaluation.report import (
    COVERAGE_COLUMNS,
    MEMBER_COLUMNS,
    Part,
    coverage_rows,
    findings,
    member_rows,
    score_rows,
    whether_p_holds,
)
from uqcalc.evaluation.worst import viewer_parts, worst_rows
from uqcalc.probe.validity import validity
from uqcalc.showing import in_words, shown_in
from uqcalc.targets import TARGETS


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from uqcalc.evaluation.evaluation import Evaluation

_TEMPLATE = "page.html.jinja"


class _Figure(NamedTuple):
    title: str
    caption: str
    svg: str  # base64


def render(evaluation: Evaluation, warnings: Sequence[str] = ()) -> str:
    """Return the HTML page; all texts are escaped, except the scripts of packages.

    Parameters
    ----------
    evaluation : Evaluation
    warnings : sequence of str
        Messages of warnings, shown before the scores.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from uqcalc.plotting.style import page_style

    card, report = evaluation.probe.card, evaluation.report
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    template = files("uqcalc.evaluation").joinpath(_TEMPLATE)
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        style=Markup(page_style()),
        card=card,
        question=card.question.replace("<=", "≤"),
        report=report,
        target=TARGETS[card.target],
        boundary=in_words(card.boundary, card.unit),
        median_error=in_words(report["median_error"], card.unit, digits=3),
        holds=whether_p_holds(report),
        notes=[*warnings, *findings(report)],
        parts={part.name: score_rows(report, part) for part in Part},
        figures=_figures(evaluation),
        coverage_columns=COVERAGE_COLUMNS,
        coverage=coverage_rows(report),
        two_sided_columns=TWO_SIDED_COLUMNS,
        two_sided=two_sided_rows(
            evaluation.errors <= card.boundary, evaluation.probability
        ),
        guarantee=_capitalised(str(card.guarantee)),
        validity=_capitalised(validity(card)),
        member_columns=MEMBER_COLUMNS,
        members=member_rows(report.get("members", ())),
        structure_columns=_structure_columns(evaluation),
        extremes=_extremes(evaluation),
        card_rows=card_info(card).rows,
        viewer=viewer_parts(evaluation),
    )
    return text + "\n"


def _figures(evaluation: Evaluation) -> list[_Figure]:
    from uqcalc.evaluation.panels import draw_one, panels
    from uqcalc.plotting import figure_bytes

    return [
        _Figure(
            panel.title,
            panel.caption,
            base64.b64encode(figure_bytes(draw_one(panel), "svg")).decode(),
        )
        for panel in panels(evaluation).values()
    ]


def _extremes(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Return the tables of the worst structures."""
    tables = worst_rows(
        evaluation.errors, evaluation.probability, evaluation.probe.card.boundary
    )
    return [(title, _structures(evaluation, rows)) for title, rows in tables.items()]


def _structure_columns(evaluation: Evaluation) -> tuple[str, ...]:
    number = "test structure" if evaluation.tested.frames is None else "frame"
    error = f"error [{shown_in(evaluation.probe.card.unit)[0]}]"
    return (number, "group", "formula", error, "P", "scope")


def _structures(
    evaluation: Evaluation, rows: NDArray[np.int64]
) -> list[tuple[str, ...]]:
    tested = evaluation.tested
    _, factor = shown_in(evaluation.probe.card.unit)
    numbers = tested.frames or range(len(evaluation.errors))
    return [
        (
            str(numbers[i]),
            tested.groups[i],
            tested.formulas[i],
            f"{evaluation.errors[i] * factor:#.3g}",
            f"{evaluation.probability[i]:.3f}",
            "outside" if tested.outside[i] else "inside",
        )
        for i in rows
    ]


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
