"""Annotated copies: an assessment travels with its geometry, also through files."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from itertools import count
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.outputs import all_outputs

from uqcalc.errors import RecordError
from uqcalc.records import Assessment, Level, Reading, Verdict


INFO_KEY = "uqcalc"
ERROR_KEY = "uqcalc_error"
MODEL_KEY = "uqcalc_model"
LEFT_OUT_KEY = "uqcalc_left_out"

# What a trajectory is annotated with; older values of these names are kept apart.
_ANNOTATED = ("energy", "forces")
# What a reference is called: the defaults of `Labels`, and what `cleared_copy` keeps.
_LABELS = ("REF_", "original_")

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
    record = _record(assessment)
    if "energy" in known:  # CHGNet's is a float32, which is no JSON
        record["energy"] = float(known["energy"])
    copy.info[INFO_KEY] = percent_encoded(json.dumps(record, ensure_ascii=False))
    return copy


def cleared_copy(atoms: Atoms) -> Atoms:
    """Return a copy to be annotated: no earlier annotation, and no label lost.

    What the frame stores as energy, forces and the like (the single-point calculator
    that ASE's readers make; ``info["energy"]``, ``arrays["forces"]``) may be a
    reference: it is kept in ``info`` and ``arrays`` as ``original_energy`` and so on,
    with a number behind where that name is taken. Only what the earlier annotation
    itself put there is no label, and goes.
    """
    copy: Atoms = atoms.copy()
    copy.calc = None
    own = _own_keys(copy)
    annotated = bool(own) and _is_annotated(atoms)
    for key in own:
        copy.info.pop(key, None)
        copy.arrays.pop(key, None)
    if INFO_KEY in copy.info:  # of somebody else
        _keep(copy, INFO_KEY, copy.info.pop(INFO_KEY))
    # results of a live calculator may be those of another geometry
    stored = atoms.calc.results if isinstance(atoms.calc, SinglePointCalculator) else {}
    found = [] if annotated else list(stored.items())
    for place in (copy.info, copy.arrays):
        found += [(key, place.pop(key)) for key in _ANNOTATED if key in place]
    for key, value in found:
        if value is not None:
            _keep(copy, key, np.array(value))
    return copy


def unlabelled_copy(atoms: Atoms) -> Atoms:
    """Return a copy to be moved: labels would be those of another geometry then.

    Left out are an earlier annotation, stored results, and all that is named
    ``REF_...`` or ``original_...``.
    """
    copy = cleared_copy(atoms)
    drop_labels(copy)
    return copy


def drop_labels(atoms: Atoms) -> None:
    """Take out of ``info`` and ``arrays`` all that is named as a reference."""
    for place in (atoms.info, atoms.arrays):
        for key in [key for key in place if str(key).startswith(_LABELS)]:
            del place[key]


def refused_copy(atoms: Atoms, assessment: Assessment, reason: str) -> Atoms:
    """Return a copy of a geometry that could not be evaluated: no energy, no forces.

    ``reason`` goes to ``info["uqcalc_error"]``, percent-encoded like the rest.
    """
    copy = annotated_copy(atoms, assessment, {})
    copy.calc = None
    copy.info[ERROR_KEY] = percent_encoded(reason)
    return copy


def percent_encoded(text: str) -> str:
    """Return a text as a file keeps it, whatever letters it has."""
    return quote(text, safe=_PLAIN, errors="replace")


def left_out_of(atoms: Atoms) -> tuple[str, ...]:
    """Return what of a frame its file does not hold, as ``info`` names it."""
    text = atoms.info.get(LEFT_OUT_KEY)
    if text is None:
        return ()
    try:
        return tuple(map(str, json.loads(unquote(str(text)))))
    except (ValueError, TypeError):
        return (str(text),)  # of somebody else


def read_error(atoms: Atoms) -> str | None:
    """Return why a frame could not be evaluated; None where it could."""
    text = atoms.info.get(ERROR_KEY)
    return None if text is None else unquote(str(text))


def read_assessment(atoms: Atoms) -> Assessment:
    """Return the assessment that `annotated_copy` put into ``atoms``.

    Raises
    ------
    RecordError
        If there is none, or it is damaged.
    """
    text = atoms.info.get(INFO_KEY)
    if text is None:
        msg = (
            f"frame must carry info[{INFO_KEY!r}], got keys "
            f"{sorted(map(str, atoms.info))}; annotate it with uqcalc first"
        )
        raise RecordError(msg)
    try:
        data = json.loads(unquote(str(text)))
        readings = tuple(_reading(atoms, row) for row in data["readings"])
        verdict = Verdict(
            Level[data["level"]], tuple(data["reasons"]), tuple(data["skipped"])
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        msg = (
            f"info[{INFO_KEY!r}] must be what uqcalc wrote, got {str(text)[:60]!r} "
            f"({type(error).__name__}: {error}); take the entry out of the frame"
        )
        raise RecordError(msg) from error
    return Assessment(readings, verdict)


def _is_annotated(atoms: Atoms) -> bool:
    """Say whether the stored energy is the one that was annotated, not a new label."""
    ours = json.loads(unquote(str(atoms.info[INFO_KEY]))).get("energy")
    stored = atoms.calc.results if isinstance(atoms.calc, SinglePointCalculator) else {}
    theirs = stored.get("energy")
    if ours is None or theirs is None:
        return False
    return bool(np.isclose(ours, theirs, rtol=1e-9, atol=1e-7, equal_nan=True))


def _own_keys(atoms: Atoms) -> list[str]:
    """Return the names of an annotation of ours; none where there is no such."""
    try:
        readings = read_assessment(atoms).readings
    except RecordError:
        return []
    keys = [key for reading in readings for key in reading.results]
    own = ["reliability_level", INFO_KEY, ERROR_KEY, MODEL_KEY, LEFT_OUT_KEY]
    return [*keys, *own]


def _keep(atoms: Atoms, key: str, value: Any) -> None:
    name = first = f"original_{key}"
    numbers = count(2)
    while name in atoms.info or name in atoms.arrays:
        name = f"{first}_{next(numbers)}"
    if key not in all_outputs:
        atoms.info[name] = value
    elif all_outputs[key].shapespec[:1] == ("natoms",) and len(atoms):
        # flat, as files hold no array of three dimensions
        atoms.arrays[name] = value.reshape(len(atoms), -1) if value.ndim > 2 else value
    else:
        atoms.info[name] = value.item() if value.ndim == 0 else value


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
                "limits": dict(reading.limits),
                "far_limits": dict(reading.far_limits),
                "doubts": list(reading.doubts),
                "faults": list(reading.faults),
                "absurd": list(reading.absurd),
                "always": reading.always,
                "meaning": reading.meaning,
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
        # frames that an earlier version annotated lack what follows
        limits=_kept(row.get("limits", {}), results),
        far_limits=_kept(row.get("far_limits", {}), results),
        doubts=tuple(row.get("doubts", ())),
        faults=tuple(row.get("faults", ())),
        absurd=tuple(row.get("absurd", ())),
        always=bool(row.get("always", False)),
        meaning=str(row.get("meaning", "")),
    )


def _kept(limits: Mapping[str, float], results: Mapping[str, Any]) -> dict[str, float]:
    """Return the limits on numbers that the file has kept."""
    return {key: float(limit) for key, limit in limits.items() if key in results}
