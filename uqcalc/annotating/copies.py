"""Annotated copies: structures with their assessment, which files can store."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.outputs import all_outputs

from uqcalc.annotating.descriptor import DESCRIPTOR_KEY, POTENTIAL_KEY
from uqcalc.asking import why_ask
from uqcalc.errors import RecordError
from uqcalc.files.stored import ARRAYS_KEY
from uqcalc.records import Assessment, Level, Reading, Verdict


INFO_KEY = "uqcalc"
# Prefix of the potential's own results: programs that train potentials take "energy"
# and "forces" for reference values.
PREDICTED = "predicted_"
ERROR_KEY = "uqcalc_error"
MODEL_KEY = "uqcalc_model"
FRAME_KEY = "uqcalc_frame"  # index of the frame in the source, from 0
LEFT_OUT_KEY = "uqcalc_left_out"
# The rule by which to ask a reference for this frame, and the reason in a sentence.
ASK_KEY, ASK_WHY_KEY = "uqcalc_ask", "uqcalc_ask_why"

# Results that annotated frames lack; older values are kept as original_....
_ANNOTATED = ("energy", "forces")
# Prefixes of references: the default of `Labels`, and that of `cleared_copy`.
_LABELS = ("REF_", "original_")

# ASE's extended XYZ writer does not escape backslashes, and its reader removes them.
# Backslashes and all characters beyond ASCII are percent-encoded, as in a URL.
_PLAIN = "".join(set(string.printable) - set("%\\" + string.whitespace)) + " "


def annotated_copy(
    atoms: Atoms, assessment: Assessment, results: Mapping[str, Any]
) -> Atoms:
    """Return a copy of ``atoms`` with its results and its assessment.

    Readings go to ``info`` and ``arrays`` under the names in ``calc.results``. Risks,
    units and reasons go to ``info["uqcalc"]`` as percent-encoded JSON. If a reference
    should be asked for this geometry, the rule and the reason (`uqcalc.asking.why_ask`)
    go to ``info["uqcalc_ask"]`` and ``info["uqcalc_ask_why"]``. The results of
    the potential go to ``info["predicted_energy"]``, ``arrays["predicted_forces"]`` and
    so on: the copy has no calculator, so that no program that trains a potential takes
    predictions for reference values. The copy leaves out older values of energy,
    forces and so on in ``info`` and ``arrays``, which may belong to another geometry.
    ``atoms`` does not change.
    """
    copy: Atoms = atoms.copy()
    copy.calc = None
    known = {k: v for k, v in results.items() if k in all_outputs and v is not None}
    for key, value in known.items():
        for name in (key, PREDICTED + key):
            copy.info.pop(name, None)
            copy.arrays.pop(name, None)
        _put(copy, PREDICTED + key, np.array(value), of_atoms=_is_of_atoms(copy, key))
    for key, value in assessment.results().items():
        array = np.asarray(value)
        if array.ndim == 0:
            copy.info[key] = array.item()
        else:
            copy.arrays[key] = array.copy()
    if (asked := why_ask(assessment)) is not None:
        copy.info[ASK_KEY], why = asked
        copy.info[ASK_WHY_KEY] = percent_encoded(why)
    record = json.dumps(_record(assessment), ensure_ascii=False)
    copy.info[INFO_KEY] = percent_encoded(record)
    return copy


def cleared_copy(atoms: Atoms) -> Atoms:
    """Return a copy without an earlier annotation, but with all labels.

    Stored energy, forces and the like (in the single-point calculator from ASE's
    readers, in ``info["energy"]`` or ``arrays["forces"]``) may be references. The copy
    stores them in ``info`` and ``arrays`` as ``original_energy`` and so on, with a
    number at the end if the name exists. Results of an earlier annotation are not
    references; they are removed.
    """
    copy: Atoms = atoms.copy()
    copy.calc = None
    own = _own_keys(copy)
    annotated = bool(own) and _is_annotated(atoms)
    for key in own:
        copy.info.pop(key, None)
        copy.arrays.pop(key, None)
    if INFO_KEY in copy.info:  # not written by uqcalc
        _keep(copy, INFO_KEY, copy.info.pop(INFO_KEY))
    # results of an attached calculator may belong to another geometry
    stored = atoms.calc.results if isinstance(atoms.calc, SinglePointCalculator) else {}
    found = [] if annotated else list(stored.items())
    for place in (copy.info, copy.arrays):
        found += [(key, place.pop(key)) for key in _ANNOTATED if key in place]
    for key, value in found:
        if value is not None:
            _keep(copy, key, np.array(value))
    return copy


def unlabelled_copy(atoms: Atoms) -> Atoms:
    """Return a copy without labels, for a structure that will be moved.

    The copy leaves out an earlier annotation, stored results, and all entries with
    names ``REF_...`` or ``original_...``.
    """
    copy = cleared_copy(atoms)
    drop_labels(copy)
    return copy


def drop_labels(atoms: Atoms) -> None:
    """Remove entries ``REF_...`` and ``original_...`` from ``info`` and ``arrays``."""
    for place in (atoms.info, atoms.arrays):
        for key in [key for key in place if str(key).startswith(_LABELS)]:
            del place[key]


def refused_copy(atoms: Atoms, assessment: Assessment, reason: str) -> Atoms:
    """Return an annotated copy, without results, of a geometry without evaluation.

    ``reason`` says why the evaluation failed; it goes to ``info["uqcalc_error"]``,
    percent-encoded.
    """
    copy = annotated_copy(atoms, assessment, {})
    copy.calc = None
    for key in (ASK_KEY, ASK_WHY_KEY):  # no reference can evaluate most of these
        copy.info.pop(key, None)
    copy.info[ERROR_KEY] = percent_encoded(reason)
    return copy


def percent_encoded(text: str) -> str:
    """Return a text that extended XYZ files preserve, for any characters."""
    return quote(text, safe=_PLAIN, errors="replace")


def left_out_text(names: Sequence[str]) -> str:
    """Return the entry of ``info`` that `left_out_of` reads back."""
    return percent_encoded(json.dumps(list(names), ensure_ascii=False))


def left_out_of(atoms: Atoms) -> tuple[str, ...]:
    """Return the names of entries that the file of a frame lacks, from ``info``."""
    text = atoms.info.get(LEFT_OUT_KEY)
    if text is None:
        return ()
    try:
        return tuple(map(str, json.loads(unquote(str(text)))))
    except (ValueError, TypeError):
        return (str(text),)  # not written by uqcalc


def read_error(atoms: Atoms) -> str | None:
    """Return why a frame could not be evaluated; None if it was evaluated."""
    text = atoms.info.get(ERROR_KEY)
    return None if text is None else unquote(str(text))


def read_assessment(atoms: Atoms) -> Assessment:
    """Return the assessment that `annotated_copy` stored in ``atoms``.

    Raises
    ------
    RecordError
        If there is no assessment, or if it is damaged.
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
            Level[data["level"]],
            tuple(data["reasons"]),
            tuple(data["skipped"]),
            {k: Level[v] for k, v in data.get("by_risk", {}).items()},
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        msg = (
            f"info[{INFO_KEY!r}] must be what uqcalc wrote, got {str(text)[:60]!r} "
            f"({type(error).__name__}: {error}); remove this entry from the frame"
        )
        raise RecordError(msg) from error
    return Assessment(readings, verdict)


def step_of(frame: Atoms) -> int | None:
    """Return the step in ``info``; None without one, or if it is not a whole number."""
    step = np.asarray(frame.info.get("step"))
    if step.size != 1 or step.dtype.kind not in "iuf" or step % 1:
        return None
    return int(step.item())


def _is_annotated(atoms: Atoms) -> bool:
    """Return whether the stored energy is that of the annotation, not a new label.

    Versions before 0.2 stored the results of the potential in a calculator, and their
    energy in the record. In later files every stored result is a label.
    """
    ours = json.loads(unquote(str(atoms.info[INFO_KEY]))).get("energy")
    stored = atoms.calc.results if isinstance(atoms.calc, SinglePointCalculator) else {}
    theirs = stored.get("energy")
    if ours is None or theirs is None:
        return False
    return bool(np.isclose(ours, theirs, rtol=1e-9, atol=1e-7, equal_nan=True))


def _own_keys(atoms: Atoms) -> list[str]:
    """Return the names of the entries of an annotation; empty without one."""
    try:
        readings = read_assessment(atoms).readings
    except RecordError:
        return []
    keys = [key for reading in readings for key in reading.results]
    own = ["reliability_level", INFO_KEY, ERROR_KEY, MODEL_KEY, LEFT_OUT_KEY, FRAME_KEY]
    own += [DESCRIPTOR_KEY, POTENTIAL_KEY, ASK_KEY, ASK_WHY_KEY]
    own += [PREDICTED + key for key in all_outputs]
    return [*keys, *own]


def _keep(atoms: Atoms, key: str, value: Any) -> None:
    name = first = f"original_{key}"
    numbers = count(2)
    while name in atoms.info or name in atoms.arrays:
        name = f"{first}_{next(numbers)}"
    if key not in all_outputs:
        atoms.info[name] = value
    else:
        _put(atoms, name, value, of_atoms=_is_of_atoms(atoms, key))


def _is_of_atoms(atoms: Atoms, key: str) -> bool:
    """Return whether a result has one row for each atom."""
    return all_outputs[key].shapespec[:1] == ("natoms",) and len(atoms) > 0


def _put(atoms: Atoms, name: str, value: np.ndarray, *, of_atoms: bool) -> None:
    """Store a value in ``arrays`` or ``info``, in a form that files can hold."""
    if of_atoms:
        # flat, as files cannot store arrays of three dimensions
        atoms.arrays[name] = value.reshape(len(atoms), -1) if value.ndim > 2 else value
    else:
        atoms.info[name] = value.item() if value.ndim == 0 else value


def _record(assessment: Assessment) -> dict[str, Any]:
    return {
        "level": assessment.level.name,
        "reasons": list(assessment.verdict.reasons),
        "skipped": list(assessment.verdict.skipped),
        "by_risk": {k: v.name for k, v in assessment.verdict.by_risk.items()},
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
                "unlabelled": list(reading.unlabelled),
                "faults": list(reading.faults),
                "absurd": list(reading.absurd),
                "always": reading.always,
                "meaning": reading.meaning,
                **({"regime": reading.regime} if reading.regime else {}),
                **({} if reading.atoms is None else {"atoms": list(reading.atoms)}),
                **(
                    {"concern": list(reading.concern)}
                    if reading.concern is not None
                    else {}
                ),
            }
            for reading in assessment.readings
        ],
    }


def _reading(atoms: Atoms, row: Mapping[str, Any]) -> Reading:
    # ASE's own reader of .traj files leaves the arrays of uqcalc in info
    stored = {**atoms.info, **atoms.info.get(ARRAYS_KEY, {}), **atoms.arrays}
    # other formats drop arrays of unknown names: these results are missing here
    results = {key: stored[key] for key in row["keys"] if key in stored}
    per_atom_key = row["per_atom_key"]
    return Reading(
        row["signal"],
        float(row["risk"]),
        row["unit"],
        results,
        per_atom_key if per_atom_key in results else None,
        row["note"],
        # frames from earlier versions lack the following entries
        limits=_kept(row.get("limits", {}), results),
        far_limits=_kept(row.get("far_limits", {}), results),
        doubts=tuple(row.get("doubts", ())),
        unlabelled=tuple(row.get("unlabelled", ())),
        faults=tuple(row.get("faults", ())),
        absurd=tuple(row.get("absurd", ())),
        always=bool(row.get("always", False)),
        meaning=str(row.get("meaning", "")),
        atoms=tuple(map(int, row["atoms"])) if "atoms" in row else None,
        regime=str(row.get("regime", "")),
        concern=_concern(row["concern"]) if "concern" in row else None,
    )


def _concern(stored: Sequence[Any]) -> tuple[float, str]:
    limit, why = stored
    return float(limit), str(why)


def _kept(limits: Mapping[str, float], results: Mapping[str, Any]) -> dict[str, float]:
    """Return the limits on results that the file contains."""
    return {key: float(limit) for key, limit in limits.items() if key in results}
