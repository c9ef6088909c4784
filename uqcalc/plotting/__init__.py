"""Plots: every ``plot_...`` function takes ``ax=None`` and returns the Axes.

`plot_run` and `structure_figure` draw whole figures. Functions that take a history take
the events of a `uqcalc.Monitor` and what `uqcalc.read_log` returns.
"""

from __future__ import annotations

from uqcalc.plotting.structure import plot_atoms, plot_structure, structure_figure
from uqcalc.plotting.style import (
    COLOURS,
    INK,
    QUIET,
    SERIES,
    STYLE,
    axes_of,
    figure_bytes,
    letter_panels,
    save_figure,
    with_unit,
)
from uqcalc.plotting.timeline import (
    add_key,
    plot_energy_drift,
    plot_probability,
    plot_run,
    plot_signal,
    plot_temperature,
    plot_true_error,
    plot_verdicts,
)
from uqcalc.plotting.track import Track


__all__ = [
    "COLOURS",
    "INK",
    "QUIET",
    "SERIES",
    "STYLE",
    "Track",
    "add_key",
    "axes_of",
    "figure_bytes",
    "letter_panels",
    "plot_atoms",
    "plot_energy_drift",
    "plot_probability",
    "plot_run",
    "plot_signal",
    "plot_structure",
    "plot_temperature",
    "plot_true_error",
    "plot_verdicts",
    "save_figure",
    "structure_figure",
    "with_unit",
]
