"""The timeline of a run: its curves with their limits, its verdicts and its halts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from uqcalc.plotting.style import (
    COLOURS,
    INK,
    NOT_JUDGED,
    QUIET,
    SERIES,
    STYLE,
    WORDS,
    axes_of,
    with_unit,
)
from uqcalc.plotting.track import Mark, Signal, Track
from uqcalc.records import Event, Level
from uqcalc.showing import in_words, shown_in


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    History = Track | Iterable[Event | Mapping[str, Any]]

# Drawn steps: more than a picture has columns of pixels.
MOST_DRAWN = 4000
_MARKS = {
    "halt": ("halted", INK, "-"),
    "warning": ("warned", INK, ":"),
    "rewind": ("rewound", SERIES[3], "--"),
    "asked": ("asked the reference", SERIES[2], ":"),
}
_MOST_NAMED = 4  # marks with a text of their own
_NAME_WIDTH = 0.2  # of such a text, as a share of the time axis


def plot_verdicts(history: History, ax: Axes | None = None) -> Axes:
    """Draw one strip: the level of every step, on the time axis in ps.

    A step that was not judged is left blank.

    Parameters
    ----------
    history : iterable of Event, records of `uqcalc.read_log`, or Track
    ax : Axes, optional
    """
    axes = axes_of(ax)
    from matplotlib.colors import ListedColormap

    track = Track.of(history)
    times = track.x
    step = times[-1] - times[-2] if len(times) > 1 else 1.0
    edges = np.append(times, times[-1] + step)
    levels = np.ma.masked_invalid([track.level])
    colours = ListedColormap([COLOURS[level] for level in Level])
    axes.set_facecolor("white")
    axes.pcolormesh(edges, [0, 1], levels, cmap=colours, vmin=0, vmax=len(Level) - 1)
    axes.set(ylim=(0, 1), yticks=[], xlim=(edges[0], edges[-1]))
    return axes


def plot_probability(
    history: History,
    suspect: float,
    unreliable: float,
    ax: Axes | None = None,
) -> Axes:
    """Draw P(reliable) against time, with the two cutoffs of the policy.

    The names of the levels are in the bands below the cutoffs.
    """
    axes = axes_of(ax)
    track = Track.of(history)
    missing = np.full(len(track), np.nan)
    values = track.values.get("probe_reliability", missing)
    axes.plot(track.x, values, color=INK, lw=0.9)
    _bands(axes, suspect, unreliable)
    axes.set(ylim=(0, 1.02), ylabel="P(reliable)")
    return axes


def plot_temperature(history: History, ax: Axes | None = None) -> Axes:
    """Draw the instantaneous temperature in K against time."""
    axes = axes_of(ax)
    track = Track.of(history)
    axes.plot(track.x, track.temperature_K, color=QUIET, lw=0.9)
    axes.set(ylabel="T [K]")
    return axes


def plot_energy_drift(history: History, ax: Axes | None = None) -> Axes:
    """Draw the change of the total energy since the first step in meV/atom.

    A thermostat changes it on purpose; the label then says "change", not "drift".
    """
    axes = axes_of(ax)
    track = Track.of(history)
    axes.plot(track.x, track.drift_meV, color=QUIET, lw=0.9)
    axes.set(ylabel=f"{energy_name(track)}\n[meV/atom]")
    return axes


def energy_name(track: Track) -> str:
    """Return what `Track.drift_meV` is for these dynamics."""
    return "energy drift" if track.conserves else "energy change"


def plot_signal(signal: Signal, x: ArrayLike, ax: Axes | None = None) -> Axes:
    """Draw the risk of one signal (`Track.signals`), with its two limits as lines."""
    axes = axes_of(ax)
    unit, factor = shown_in(signal.unit)
    axes.plot(x, signal.values * factor, color=INK, lw=0.9)
    limits = {Level.SUSPECT: signal.suspect, Level.UNRELIABLE: signal.unreliable}
    for level, limit in limits.items():
        if math.isfinite(limit):
            axes.axhline(limit * factor, color=COLOURS[level], lw=1, ls=(0, (5, 2)))
            _name(axes, limit * factor, f"{level.name} above", WORDS[level], "bottom")
    top = [v for v in (np.nanmax(signal.values, initial=0), signal.suspect)
           if math.isfinite(v)]  # fmt: skip
    axes.set_ylim(0, 1.15 * factor * max(*top, 1e-9))
    axes.set_ylabel(with_unit(signal.name.replace("_", " "), unit))
    return axes


def plot_true_error(
    times: ArrayLike, errors: ArrayLike, boundary: float, ax: Axes | None = None
) -> Axes:
    """Draw true RMS force errors (eV/Å) at recomputed frames, against time in ps.

    Frames whose reference did not converge are NaN and are marked at the top.
    """
    axes = axes_of(ax)
    t, e = np.asarray(times, dtype=float), np.asarray(errors, dtype=float) * 1000
    good = e <= boundary * 1000
    bad = np.isfinite(e) & ~good
    axes.scatter(t[good], e[good], s=13, color=COLOURS[Level.RELIABLE], zorder=3)
    axes.scatter(t[bad], e[bad], s=13, color=COLOURS[Level.UNRELIABLE], zorder=3)
    lost = ~np.isfinite(e)
    if lost.any():
        top = axes.get_xaxis_transform()
        axes.scatter(
            t[lost], np.full(lost.sum(), 0.95), marker="x", s=18, c=QUIET, transform=top
        )
    axes.axhline(boundary * 1000, color=INK, lw=0.8, ls=(0, (4, 3)))
    axes.set(ylabel="true force error\n[meV/Å]", ylim=(0, None))
    return axes


def plot_run(history: History, title: str = "") -> Figure:
    """Draw the timeline of a run in one figure.

    From the top: temperature, change of the total energy, P of each probe with the
    bands of its levels, each further signal with its limits, and the strip of verdicts
    with its key. Halts, warnings, rewinds and calls of a reference are vertical lines.
    Panels without data are left out. More than 4000 steps are thinned
    (`Track.thinned`).

    Parameters
    ----------
    history : iterable of Event, records of `uqcalc.read_log`, or Track
    title : str
        By default the formula and the dynamics.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ValueError
        If there is no step.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    track = Track.of(history).thinned(MOST_DRAWN)
    if not len(track):
        msg = "history must have at least one step, got none; run the dynamics first"
        raise ValueError(msg)
    panels = _panels(track)
    with mpl.rc_context(rc=STYLE):
        figure, grid = plt.subplots(
            len(panels) + 1,
            figsize=(8, 1.5 + 1.35 * len(panels)),
            height_ratios=[1.0] * len(panels) + [0.16],
            sharex=True,
            squeeze=False,
        )
        axes = list(grid[:, 0])
        for draw, ax in zip(panels, axes, strict=False):
            draw(ax)
        plot_verdicts(track, axes[-1])
        _finish(figure, axes, track, title)
    return figure


def _panels(track: Track) -> list[Any]:
    def shown(column: np.ndarray) -> bool:
        return bool(np.isfinite(column).any())

    panels: list[Any] = []
    if shown(track.temperature_K):
        panels.append(lambda ax: plot_temperature(track, ax))
    if shown(track.drift_meV):
        panels.append(lambda ax: plot_energy_drift(track, ax))
    elif shown(track.energy_eV):
        panels.append(lambda ax: _plot_energy(track, ax))
    for probability in track.probabilities.values():
        panels.append(lambda ax, p=probability: _plot_probability(p, track, ax))
    panels += [
        lambda ax, s=signal: plot_signal(s, track.x, ax)
        for signal in track.signals
        if shown(signal.values)
    ]
    return panels


def _plot_energy(track: Track, axes: Axes) -> None:
    axes.plot(track.x, track.energy_eV, color=QUIET, lw=0.9)
    axes.set(ylabel="energy [eV]")


def _plot_probability(found: Signal, track: Track, axes: Axes) -> None:
    axes.plot(track.x, found.values, color=INK, lw=0.9)
    if math.isfinite(found.suspect):
        _bands(axes, found.suspect, found.unreliable)
    of = found.name.removeprefix("probe").strip("_").replace("_", " ")
    axes.set(ylim=(0, 1.02), ylabel="P(reliable)" + (f"\n{of}" if of else ""))


def _bands(axes: Axes, suspect: float, unreliable: float) -> None:
    """Colour and name the bands of P below the two cutoffs."""
    for level, low, high in (
        (Level.UNRELIABLE, 0.0, unreliable),
        (Level.SUSPECT, unreliable, suspect),
    ):
        if high > low:
            axes.axhspan(low, high, color=COLOURS[level], alpha=0.15, lw=0)
            _name(axes, (low + high) / 2, level.name, WORDS[level])
    if suspect < 0.95:
        _name(axes, (1 + suspect) / 2, Level.RELIABLE.name, WORDS[Level.RELIABLE])


def _name(axes: Axes, y: float, text: str, colour: str, va: str = "center") -> None:
    """Write a name at the left end, where the curves of a run change little."""
    from matplotlib.patheffects import withStroke

    axes.annotate(
        text,
        (0.008, y),
        xycoords=axes.get_yaxis_transform(),
        va=va,
        fontsize=7.5,
        color=colour,
        path_effects=[withStroke(linewidth=2.2, foreground="white")],
        annotation_clip=True,
    )


def _finish(figure: Figure, axes: list[Axes], track: Track, title: str) -> None:
    end = track.x[-1] + 0.03 * max(track.x[-1] - track.x[0], 1e-9)
    axes[-1].set(xlim=(track.x[0], end), xlabel=with_unit(*track.axis))
    axes[-1].set_ylabel("verdict", rotation=0, ha="right", va="center")
    axes[-1].spines[["left", "bottom"]].set_visible(False)
    figure.align_ylabels(axes[:-1])
    rows: list[float] = []
    for number, mark in enumerate(track.marks):
        _draw_mark(axes, track, mark)
        if number < _MOST_NAMED:
            _name_mark(axes[0], track, mark, rows)
    figure.suptitle(title or title_of(track), x=0.01, ha="left", fontsize=12)
    add_key(figure, track)


def _draw_mark(axes: list[Axes], track: Track, mark: Mark) -> None:
    """Draw one vertical line through all panels."""
    _, colour, dashes = _MARKS[mark.kind]
    x = track.place(mark.step)
    for ax in axes:
        ax.axvline(x, color=colour, lw=1.2, ls=dashes)
    if mark.to_step is not None:
        for ax in axes:
            ax.axvspan(track.place(mark.to_step), x, color=colour, alpha=0.08, lw=0)


def _name_mark(ax: Axes, track: Track, mark: Mark, rows: list[float]) -> None:
    """Write the name of a mark above its line, in the lowest row with room for it.

    ``rows`` has the end of the last name in each row, in the unit of the axis.
    """
    word, colour, _ = _MARKS[mark.kind]
    x, span = track.place(mark.step), track.x[-1] - track.x[0]
    left = x < track.x[0] + span / 2
    start = x if left else x - _NAME_WIDTH * span
    free = (number for number, end in enumerate(rows) if end <= start)
    row = next(free, len(rows))
    rows[row : row + 1] = [start + _NAME_WIDTH * span]
    ax.annotate(
        f"{word} at step {mark.step}",
        (x, 1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        xytext=(2 if left else -2, 2 + 11 * row),
        ha="left" if left else "right",
        va="bottom",
        fontsize=8.5,
        color=colour,
    )


def add_key(figure: Figure, track: Track) -> None:
    """Explain the colours of the verdicts, with the number of steps of each level."""
    from matplotlib.patches import Patch

    counts = {level: int(np.sum(track.level == level)) for level in Level}
    whole = len(track) == track.total
    patches = [
        Patch(fc=COLOURS[level], label=f"{level.name} ({n})" if whole else level.name)
        for level, n in counts.items()
    ]
    if np.isnan(track.level).any():
        patches.append(Patch(fc="white", ec=NOT_JUDGED, label="not judged"))
    figure.legend(handles=patches, loc="outside lower left", ncols=len(patches))
    if not whole:
        figure.text(
            0.99, 0.005, f"{len(track)} of {track.total} steps drawn", ha="right",
            va="bottom", fontsize=7.5, color=QUIET,
        )  # fmt: skip


def title_of(track: Track) -> str:
    """Return formula, dynamics, and the question that the probe answers, in a line."""
    run = track.run
    parts = [track.formula, str(run.get("dynamics") or "")]
    probe = run.get("probe") or {}
    if "boundary" in probe and "target" in probe:
        within = in_words(probe["boundary"], probe.get("unit", "eV/Å"), digits=3)
        parts.append(f"{probe['target'].replace('_', ' ')} within {within}?")
    return (
        textwrap.shorten(", ".join(filter(None, parts)), 110, placeholder=" …") or "Run"
    )
