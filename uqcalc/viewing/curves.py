"""Curves of the pages, as figures of plotly; every foreign text in them is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uqcalc.errors import MissingExtraError
from uqcalc.plotting.style import COLOURS, SERIES, WORDS, with_unit
from uqcalc.plotting.timeline import energy_name
from uqcalc.plotting.track import Signal, Track
from uqcalc.plotting.viewer import in_script
from uqcalc.records import Level
from uqcalc.showing import shown_in
from uqcalc.viewing.motifs import Enrichment


if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# The page replaces these two by the colours of its light or dark style.
INK, QUIET = "#222222", "#8a8a8a"
# Points of one curve: more than a screen has columns of pixels.
MOST_POINTS = 3000
_MARKS = {"halt": "halted", "warning": "warned", "rewind": "rewound", "asked": "asked"}
_MOST_MARKS = 60
_PANEL, _STRIP, _REST = 135, 30, 110  # pixels


def figure_json(figure: Figure) -> str:
    """Return a figure as JSON that can stand in a script element."""
    return in_script(str(figure.to_json()))


def _plotly() -> tuple[Any, Any]:
    try:
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingExtraError("a report", "plotly", "report") from error
    return go, make_subplots


def plotly_script() -> str:
    """Return the JavaScript of plotly, from its package.

    Raises
    ------
    MissingExtraError
        If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("a report", "plotly", "report") from error
    return str(get_plotlyjs())


def timeline_figure(track: Track) -> Figure:
    """Return the timeline of a run, as `uqcalc.plotting.plot_run` draws it."""
    go, make_subplots = _plotly()
    drawn = track.thinned(MOST_POINTS)
    panels = _panels(drawn)
    heights = [_PANEL] * len(panels) + [_STRIP]
    figure = make_subplots(
        rows=len(heights),
        shared_xaxes=True,
        row_heights=[h / sum(heights) for h in heights],
        vertical_spacing=0.028,
    )
    for row, (name, unit, values, found) in enumerate(panels, start=1):
        curve = go.Scatter(
            x=drawn.x,
            y=values,
            mode="lines",
            line={"color": INK if found else QUIET, "width": 1.2},
            name=escape(name),
            showlegend=False,
            hovertemplate=f"%{{y:.4g}} {escape(unit)}<extra>{escape(name)}</extra>",
        )
        figure.add_trace(curve, row, 1)
        figure.update_yaxes(title_text=_broken(with_unit(name, unit)), row=row, col=1)
        if found is not None:
            draw = _draw_bands if found.name in drawn.probabilities else _draw_limits
            draw(figure, row, found)
    _draw_strip(figure, drawn, len(heights))
    _draw_marks(figure, drawn)
    figure.update_xaxes(
        title_text=with_unit(*drawn.axis), row=len(heights), col=1, ticks="outside"
    )
    return _laid_out(figure, sum(heights) + _REST, strip=True)


def _panels(track: Track) -> list[tuple[str, str, NDArray[np.float64], Signal | None]]:
    rows: list[tuple[str, str, NDArray[np.float64], Signal | None]] = [
        ("T", "K", track.temperature_K, None)
    ]
    if np.isfinite(track.drift_meV).any():
        rows.append((energy_name(track), "meV/atom", track.drift_meV, None))
    else:
        rows.append(("energy", "eV", track.energy_eV, None))
    for found in track.probabilities.values():
        of = found.name.removeprefix("probe").strip("_").replace("_", " ")
        name = f"P(reliable) {of}".strip()
        rows.append((name, "", found.values, found))
    for found in track.signals:
        unit, factor = shown_in(found.unit)
        scaled = found._replace(
            values=found.values * factor,
            suspect=found.suspect * factor,
            unreliable=found.unreliable * factor,
        )
        rows.append((found.name.replace("_", " "), unit, scaled.values, scaled))
    return [row for row in rows if np.isfinite(row[2]).any()]


def _broken(label: str) -> str:
    """Put the unit of a long label into a second line."""
    text = escape(label)
    return text.replace(" [", "<br>[") if len(text) > 8 else text


def _draw_bands(figure: Figure, row: int, found: Signal) -> None:
    """Colour and name the bands of P below its two cutoffs."""
    for level, low, high in (
        (Level.UNRELIABLE, 0.0, found.unreliable),
        (Level.SUSPECT, found.unreliable, found.suspect),
        (Level.RELIABLE, found.suspect, 1.0),
    ):
        if not high > low:
            continue
        if level is not Level.RELIABLE:
            figure.add_hrect(
                low,
                high,
                fillcolor=COLOURS[level],
                opacity=0.16,
                line_width=0,
                layer="below",
                row=row,
                col=1,
            )
        _write_band(figure, row, (low + high) / 2, level.name, level)
    figure.update_yaxes(range=[0, 1.03], row=row, col=1)


def _draw_limits(figure: Figure, row: int, found: Signal) -> None:
    """Draw the limits of a risk as lines, if the curve comes near them."""
    highest = 1.5 * np.nanmax(found.values)
    for level, limit in (
        (Level.SUSPECT, found.suspect),
        (Level.UNRELIABLE, found.unreliable),
    ):
        if math.isfinite(limit) and limit <= highest:
            line = {"color": COLOURS[level], "dash": "dash", "width": 1.2}
            figure.add_hline(limit, line=line, row=row, col=1)
            _write_band(figure, row, limit, f"{level.name} above", level)
    figure.update_yaxes(rangemode="tozero", row=row, col=1)


def _write_band(figure: Figure, row: int, y: float, text: str, level: Level) -> None:
    """Write the name of a level at the left end of a panel."""
    number = "" if row == 1 else str(row)
    figure.add_annotation(
        x=0.004,
        xref=f"x{number} domain",
        xanchor="left",
        y=y,
        yref=f"y{number}",
        yanchor="middle" if text == level.name else "bottom",
        text=text,
        font={"size": 10, "color": WORDS[level]},
        showarrow=False,
    )


def _draw_strip(figure: Figure, track: Track, row: int) -> None:
    """Draw the levels as one strip, and their names as the key."""
    go, _ = _plotly()
    colours = [COLOURS[level] for level in Level]
    scale = [
        [(k + end) / len(colours), colour]
        for k, colour in enumerate(colours)
        for end in (0, 1)
    ]
    names = [None if math.isnan(v) else Level(int(v)).name for v in track.level]
    strip = go.Heatmap(
        x=track.x,
        z=track.level[None],
        customdata=[names],
        hovertemplate="%{customdata}<extra></extra>",
        colorscale=scale,
        zmin=-0.5,
        zmax=len(colours) - 0.5,
        showscale=False,
    )
    figure.add_trace(strip, row, 1)
    for level in Level:
        key = {"symbol": "square", "size": 11, "color": COLOURS[level]}
        figure.add_trace(
            go.Scatter(x=[None], y=[None], mode="markers", marker=key, name=level.name),
            row,
            1,
        )
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, row=row, col=1)


def _draw_marks(figure: Figure, track: Track) -> None:
    for mark in track.marks[-_MOST_MARKS:]:
        x = track.place(mark.step)
        figure.add_vline(
            x, line={"color": INK, "width": 1.3, "dash": _dash(mark.kind)}, row="all"
        )
        if mark.to_step is not None:
            figure.add_vrect(
                track.place(mark.to_step), x, fillcolor=SERIES[3], opacity=0.1,
                line_width=0, row="all",
            )  # fmt: skip
        left = x < (track.x[0] + track.x[-1]) / 2
        figure.add_annotation(
            x=x,
            y=1,
            yref="y domain",
            xref="x",
            text=f"{_MARKS[mark.kind]} at step {mark.step}",
            hovertext=escape(mark.reason[:300]),
            showarrow=False,
            xanchor="left" if left else "right",
            yanchor="bottom",
            font={"size": 11},
        )


def _dash(kind: str) -> str:
    return "solid" if kind == "halt" else "dot"


def _laid_out(figure: Figure, height: int, *, strip: bool = False) -> Figure:
    figure.update_layout(
        height=height,
        template="none",
        margin={"l": 68, "r": 12, "t": 24, "b": 74 if strip else 44},
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="x",
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.18)", zeroline=False)
    figure.update_yaxes(
        gridcolor="rgba(128,128,128,0.18)", zeroline=False, title_standoff=6, nticks=4
    )
    return figure


def atoms_figure(
    x: Sequence[float],
    axis: tuple[str, str],
    names: Sequence[str],
    table: NDArray[np.float32],
) -> Figure:
    """Return the image of P of each atom over time, (atoms, frames)."""
    go, _ = _plotly()
    ends = [COLOURS[level] for level in reversed(Level)]
    image = go.Heatmap(
        x=np.asarray(x, dtype=float),
        y=[escape(name) for name in names],
        z=np.asarray(table, dtype=np.float32),
        zmin=0,
        zmax=1,
        colorscale=[[k / 2, colour] for k, colour in enumerate(ends)],
        colorbar={"title": {"text": "P(reliable)"}, "thickness": 12, "len": 0.9},
        hovertemplate="%{y}: P %{z:.2f} at %{x:.4g}<extra></extra>",
    )
    figure = _laid_out(go.Figure(image), int(min(max(12 * len(names), 220), 700)) + 80)
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(title_text=with_unit(*axis), showgrid=False)
    figure.update_yaxes(
        title_text="atom", autorange="reversed", showgrid=False, type="category",
        nticks=40,
    )  # fmt: skip
    return figure


def enrichment_figure(rows: Sequence[Enrichment], most: int = 15) -> Figure:
    """Return the enrichments as points with their intervals on a logarithmic axis."""
    go, _ = _plotly()
    chosen = list(rows[:most])
    ratio = np.array([row.ratio for row in chosen])
    low = np.array([row.low for row in chosen])
    high = np.array([row.high for row in chosen])
    known = bool(np.isfinite(low).all())
    points = go.Scatter(
        x=ratio,
        y=[escape(row.name) for row in chosen],
        mode="markers",
        marker={"size": 8, "color": [_enriched(row) for row in chosen]},
        error_x=None if not known else {
            "type": "data", "symmetric": False, "array": np.maximum(high - ratio, 0),
            "arrayminus": np.maximum(ratio - low, 0), "thickness": 1.3, "color": QUIET,
        },
        customdata=[[row.unreliable, row.reliable] for row in chosen],
        hovertemplate="%{y}: %{x:.2f}-fold<br>%{customdata[0]} unreliable, "
        "%{customdata[1]} reliable atoms<extra></extra>",
    )  # fmt: skip
    figure = _laid_out(go.Figure(points), 26 * max(len(chosen), 3) + 90)
    figure.add_vline(1.0, line={"color": QUIET, "dash": "dash", "width": 1})
    figure.update_layout(hovermode="closest", showlegend=False)
    figure.update_xaxes(
        type="log", title_text="share among unreliable / among reliable atoms",
        dtick=1 if _decades(ratio) > 1.5 else "D2", tickformat=".3~g",
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", type="category", nticks=most + 1)
    return figure


def _decades(ratios: NDArray[np.float64]) -> float:
    return float(np.log10(ratios.max() / ratios.min())) if len(ratios) else 0.0


def _enriched(row: Enrichment) -> str:
    """Return red where the whole interval lies above 1, blue below, else grey."""
    if row.low > 1:
        return COLOURS[Level.UNRELIABLE]
    return COLOURS[Level.RELIABLE] if row.high < 1 else QUIET
