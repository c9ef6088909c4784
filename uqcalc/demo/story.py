"""Results of the demonstration: one picture and a few lines of text for each run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uqcalc.demo.runs import TIMESTEP_FS, DemoRun


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture(run: DemoRun, title: str) -> Figure:
    """Draw what happened on one time axis, and the least reliable atoms at the end."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from uqcalc import plotting

    history, card = plotting.Track.of(run.monitor.history), run.card
    rows = ["T", "P", *([] if run.errors is None else ["truth"]), "verdict"]
    heights = [0.16 if name == "verdict" else 1.0 for name in rows]
    with mpl.rc_context(rc=plotting.STYLE):
        figure, axes = plt.subplot_mosaic(
            [[name, "atoms"] for name in rows],
            figsize=(12, 6.6),
            height_ratios=heights,
            width_ratios=[1.4, 1],
        )
        figure.suptitle(title, fontsize=15, x=0.012, ha="left")
        plotting.plot_temperature(history, axes["T"])
        plotting.plot_probability(history, card.suspect, card.unreliable, axes["P"])
        if run.errors is not None:
            times = [frame.info["step"] * TIMESTEP_FS / 1000 for frame in run.frames]
            plotting.plot_true_error(times, run.errors, card.boundary, axes["truth"])
        plotting.plot_verdicts(history, axes["verdict"])
        plotting.add_key(figure, history)
        _finish_axes(run, [axes[name] for name in rows])
        plotting.plot_structure(run.frames[-1], axes["atoms"])
        axes["atoms"].set_title("last step; the least reliable atoms are named")
    return figure


def _finish_axes(run: DemoRun, axes: list[Any]) -> None:
    from uqcalc.plotting import INK

    end = run.monitor.history[-1].time_fs or 0.0
    for axis in axes:
        axis.set_xlim(0, end / 1000 * 1.04)
        axis.spines[["top", "right"]].set_visible(False)
        if run.monitor.halted:
            axis.axvline(end / 1000, color=INK, lw=1.4)
    for axis in axes[:-1]:
        axis.set_xticklabels([])
    if run.monitor.halted:
        axes[0].annotate(
            "halted",
            (end / 1000, 1.0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            xytext=(0, 3),
            ha="center",
            va="bottom",
            fontsize=11,
        )
    axes[-1].set(xlabel="time [ps]", ylabel="verdict")
    axes[-1].yaxis.label.set(rotation=0, ha="right", va="center")


def describe_molecule(run: DemoRun, output: Path) -> list[str]:
    """Return lines about the run: system, reason of the end, true error."""
    monitor, card = run.monitor, run.card
    last = monitor.history[-1]
    halt = f"Halted: {monitor.reason}." if monitor.halted else "It was not halted."
    return [
        "Watched aspirin under Langevin dynamics, heated from 300 K: "
        f"{last.step} steps of {TIMESTEP_FS} fs.",
        "The question at every step: is the RMS force error within "
        f"{card.boundary * 1000:.0f} meV/Å?",
        halt,
        f"Temperature at the last step: {last.temperature_K:.0f} K; worst atoms "
        f"(indices): {', '.join(map(str, last.worst_atoms))}.",
        *_truth_lines(run),
        f"Files: {output / 'aspirin.png'} (open this first), aspirin.jsonl (log), "
        "aspirin.xyz (annotated), aspirin_flagged.xyz.",
    ]


def _truth_lines(run: DemoRun) -> list[str]:
    errors = np.array([]) if run.errors is None else run.errors
    beyond = np.flatnonzero(errors > run.card.boundary)
    known = errors[np.isfinite(errors)] * 1000
    lost = len(errors) - len(known)
    text = (
        f"True error (against GFN2-xTB, every tenth frame): {known[0]:.0f} meV/Å at "
        f"the start, {known[-1]:.0f} meV/Å at the last step; "
    )
    if len(beyond):
        text += (
            f"first above the boundary at step {run.frames[beyond[0]].info['step']}."
        )
    else:
        text += "never above the boundary."
    marked = f"The reference did not converge on {lost} frames; they are marked."
    return [text, marked] if lost else [text]


def report_line(run: DemoRun, page: Path) -> str:
    """Write the report of a run beside its log; return its path, or what is missing.

    Without the packages of the extra ``report`` there is no report.
    """
    from uqcalc.errors import MissingExtraError
    from uqcalc.viewing.report import write_report

    calculator = run.monitor.dynamics.atoms.calc
    try:
        write_report(page.with_suffix(".jsonl"), page, calculator=calculator)
    except MissingExtraError as error:
        return f"No report was written: {error}"
    return f"Report: {page} (open it in a browser)."


def describe_crystal(run: DemoRun, output: Path) -> list[str]:
    """Return the same lines for the crystal, which has no reference energies."""
    monitor, last = run.monitor, run.frames[-1]
    began = run.frames[0].get_volume() / len(last)
    ended = last.get_volume() / len(last)
    halt = f"Halted: {monitor.reason}" if monitor.halted else "It was not halted"
    return [
        "Then rutile TiO₂ with CHGNet (a universal potential), compressed at 300 K: "
        f"{monitor.history[-1].step} steps of 1 fs; boundary "
        f"{run.card.boundary * 1000:.0f} meV/Å against PBE.",
        f"{halt}; from {began:.2f} to {ended:.2f} Å³/atom.",
        "No DFT was run for this part: it shows the verdict, but not whether the "
        "verdict is right.",
        f"Files: {output / 'crystal.png'}, crystal.jsonl, crystal.xyz, "
        "crystal_flagged.xyz.",
    ]
