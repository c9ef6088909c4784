"""Structures and map for the viewer chemiscope (doi:10.21105/joss.02117)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from uqcalc.plotting.structure import SHADES, shade_values, shades_of
from uqcalc.plotting.viewer import untagged, viewer_input
from uqcalc.records import Level


_NAMES = {
    "reliability": "P(reliable) of the atom",
    "importance": "attention on the atom",
    "force_delta": "Force Delta of the atom",
}


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One structure of the page, with the numbers of its frame.

    ``place`` are its two coordinates in the map; ``x`` is its time in ps, or its step.
    """

    atoms: Atoms
    run: str
    step: int
    x: float
    level: Level
    reliability: float
    place: tuple[float, float]


def dataset(
    shown: Sequence[Shown], axes: tuple[str, str], x_name: str, first: int = 0
) -> dict[str, Any]:
    """Return the input of chemiscope's default viewer.

    Parameters
    ----------
    shown : sequence of Shown
    axes : (str, str)
        Names of the two coordinates of the map.
    x_name : str
        Name of `Shown.x`, with its unit.
    first : int
        Place in ``shown`` of the structure that the viewer shows first.
    """
    properties = _of_structures(shown, axes, x_name) | _of_atoms(shown)
    colour = next((_NAMES[n] for n in _NAMES if _NAMES[n] in properties), None)
    return viewer_input(
        [one.atoms for one in shown],
        properties,
        _settings(shown, axes, colour) | {"pinned": [first]},
        "Annotated frames of the runs",
    )


def _of_structures(
    shown: Sequence[Shown], axes: tuple[str, str], x_name: str
) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {
        axes[0]: [one.place[0] for one in shown],
        axes[1]: [one.place[1] for one in shown],
        "P(reliable)": [one.reliability for one in shown],
        "level (0 RELIABLE, 2 UNRELIABLE)": [int(one.level) for one in shown],
        "step": [one.step for one in shown],
    }
    columns.setdefault(x_name, [one.x for one in shown])
    runs = [untagged(one.run) for one in shown]
    if len(set(runs)) > 1:
        columns["run"] = runs
    return {
        name: {"target": "structure", "values": values}
        for name, values in columns.items()
        # the viewer takes no missing numbers
        if all(not isinstance(v, float) or math.isfinite(v) for v in values)
    }


def _of_atoms(shown: Sequence[Shown]) -> dict[str, Any]:
    """Return the quantities of the atoms that every frame has, (all atoms,)."""
    common = [n for n in SHADES if all(n in shades_of(one.atoms) for one in shown)]
    found = {}
    for name in common:
        values = [shade_values(one.atoms, name) for one in shown]
        if not all(np.isfinite(part).all() for part in values):
            continue
        found[_NAMES[name]] = {
            "target": "atom",
            "values": np.concatenate(values),
            "units": SHADES[name].unit,
        }
    return found


def _settings(
    shown: Sequence[Shown], axes: tuple[str, str], colour: str | None
) -> dict[str, Any]:
    known = all(math.isfinite(one.reliability) for one in shown)
    by = "P(reliable)" if known else "level (0 RELIABLE, 2 UNRELIABLE)"
    structure: dict[str, Any] = {
        "keepOrientation": False,
        "unitCell": any(one.atoms.pbc.any() for one in shown),
    }
    if colour is not None:
        scale = {"min": 0, "max": 1} if colour == _NAMES["reliability"] else {}
        structure["color"] = {"property": colour, "palette": "cividis", **scale}
    return {
        "target": "structure",
        "map": {
            "x": {"property": axes[0]},
            "y": {"property": axes[1]},
            "color": {"property": by, "palette": "cividis", "min": 0}
            | ({"max": 1} if known else {"max": 2}),
            "size": {"factor": 40},
        },
        "structure": [structure],
    }
