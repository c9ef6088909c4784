"""The report of runs as one HTML page without external files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from uqcalc.learning.selection import EVENT_STEPS
from uqcalc.plotting.style import page_style
from uqcalc.plotting.viewer import as_script, page_script, viewer_elements
from uqcalc.records import Level
from uqcalc.viewing.curves import (
    MOST_POINTS,
    atoms_figure,
    enrichment_figure,
    figure_json,
    plotly_script,
    timeline_figure,
)
from uqcalc.viewing.frames import atom_image
from uqcalc.viewing.gathering import Gathered, Run
from uqcalc.viewing.trouble import Trouble, ranked
from uqcalc.viewing.words import facts, next_steps, notes_of, tone, verdict


if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_EVENTS = 20
_EVENT_COLUMNS = ("from", "to", "level", "worst step", "P", "why", "worst atoms")


def render(found: Gathered) -> str:
    """Return the page; all texts are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    folder = files("uqcalc.viewing")
    template = (folder / "report.html.jinja").read_text(encoding="utf-8")
    figures = _figures(found)
    text = environment.from_string(template).render(
        title=_title(found.runs),
        style=Markup(page_and_own_style()),
        levels=[level.name for level in Level],
        overview=[(r.name, r.track.formula, verdict(r)) for r in found.runs],
        runs=[_section(run) for run in found.runs],
        event_steps=EVENT_STEPS,
        event_columns=_EVENT_COLUMNS,
        next=next_steps(found.runs),
        version=version("uqcalc"),
        figures={k: Markup(figure_json(v)) for k, v in figures.items()},
        heights={k: v.layout.height for k, v in figures.items()},
        saved=Markup(json.dumps([run.saved for run in found.runs])),
        plotly=Markup(as_script(plotly_script())),
        script=Markup(page_script() + script_text("report.js")),
        elements=found.elements,
        where_text=_where(found),
        **_structures(found),
    )
    return text + "\n"


def page_and_own_style() -> str:
    """Return the style of all pages, and that of reports and live views."""
    mine = files("uqcalc.viewing") / "report.css"
    return page_style() + mine.read_text(encoding="utf-8")


def script_text(name: str) -> str:
    """Return one of the scripts beside this module."""
    return (files("uqcalc.viewing") / name).read_text(encoding="utf-8")


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        parts = [runs[0].name, runs[0].track.formula]
        return ": ".join(part for part in parts if part)
    return ", ".join(run.name for run in runs)


def _section(run: Run) -> dict[str, Any]:
    listed = ranked(run.troubles)[:MOST_EVENTS]
    image = atom_image(run.seen.columns)
    return {
        "name": run.name,
        "verdict": verdict(run),
        "tone": tone(run),
        "facts": facts(run),
        "notes": notes_of(run),
        "drawn": _drawn(run),
        "saved": bool(run.saved),
        "events": [_event_row(t) for t in sorted(listed, key=lambda t: t.first)],
        "more_events": len(run.troubles) - len(listed),
        "no_events": _no_events(run),
        "image": "" if image is None else _image_words(run, image),
        "about": run.about,
    }


def _drawn(run: Run) -> str:
    drawn = len(run.track.thinned(MOST_POINTS))
    if drawn == run.track.total:
        return f"All {drawn} logged steps are drawn."
    return (
        f"{drawn} of {run.track.total} logged steps are drawn: every change of the "
        "level (evenly spaced ones if there are very many), the step with the lowest P "
        "in each of many intervals, and evenly spaced steps."
    )


def _no_events(run: Run) -> str:
    judged = sum(run.levels.values())
    if not judged:
        return "No step was judged, so nothing is known about the reliability."
    return f"None: all {judged} judged steps were RELIABLE."


def _event_row(trouble: Trouble) -> tuple[str, ...]:
    p = trouble.reliability
    return (
        str(trouble.first),
        str(trouble.last),
        trouble.level.name,
        str(trouble.worst),
        "" if math.isnan(p) else f"{p:.2f}",
        "; ".join(trouble.reasons),
        " ".join(map(str, trouble.atoms)),
    )


def _image_words(run: Run, image: tuple[list[int], list[int], Any]) -> str:
    steps, atoms, _ = image
    frames, every = len(run.seen.columns), len(run.seen.columns[0][1])
    text = f"{len(steps)} of {frames} frames with values of the atoms"
    if len(atoms) < every:
        text += f", and the {len(atoms)} of {every} atoms with the lowest mean P"
    return text + ". Frames between two columns were not saved."


def _figures(found: Gathered) -> dict[str, Figure]:
    figures = {}
    for number, run in enumerate(found.runs, start=1):
        figures[f"timeline-{number}"] = timeline_figure(run.track)
        image = atom_image(run.seen.columns)
        if image is not None:
            steps, atoms, table = image
            x = [run.track.place(step) for step in steps]
            symbols = run.symbols
            # the frames may be of another structure than the log's formula
            named = len(symbols) > max(atoms, default=0)
            names = [f"{symbols[i]}{i}" if named else str(i) for i in atoms]
            figures[f"atoms-{number}"] = atoms_figure(x, run.track.axis, names, table)
    if found.elements:
        figures["elements"] = enrichment_figure(found.elements)
        figures["motifs"] = enrichment_figure(found.motifs)
    return figures


def _where(found: Gathered) -> str:
    counts = [run.seen.motifs for run in found.runs]
    frames = sum(len(c.frames) for c in counts)
    first = counts[0]
    return (
        f"From {frames} frames with a probability of each atom: atoms with P below "
        f"{first.unreliable:g} are unreliable, with P of at least {first.reliable:g} "
        "reliable. Labels are missing most for motifs far above 1. The bars are "
        "95 % intervals over blocks of neighbouring frames; where the whole bar lies "
        "above 1, the point is red. Where one side has no atom of a motif, half an "
        "atom is counted, and the ratio is a limit only."
    )


def _structures(found: Gathered) -> dict[str, Any]:
    data = found.dataset
    return {
        "viewer": "" if data is None else Markup(viewer_elements(data)),
        "map_text": found.map_text,
        "colour_text": found.colour_text,
        "worst": found.worst,
        "structures_text": found.structures_text,
    }
