"""An evaluation as one HTML page without external files."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from uqcalc.evaluation.words import (
    atom_line,
    findings,
    scope_line,
    score_table,
    share,
)
from uqcalc.probe.card import Guarantee
from uqcalc.targets import TARGETS


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from uqcalc.evaluation.evaluation import Evaluation

_WORST = 10
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 64rem; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 .3rem }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.2rem 0 .5rem }
p, li { max-width: 46rem }
.quiet, figcaption, footer { color: #666; font-size: .88rem }
.mind { border-left: 4px solid #d9a441; background: #fbf6ea; padding: .6rem 1rem }
.mind ul { margin: 0; padding-left: 1.1rem }
.figures { display: grid; gap: 1.4rem;
  grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)) }
figure { margin: 0 } figure img { width: 100%; height: auto }
table { border-collapse: collapse; font-size: .92rem }
th, td { text-align: left; padding: .2rem 1.2rem .2rem 0; vertical-align: top;
  border-bottom: 1px solid #e6e6e6; overflow-wrap: anywhere }
th { font-weight: 600; color: #666 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums;
  overflow-wrap: normal }
footer { margin-top: 2.5rem }
@media print { body { margin: 0; font-size: 12px } figure { break-inside: avoid } }
"""


def render(seen: Evaluation, warnings: Sequence[str] = ()) -> str:
    """Return the HTML page.

    Parameters
    ----------
    seen : Evaluation
    warnings : sequence of str
        Messages of warnings, shown before the scores.
    """
    card = seen.probe.card
    title = f"Probe report: {card.question}"
    body = [
        f"<h1>{escape(card.question)}</h1>",
        *_opening(seen),
        *_mind([*warnings, *findings(seen.report)]),
        *_scores(seen),
        *_figures(seen),
        *_kept(seen),
        *_scope(seen),
        *_atoms(seen),
        *_promise(seen),
        *_worst(seen),
        *_card(seen),
        f"<footer>uqcalc {escape(card.uqcalc_version or 'of no stated version')}"
        "</footer>",
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style></head>",
            "<body>",
            *body,
            "</body>",
            "</html>\n",
        ]
    )


def _opening(seen: Evaluation) -> list[str]:
    card, report = seen.probe.card, seen.report
    limit = f"{card.boundary:.4g} {card.unit}"
    return [
        _paragraph(
            f"For every structure this probe says how probable it is that the "
            f"{TARGETS[card.target].meaning} of the potential is at most {limit}. From "
            f"P = {card.suspect:g} on a structure is RELIABLE, below it SUSPECT, below "
            f"P = {card.unreliable:g} UNRELIABLE."
        ),
        _paragraph(
            f"Scored on {report['structures']} structures in {report['groups']} groups "
            f"that it was not fitted on; {report['prevalence']:.1%} of them are within "
            f"the boundary, and the median error is {report['median_error']:.3g} "
            f"{card.unit}."
        ),
        _paragraph(f"Potential: {card.fingerprint}", "quiet"),
    ]


def _mind(texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return [_heading("What to mind"), f'<div class="mind"><ul>{items}</ul></div>']


def _scores(seen: Evaluation) -> list[str]:
    rows = [
        (score.name, _number(score.value), score.beside, score.meaning)
        for score in score_table(seen.report)
    ]
    return [
        _heading("Scores, and what no skill would give"),
        _table(("score", "probe", "without skill", "meaning"), rows, numbers=(1,)),
    ]


def _figures(seen: Evaluation) -> list[str]:
    from uqcalc.evaluation.panels import draw_one, panels
    from uqcalc.plotting import figure_bytes

    shown = []
    for panel in panels(seen).values():
        drawn = base64.b64encode(figure_bytes(draw_one(panel), "svg")).decode()
        shown.append(
            f'<figure><img alt="{escape(panel.title)}" '
            f'src="data:image/svg+xml;base64,{drawn}">'
            f"<figcaption>{escape(panel.caption)}</figcaption></figure>"
        )
    return [_heading("Pictures"), f'<div class="figures">{"".join(shown)}</div>']


def _kept(seen: Evaluation) -> list[str]:
    rows = [
        (f"{row['cutoff']:.2f}", f"{row['coverage']:.1%}", share(row["precision"]))
        for row in seen.report["coverage"]
    ]
    head = ("P(reliable) at least", "kept", "of them right")
    return [_heading("What a cutoff keeps"), _table(head, rows, numbers=(0, 1, 2))]


def _scope(seen: Evaluation) -> list[str]:
    scope, report = seen.probe.card.scope, seen.report
    told = [_heading("Scope")]
    if scope is None:
        return [
            *told,
            _paragraph("This probe does not know what it was calibrated on."),
        ]
    inside = f"{scope.level:.0%} of structures like the labelled ones are inside"
    return [
        *told,
        _paragraph(
            f"{_sentence(scope_line(report))}. By design {inside}. Trusted means P of "
            f"at least {seen.probe.card.suspect:g}; a structure outside is SUSPECT at "
            "best, whatever its probability."
        ),
    ]


def _atoms(seen: Evaluation) -> list[str]:
    atoms = seen.report["atoms"]
    if atoms is None:
        return []
    return [
        _heading("Single atoms"),
        _paragraph(
            f"{_sentence(atom_line(atoms))}; {atoms['prevalence']:.1%} are within it. "
            f"Spearman correlation of error and risk: {_number(atoms['spearman'])}. An "
            "atom's probability depends on its own surroundings alone."
        ),
    ]


def _promise(seen: Evaluation) -> list[str]:
    made = seen.probe.card.promise
    text = (
        "None was made. uqcalc certify makes one on frames of their own: that of one "
        "structure from each new group, if accepted, at most a chosen share is wrong."
    )
    if made is not None:
        text = f"{_sentence(str(Guarantee.from_dict(made)))}."
    return [_heading("Guarantee"), _paragraph(text)]


def _worst(seen: Evaluation) -> list[str]:
    """Return tables of the wrong structures with the largest P, and largest errors."""
    wrong = np.flatnonzero(seen.errors > seen.probe.card.boundary)
    trusted = wrong[np.argsort(-seen.probability[wrong], kind="stable")]
    largest = np.argsort(-seen.errors, kind="stable")
    told: list[str] = []
    for words, rows in (
        ("Wrong ones that the probe trusted most", trusted),
        ("Largest errors", largest),
    ):
        if len(rows):
            told += [_heading(words), _structures(seen, rows[:_WORST])]
    return told


def _structures(seen: Evaluation, rows: NDArray[np.int64]) -> str:
    tested, unit = seen.tested, seen.probe.card.unit
    head = ("test structure", "group", "formula", f"error [{unit}]", "P", "scope")
    cells = [
        (
            str(i),
            tested.groups[i],
            tested.formulas[i],
            f"{seen.errors[i]:.3g}",
            f"{seen.probability[i]:.3f}",
            "outside" if tested.outside[i] else "inside",
        )
        for i in rows
    ]
    return _table(head, cells, numbers=(0, 3, 4))


def _card(seen: Evaluation) -> list[str]:
    from uqcalc.evaluation.cardfacts import card_facts

    rows = card_facts(seen.probe.card).rows
    return [
        _heading("The probe's card, with its scores when it was fitted"),
        _table((), rows),
    ]


def _heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def _paragraph(text: str, kind: str = "") -> str:
    opened = f'p class="{kind}"' if kind else "p"
    return f"<{opened}>{escape(text)}</p>"


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        opened = (
            f'{tag} class="n"' if i in numbers else tag for i in range(len(cells))
        )
        return "".join(
            f"<{start}>{escape(cell)}</{tag}>"
            for start, cell in zip(opened, cells, strict=True)
        )

    shown = [f"<tr>{line('td', row)}</tr>" for row in rows]
    if head:
        shown.insert(0, f"<tr>{line('th', head)}</tr>")
    return f"<table>{''.join(shown)}</table>"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:z.3f}"
