"""The worst structures of an evaluation: for its tables, and in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from uqcalc.errors import MissingExtraError
from uqcalc.plotting.viewer import page_script, viewer_elements, viewer_input
from uqcalc.showing import in_words


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from uqcalc.backbones.prediction import Prediction
    from uqcalc.evaluation.evaluation import Evaluation

MOST = 10  # structures of each kind
_MOST_ATOMS = 10_000  # of all structures on a page
ERROR, RELIABILITY = "force_error", "reliability"  # arrays of the structures
_NAMES = {
    ERROR: "force error of the atom [eV/Å]",
    RELIABILITY: "P(reliable) of the atom",
}


def worst_rows(
    errors: NDArray[np.float64], probability: NDArray[np.float64], boundary: float
) -> dict[str, NDArray[np.int64]]:
    """Return the rows of the wrong structures with the largest P, and largest errors.

    Kinds without a structure are left out.
    """
    wrong = np.flatnonzero(errors > boundary)
    rows = {
        "Wrong structures with the largest P": (
            wrong[np.argsort(-probability[wrong], kind="stable")]
        ),
        "Structures with the largest error": np.argsort(-errors, kind="stable"),
    }
    return {title: found[:MOST] for title, found in rows.items() if len(found)}


def structures_of(
    predictions: Sequence[Prediction],
    known: NDArray[np.int64],
    rows: Mapping[str, NDArray[np.int64]],
    of_atoms: Mapping[str, Sequence[NDArray[np.float64]] | None],
) -> dict[int, Atoms]:
    """Return the structures of some rows, up to 10 000 atoms.

    Parameters
    ----------
    predictions : sequence of Prediction
        Of all structures of the set.
    known : array
        Index among them of each row.
    rows : mapping
        As from `worst_rows`.
    of_atoms : mapping
        Name of an array -> its values for each structure of the set, or None.
    """
    found: dict[int, Atoms] = {}
    atoms = 0
    for row in dict.fromkeys(int(row) for kind in rows.values() for row in kind):
        index = int(known[row])
        one = predictions[index]
        atoms += len(one.numbers)
        if atoms > _MOST_ATOMS:
            break
        found[row] = Atoms(one.numbers, one.positions, cell=one.cell, pbc=one.pbc)
        for name, values in of_atoms.items():
            if values is not None:
                found[row].arrays[name] = np.asarray(values[index], dtype=float)
    return found


def viewer_parts(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the page needs to show the structures.

    Returns
    -------
    dict
        ``script``, and ``elements`` that follow it; ``buttons`` with place and text of
        each structure, ``coloured`` in words; or ``missing``, the reason in words why
        they are not shown. Without structures all are empty.
    """
    names = ("script", "elements", "coloured", "missing")
    parts: dict[str, Any] = dict.fromkeys(names, "") | {"buttons": ()}
    shown = evaluation.tested.structures
    if not shown:
        return parts
    try:
        data, coloured = _dataset(evaluation, shown)
        elements = viewer_elements(data)
    except MissingExtraError as error:
        return parts | {"missing": str(error)}
    return parts | {
        "script": page_script(),
        "elements": elements,
        "buttons": [
            (place, _label(evaluation, row)) for place, row in enumerate(shown)
        ],
        "coloured": coloured,
    }


def _dataset(
    evaluation: Evaluation, shown: Mapping[int, Atoms]
) -> tuple[dict[str, Any], str]:
    """Return the input of the viewer, and in words what colours the atoms."""
    card, rows = evaluation.probe.card, [*shown]
    error = f"error [{card.unit}]" if card.unit else "error"
    properties: dict[str, Any] = {
        error: _of("structure", evaluation.errors[rows]),
        "P": _of("structure", evaluation.probability[rows]),
    }
    for name, title in _NAMES.items():
        values = [atoms.arrays.get(name) for atoms in shown.values()]
        known = [one for one in values if one is not None and np.isfinite(one).all()]
        if len(known) == len(shown):
            properties[title] = _of("atom", np.concatenate(known))
    periodic = any(atoms.pbc.any() for atoms in shown.values())
    view: dict[str, Any] = {"keepOrientation": False, "unitCell": periodic}
    coloured = ""
    if (title := _NAMES[ERROR]) in properties:
        view["color"] = {"property": title, "palette": "cividis", "min": 0}
        coloured = "by their force error (bright: large)"
    elif (title := _NAMES[RELIABILITY]) in properties:
        view["color"] = {"property": title, "palette": "cividis", "min": 0, "max": 1}
        coloured = "by their P(reliable) (dark: unreliable)"
    settings = {"target": "structure", "structure": [view]}
    data = viewer_input([*shown.values()], properties, settings, "Test structures")
    return data, coloured


def _of(target: str, values: NDArray[np.float64]) -> dict[str, Any]:
    return {"target": target, "values": np.asarray(values, dtype=float).tolist()}


def _label(evaluation: Evaluation, row: int) -> str:
    tested, unit = evaluation.tested, evaluation.probe.card.unit
    number = row if tested.frames is None else tested.frames[row]
    error = in_words(float(evaluation.errors[row]), unit, digits=3)
    p = evaluation.probability[row]
    return f"{number}: {tested.formulas[row]}, error {error}, P {p:.2f}"
