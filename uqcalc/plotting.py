"""Plots: every function takes ``ax=None`` and returns the Axes it drew on."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import ArrayLike

from uqcalc.files.writing import whole
from uqcalc.records import Level


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from uqcalc.records import Event


# Colour-blind safe: blue is fine, sand is a question, red is a stop.
COLOURS = {
    Level.RELIABLE: "#2c6e9e",
    Level.SUSPECT: "#d9a441",
    Level.UNRELIABLE: "#b3312c",
}
INK, QUIET = "#222222", "#8a8a8a"


def axes_of(ax: Axes | None) -> Axes:
    """Return ``ax``, or the axes of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def save_figure(
    figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160
) -> None:
    """Write a picture, whole or not at all, and close it."""
    import matplotlib.pyplot as plt

    with whole(path) as partial:
        figure.savefig(partial, dpi=dpi)
    plt.close(figure)


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """Return a picture as "svg" or "png" without a date in it, and close it."""
    import matplotlib.pyplot as plt

    # only SVG knows a date; two runs on the same data should give the same file
    metadata = {"Date": None} if kind == "svg" else None
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    plt.close(figure)
    return buffer.getvalue()


def plot_verdicts(history: Sequence[Event], ax: Axes | None = None) -> Axes:
    """Draw one strip: the level of every step, on the time axis in ps.

    A step that was not judged is left blank.
    """
    axes = axes_of(ax)
    from matplotlib.colors import ListedColormap

    times = _times(history)
    step = times[-1] - times[-2] if len(times) > 1 else 1.0
    edges = np.append(times, times[-1] + step)
    judged = [np.nan if e.level is None else float(e.level) for e in history]
    levels = np.ma.masked_invalid([judged])
    colours = ListedColormap([COLOURS[level] for level in Level])
    axes.pcolormesh(edges, [0, 1], levels, cmap=colours, vmin=0, vmax=len(Level) - 1)
    axes.set(ylim=(0, 1), yticks=[], xlim=(edges[0], edges[-1]))
    return axes


def plot_probability(
    history: Sequence[Event],
    suspect: float,
    unreliable: float,
    ax: Axes | None = None,
) -> Axes:
    """Draw P(reliable) against time, with the two cutoffs of the policy."""
    axes = axes_of(ax)
    values = np.array([e.values.get("probe_reliability", np.nan) for e in history])
    axes.plot(_times(history), values, color=INK, lw=0.9)
    axes.axhspan(0, unreliable, color=COLOURS[Level.UNRELIABLE], alpha=0.13, lw=0)
    axes.axhspan(unreliable, suspect, color=COLOURS[Level.SUSPECT], alpha=0.16, lw=0)
    axes.set(ylim=(0, 1.02), ylabel="P(reliable)")
    return axes


def plot_temperature(history: Sequence[Event], ax: Axes | None = None) -> Axes:
    """Draw the instantaneous temperature in K against time."""
    axes = axes_of(ax)
    temperatures = np.array([e.temperature_K for e in history], dtype=float)
    axes.plot(_times(history), temperatures, color=QUIET, lw=0.9)
    axes.set(ylabel="T [K]")
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


def plot_atoms(
    atoms: Atoms,
    weights: ArrayLike,
    ax: Axes | None = None,
    *,
    colour_map: str = "YlOrRd",
) -> Axes:
    """Draw a structure, each atom shaded by its weight, shape (atoms,).

    Weights are shown as multiples of the even share: 1 is an atom that matters as
    much as the average. The view is onto the plane of largest extent.
    """
    axes = axes_of(ax)
    import matplotlib as mpl
    from matplotlib.patches import Circle

    positions = _principal_view(atoms)
    share = np.asarray(weights, dtype=float)
    share = share / share.mean()
    scale = mpl.colors.Normalize(0, max(2.0, float(np.nanmax(share, initial=0))))
    colours = mpl.cm.ScalarMappable(norm=scale, cmap=colour_map)
    radii = np.minimum(covalent_radii[atoms.numbers], 1.2) * 0.6
    _draw_bonds(axes, atoms, positions)
    for i in np.argsort(positions[:, 2]):
        x, y, z = positions[i]
        face: Any = colours.to_rgba(share[i]) if np.isfinite(share[i]) else "white"
        axes.add_patch(Circle((x, y), radii[i], fc=face, ec=INK, lw=0.9, zorder=10 + z))
        symbol = "" if atoms.numbers[i] == 1 else chemical_symbols[atoms.numbers[i]]
        dark = mpl.colors.rgb_to_hsv(mpl.colors.to_rgb(face))[2] < 0.75
        style: dict[str, Any] = {"ha": "center", "va": "center"}
        style["color"] = "white" if dark else INK
        axes.text(x, y, symbol, zorder=10.01 + z, fontsize=8, **style)
    pad = radii.max() + 0.3
    low, high = positions[:, :2].min(axis=0) - pad, positions[:, :2].max(axis=0) + pad
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.axis("off")
    strip = axes.inset_axes((0.2, -0.07, 0.6, 0.025))
    bar = axes.figure.colorbar(colours, cax=strip, orientation="horizontal")
    bar.set_label("weight (average over the atoms: 1)", fontsize=9)
    bar.outline.set_visible(False)
    return axes


def _times(history: Sequence[Event]) -> np.ndarray:
    return np.array(
        [e.step if e.time_fs is None else e.time_fs / 1000 for e in history],
        dtype=float,
    )


def _principal_view(atoms: Atoms) -> np.ndarray:
    """Return positions with the two widest directions in the plane, (atoms, 3)."""
    centred = atoms.positions - atoms.positions.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    rows = axes if len(axes) == 3 else np.eye(3)
    return np.asarray(centred @ rows.T)


def _draw_bonds(axes: Axes, atoms: Atoms, positions: np.ndarray) -> None:
    reach = covalent_radii[atoms.numbers]
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    bonded = distance < 1.25 * (reach[:, None] + reach[None])
    for i, j in np.argwhere(np.triu(bonded, k=1)):
        depth = min(positions[i, 2], positions[j, 2])
        axes.plot(
            positions[[i, j], 0],
            positions[[i, j], 1],
            color="#555555",
            lw=2.2,
            zorder=9.9 + depth,
            solid_capstyle="round",
        )
