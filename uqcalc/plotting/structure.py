"""A structure with its cell and bonds, each atom shaded by one quantity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.build.tools import rotation_matrix
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import ArrayLike, NDArray

from uqcalc.geometry.drawn import drawn_bonds
from uqcalc.plotting.style import (
    COLOURS,
    INK,
    QUIET,
    STYLE,
    axes_of,
    shown_formula,
    with_unit,
)
from uqcalc.records import Level


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


WORST = 5  # atoms that are named
_SYMBOLS_TO = 80  # atoms of a structure whose symbols are all written
_REACH = 0.35  # Å, how far the cell's corners stand from the frame


@dataclass(frozen=True, slots=True)
class Shade:
    """One quantity of the atoms of an annotated frame.

    Attributes
    ----------
    key : str
        Name of the array in the frame.
    words, unit : str
    limits : (float, float) or None
        Range of the colours; None for 0 to the largest value.
    low_is_bad : bool
    """

    key: str
    words: str
    unit: str = ""
    limits: tuple[float, float] | None = None
    low_is_bad: bool = False


SHADES = {
    "reliability": Shade(
        "probe_reliabilities",
        "P(force of the atom is reliable)",
        "",
        (0.0, 1.0),
        low_is_bad=True,
    ),
    "importance": Shade("probe_importance", "attention on the atom (average: 1)"),
    "force_delta": Shade("force_deltas", "Force Delta of the atom", "eV/Å"),
}


def shades_of(atoms: Atoms) -> tuple[str, ...]:
    """Return the names in `SHADES` that a frame has values of."""
    return tuple(name for name, shade in SHADES.items() if shade.key in atoms.arrays)


def shade_values(atoms: Atoms, shade: str) -> NDArray[np.float64]:
    """Return one quantity of the atoms, (atoms,), in the unit of its `Shade`.

    The importance is given in multiples of the even share.

    Raises
    ------
    ValueError
        If the frame lacks it.
    """
    chosen = SHADES.get(shade)
    if chosen is None or chosen.key not in atoms.arrays:
        msg = (
            f"shade must be one of {list(shades_of(atoms))}, the quantities of this "
            f"frame, got {shade!r}; annotate the frame first (uqcalc annotate)"
        )
        raise ValueError(msg)
    values = np.asarray(atoms.arrays[chosen.key], dtype=float).reshape(len(atoms), -1)
    found: NDArray[np.float64] = (
        values[:, 0] if values.shape[1] == 1 else np.linalg.norm(values, axis=1)
    )
    return found * len(atoms) if shade == "importance" else found


def worst_atoms(atoms: Atoms, shade: str, count: int = WORST) -> list[int]:
    """Return the indices of the atoms with the worst values, worst first.

    NaN is worst.
    """
    values = shade_values(atoms, shade)
    risk = -values if SHADES[shade].low_is_bad else values
    order = np.argsort(-np.nan_to_num(risk, nan=np.inf), kind="stable")
    return [int(i) for i in order[:count]]


def plot_structure(
    atoms: Atoms,
    ax: Axes | None = None,
    *,
    shade: str | None = None,
    worst: int = WORST,
) -> Axes:
    """Draw an annotated structure, each atom shaded by one quantity.

    The cell is drawn, and a bond through its faces as two stubs. Element and index
    label the ``worst`` atoms. The strip below names the quantity.

    Parameters
    ----------
    atoms : Atoms
        A frame of `uqcalc.annotate` or a flagged one.
    ax : Axes, optional
    shade : {"reliability", "importance", "force_delta"}, optional
        By default the first that the frame has; none is shaded if it has none.
    worst : int

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the frame lacks the quantity.
    """
    axes = axes_of(ax)
    known = shades_of(atoms)
    if shade is None and not known:
        _draw(axes, atoms, ["#cfcfcf"] * len(atoms), [])
        return axes
    name = shade or known[0]
    values, chosen = shade_values(atoms, name), SHADES.get(name)
    if chosen is None:
        return axes
    scale = _Scale.of(values, chosen)
    _draw(axes, atoms, scale.colours(values), worst_atoms(atoms, name, worst))
    scale.draw_strip(axes, with_unit(chosen.words, chosen.unit))
    return axes


def structure_figure(
    atoms: Atoms, *, shade: str | None = None, worst: int = WORST, title: str = ""
) -> Figure:
    """Draw `plot_structure` in a figure of its own, with a title."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    with mpl.rc_context(rc=STYLE):
        figure, ax = plt.subplots(figsize=(6.4, 6.4))
        plot_structure(atoms, ax, shade=shade, worst=worst)
        name = title or shown_formula(str(atoms.symbols))
        figure.suptitle(name, x=0.01, ha="left", fontsize=12)
    return figure


def plot_atoms(
    atoms: Atoms,
    weights: ArrayLike,
    ax: Axes | None = None,
    *,
    colour_map: str = "YlOrRd",
) -> Axes:
    """Draw a structure, each atom shaded by its weight, shape (atoms,).

    Weights are shown as multiples of the even share: 1 is an atom that matters as
    much as the average. The view is onto the plane of largest extent; that of a
    periodic structure is onto its cell. `plot_structure` draws annotated frames.
    """
    axes = axes_of(ax)
    share = np.asarray(weights, dtype=float)
    share = share / share.mean()
    scale = _Scale(colour_map, 0.0, max(2.0, float(np.nanmax(share, initial=0))))
    _draw(axes, atoms, scale.colours(share), [])
    scale.draw_strip(axes, "weight (average over the atoms: 1)")
    return axes


@dataclass(frozen=True, slots=True)
class _Scale:
    """Colours of a range of values."""

    colour_map: str | Colormap
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64], shade: Shade) -> _Scale:
        from matplotlib.colors import LinearSegmentedColormap

        low, high = shade.limits or (0.0, float(np.nanmax(values, initial=0)) or 1.0)
        if not shade.low_is_bad:
            return cls("YlOrRd", low, high)
        ends = [COLOURS[level] for level in reversed(Level)]
        return cls(LinearSegmentedColormap.from_list("reliable", ends), low, high)

    def _mappable(self) -> Any:
        import matplotlib as mpl

        scale = mpl.colors.Normalize(self.low, self.high)
        return mpl.cm.ScalarMappable(norm=scale, cmap=self.colour_map)

    def colours(self, values: NDArray[np.float64]) -> list[Any]:
        """Return the colour of each value; NaN is white."""
        colours = self._mappable()
        return [colours.to_rgba(v) if np.isfinite(v) else "white" for v in values]

    def draw_strip(self, axes: Axes, words: str) -> None:
        """Draw the scale below the structure."""
        strip = axes.inset_axes((0.2, -0.06, 0.6, 0.025))
        bar = axes.figure.colorbar(
            self._mappable(), cax=strip, orientation="horizontal"
        )
        bar.set_label(words, fontsize=9)
        bar.outline.set_visible(False)


def _draw(axes: Axes, atoms: Atoms, colours: list[Any], named: list[int]) -> None:
    """Draw cell, bonds and atoms, and name some atoms."""
    from matplotlib.patches import Circle

    atoms = _wrapped(atoms)
    view = _view(atoms)
    positions = (atoms.positions - atoms.positions.mean(axis=0)) @ view.T
    size = 0.4 if atoms.pbc.any() else 0.6
    radii = np.minimum(covalent_radii[atoms.numbers], 1.2) * size
    low = positions[:, :2] - radii[:, None]
    high = positions[:, :2] + radii[:, None]
    if atoms.pbc.any():
        corners = _draw_cell(axes, atoms, view)
        low, high = np.vstack([low, corners]), np.vstack([high, corners])
    _draw_bonds(axes, atoms, positions, view)
    for i in np.argsort(positions[:, 2]):
        x, y, z = positions[i]
        place = {"zorder": 10 + z}
        axes.add_patch(Circle((x, y), radii[i], fc=colours[i], ec=INK, lw=0.9, **place))
        symbol = chemical_symbols[atoms.numbers[i]]
        if len(atoms) <= _SYMBOLS_TO and symbol != "H" and i not in named:
            _write(axes, (x, y), symbol, colours[i], z)
    for i in named:
        _name(axes, positions[i], radii[i], f"{atoms.symbols[i]}{i}")
    low_corner, high_corner = low.min(axis=0) - _REACH, high.max(axis=0) + _REACH
    axes.set(
        xlim=(low_corner[0], high_corner[0]),
        ylim=(low_corner[1], high_corner[1]),
        aspect="equal",
    )
    axes.axis("off")


def _wrapped(atoms: Atoms) -> Atoms:
    """Return positions and elements alone, inside the cell where it is periodic."""
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if copy.pbc.any():
        copy.wrap(eps=0.02)
    return copy


def _view(atoms: Atoms) -> NDArray[np.float64]:
    """Return the rotation to the view, (3, 3).

    A molecule is seen onto its plane of largest extent. A periodic structure is seen
    from the front, slightly from above, with a to the right and c upwards.
    """
    if not atoms.pbc.any():
        centred = atoms.positions - atoms.positions.mean(axis=0)
        _, _, rows = np.linalg.svd(centred, full_matrices=False)
        return np.asarray(rows if len(rows) == 3 else np.eye(3))
    cell = atoms.cell.complete().array
    front = rotation_matrix(
        cell[0], [1.0, 0.0, 0.0], np.cross(cell[0], cell[1]), [0.0, 1.0, 0.0]
    )
    tilt_x, tilt_y = np.deg2rad(14), np.deg2rad(-17)
    about_x = np.array(
        [
            [1, 0, 0],
            [0, np.cos(tilt_x), -np.sin(tilt_x)],
            [0, np.sin(tilt_x), np.cos(tilt_x)],
        ]
    )
    about_y = np.array(
        [
            [np.cos(tilt_y), 0, np.sin(tilt_y)],
            [0, 1, 0],
            [-np.sin(tilt_y), 0, np.cos(tilt_y)],
        ]
    )
    return np.asarray(about_x @ about_y @ front)


def _draw_cell(
    axes: Axes, atoms: Atoms, view: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Draw the edges of the cell; return its corners in the view, (8, 2)."""
    corners = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1).T
    cell = atoms.cell.complete().array
    places = (corners @ cell - atoms.positions.mean(axis=0)) @ view.T
    for a in range(8):
        for b in range(a + 1, 8):
            if np.abs(corners[a] - corners[b]).sum() == 1:
                axes.plot(*places[[a, b], :2].T, color=QUIET, lw=0.8, zorder=1)
    return np.asarray(places[:, :2])


def _draw_bonds(
    axes: Axes,
    atoms: Atoms,
    positions: NDArray[np.float64],
    view: NDArray[np.float64],
) -> None:
    for i, j, vector, whole in zip(*drawn_bonds(atoms), strict=True):
        if whole and i > j:
            continue
        start = positions[i]
        # a bond through a face of the cell: from each atom a part of the way
        end = start + (vector if whole else 0.4 * vector) @ view.T
        axes.plot(
            [start[0], end[0]],
            [start[1], end[1]],
            color="#555555",
            lw=2.2 if whole else 1.2,
            ls="-" if whole else (0, (1.5, 1)),
            zorder=9.9 + min(start[2], end[2]),
            solid_capstyle="round",
        )


def _write(
    axes: Axes, place: tuple[float, float], text: str, face: Any, z: float
) -> None:
    import matplotlib as mpl

    rgb = np.array(mpl.colors.to_rgb(face))
    dark = float(rgb @ [0.299, 0.587, 0.114]) < 0.55
    axes.text(
        *place,
        text,
        zorder=10.01 + z,
        fontsize=8,
        ha="center",
        va="center",
        color="white" if dark else INK,
    )


def _name(axes: Axes, position: NDArray[np.float64], radius: float, text: str) -> None:
    """Write element and index of one atom beside it."""
    from matplotlib.patheffects import withStroke

    axes.annotate(
        text,
        (position[0] + 0.7 * radius, position[1] + 0.7 * radius),
        textcoords="offset points",
        xytext=(2, 2),
        fontsize=9,
        fontweight="bold",
        color=INK,
        zorder=1000,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )
