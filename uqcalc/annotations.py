"""Annotated copies: an assessment travels with its geometry, also through files."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.outputs import all_outputs

from uqcalc.errors import RecordError
from uqcalc.records import Assessment, Level, Reading, Verdict


INFO_KEY = "uqcalc"

# The extended XYZ writer does not escape backslashes, and its reader eats them: as in
# an address, they are written %5C, and so is everything beyond ASCII.
_PLAIN = "".join(set(string.printable) - set("%\\" + string.whitespace)) + " "


def annotated_copy(
    atoms: Atoms, assessment: Assessment, results: Mapping[str, Any]
) -> Atoms:
    """Return a copy of ``atoms`` that carries its results and its assessment.

    Readings go to ``info`` and ``arrays`` under the names of ``calc.results``; what
    files cannot hold by itself (risks, units, reasons) goes to ``info["uqcalc"]`` as
    percent-encoded JSON. Energy, forces and the like go to a single-point calculator,
    so that every writer of ASE keeps them; older values of the same name in ``info``
    and ``arrays``, which writers refuse beside them, are left out of the copy. The
    live atoms are not touched.
    """
    copy: Atoms = atoms.copy()
    copy.calc = None
    known = {k: v for k, v in results.items() if k in all_outputs and v is not None}
    for key in known:
        copy.info.pop(key, None)
        copy.arrays.pop(key, None)
    copy.calc = SinglePointCalculator(copy, **known)
    for key, value in assessment.results().items():
        array = np.asarray(value)
        if array.ndim == 0:
            copy.info[key] = array.item()
        else:
            copy.arrays[key] = array.copy()
    copy.info[INFO_KEY] = quote(
        json.dumps(_record(assessment), ensure_ascii=False), safe=_PLAIN
    )
    return copy


def read_assessment(atoms: Atoms) -> Assessment:
    """Return the assessment that `annotated_copy` put into ``atoms``.

    Raises
    ------
    RecordError
        If there is none.
    """
    text = atoms.info.get(INFO_KEY)
    if text is None:
        msg = (
            f"frame must carry info[{INFO_KEY!r}], got keys {sorted(atoms.info)}; "
            "annotate it with uqcalc first"
        )
        raise RecordError(msg)
    data = json.loads(unquote(text))
    readings = tuple(_reading(atoms, row) for row in data["readings"])
    verdict = Verdict(
        Level[data["level"]], tuple(data["reasons"]), tuple(data["skipped"])
    )
    return Assessment(readings, verdict)


def _record(assessment: Assessment) -> dict[str, Any]:
    return {
        "level": assessment.level.name,
        "reasons": list(assessment.verdict.reasons),
        "skipped": list(assessment.verdict.skipped),
        "readings": [
            {
                "signal": reading.signal,
                "risk": reading.risk,
                "unit": reading.unit,
                "keys": sorted(reading.results),
                "per_atom_key": reading.per_atom_key,
                "note": reading.note,
            }
            for reading in assessment.readings
        ],
    }


def _reading(atoms: Atoms, row: Mapping[str, Any]) -> Reading:
    stored = {**atoms.info, **atoms.arrays}
    # .traj files drop arrays of unknown name: what is lost is absent, never made up
    results = {key: stored[key] for key in row["keys"] if key in stored}
    per_atom_key = row["per_atom_key"]
    return Reading(
        row["signal"],
        float(row["risk"]),
        row["unit"],
        results,
        per_atom_key if per_atom_key in results else None,
        row["note"],
    )
