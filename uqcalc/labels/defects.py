"""Frames that cannot be used as labels: find them, then raise or leave them out.

One defect is that forces vanish by symmetry. The force on one atom in vacuum, in a
one-atom cell or on a site of a perfect crystal without a polar direction is zero for
any energy. There, reference and potential agree even if the potential is wrong for the
element. Such frames are found because both forces are zero. Two different potentials
have a minimum at the same place within 1e-4 Å (1e-3 eV/Å over 10 eV/Å²) only if
symmetry requires it. A structure that was relaxed with one of the two has nonzero
forces in the other and stays a label. Of 4 875 crystals with forces of PBE and of
SevenNet-0, 638 are below both limits; according to `spglib`, each of their atoms is on
a site of vanishing force.
"""

from __future__ import annotations

import warnings
from bisect import insort
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike

from uqcalc.agreement import ZERO_REFERENCE
from uqcalc.backbones.base import Backbone
from uqcalc.errors import BackboneError, LabelError, LabelWarning
from uqcalc.labels.labels import Labels, has_stress
from uqcalc.probe.seen import Geometries


_NAMED = 5  # largest number of frames listed in a message


def is_lone(frame: Atoms, reference: ArrayLike) -> bool:
    """Return whether a frame is one atom in vacuum with zero reference force."""
    alone = len(frame) == 1 and not frame.pbc.any()
    return alone and bool(np.linalg.norm(reference) <= ZERO_REFERENCE)


def warn_of_no_information(
    rows: Sequence[int], frames: int, *, relative: bool = False
) -> None:
    """Warn of frames that were left out because they have no information.

    Parameters
    ----------
    rows : sequence of int
        Indices of these frames.
    frames : int
        Number of all frames.
    relative : bool
        Whether they are the only frames of their composition, for relative energies;
        else their forces vanish by symmetry.

    Warns
    -----
    LabelWarning
        If there are such frames; the message names the first ones.
    """
    if not rows:
        return
    named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
    if relative:
        msg = (
            f"{len(rows)} of {frames} frames (frames {named}) are the only frame of "
            "their composition. The error of a relative energy needs several frames of "
            "one composition: these frames are left out; add frames of their "
            "compositions to use them"
        )
        warnings.warn(msg, LabelWarning, stacklevel=4)
        return
    msg = (
        f"{len(rows)} of {frames} frames (frames {named}) have no force by symmetry, "
        "neither in the labels nor in the prediction (isolated atoms, perfect "
        "crystals). Such frames cannot show whether forces are right and are left "
        "out; nothing needs to be done"
    )
    warnings.warn(msg, LabelWarning, stacklevel=4)


NOT_COMPUTABLE = "not computable"
# Left out by default: forces that vanish by symmetry, and for relative energies the
# only frame of a composition.
NO_INFORMATION = "no information"
NO_STRESS = "no stress"  # not periodic in three directions, for a target of stress
DEFECTS = (
    "missing", "not finite", "duplicate", "unknown elements", "empty", NOT_COMPUTABLE,
    NO_INFORMATION, NO_STRESS,
)  # fmt: skip
# Entries of ``atoms.info`` that distinguish two states of one geometry.
_STATE_KEYS = ("charge", "total_charge", "spin", "total_spin")
_ROUND_OFF = 1e-5  # Å: round-off of single precision and of files


def check_frames(frames: object, exclude: object) -> None:
    """Check that ``frames`` is a list of frames and ``exclude`` is not one string.

    Raises
    ------
    LabelError
        If ``frames`` is a path or one structure, or ``exclude`` is a string.
    """
    if isinstance(frames, (str, Path, Atoms)) or isinstance(exclude, str):
        msg = (
            "frames must be a list of Atoms and exclude a tuple of defects, got "
            f"{type(frames).__name__} and {exclude!r}; read files first: "
            'ase.io.read("labelled.xyz", ":")'
        )
        raise LabelError(msg)


@dataclass(slots=True)
class Defects:
    """Frames that cannot be used as labels.

    Attributes
    ----------
    rows : dict
        Defect -> indices of frames.
    reasons : dict
        Index -> error message of the potential for a frame that is not computable.
    """

    rows: dict[str, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, defect: str, index: int, reason: str | None = None) -> None:
        """Add a frame under a defect."""
        insort(self.rows.setdefault(defect, []), index)
        if reason is not None:
            self.reasons[index] = reason

    def refuse(
        self, frames: Sequence[Atoms], labels: Labels, exclude: Collection[str]
    ) -> None:
        """Raise LabelError if there are defects that ``exclude`` does not name.

        Frames without information never raise: they need no correction.
        """
        if unknown := set(exclude) - set(DEFECTS):
            msg = f"exclude must name defects among {DEFECTS}, got {sorted(unknown)}"
            raise LabelError(msg)
        allowed = {*exclude, NO_INFORMATION}
        refused = {d: rows for d, rows in self.rows.items() if d not in allowed}
        if not refused:
            return
        listed = "; ".join(
            f"{defect}: {len(rows)} (frames {', '.join(map(str, rows[:_NAMED]))}"
            f"{', ...' if len(rows) > _NAMED else ''})"
            for defect, rows in refused.items()
        )
        options = " ".join(f"--exclude {defect!r}" for defect in sorted(refused))
        msg = (
            f"every one of the {len(frames)} frames must have a usable label, got "
            f"{listed}; correct them, or leave them out with "
            f"exclude={sorted(refused)!r} ({options})"
        )
        if rows := refused.get(NO_STRESS):
            pbc = frames[rows[0]].pbc.tolist()
            msg += (
                "; no stress: a stress needs a cell that is periodic in three "
                f"directions, frame {rows[0]} has pbc={pbc}"
            )
        if rows := refused.get("missing"):
            msg += _why_missing(frames[rows[0]], rows[0], labels)
        for index in refused.get(NOT_COMPUTABLE, [])[:1]:
            msg += f"; not computable: frame {index}: {self.reasons[index]}"
        raise LabelError(msg)


def _why_missing(frame: Atoms, index: int, labels: Labels) -> str:
    """Return a message: the wanted key, the existing keys, and the likely label."""
    what, key = labels.of, labels.reference_key
    stored = [] if frame.calc is None else sorted(frame.calc.results)
    msg = (
        f"; missing: no {what} under {key!r}, frame {index} has info "
        f"{sorted(frame.info)}, arrays {sorted(frame.arrays)} and, read by ASE, "
        f"{stored}"
    )
    if what in stored:
        msg += (
            f"; if the {what} read by ASE are the reference, set {what}_key={what!r} "
            f"(--{what}-key {what})"
        )
    return msg


def find_defects(
    frames: Sequence[Atoms], backbone: Backbone, labels: Labels
) -> Defects:
    """Return the frames that cannot be used as labels, each under one defect.

    "missing": the label is absent, not numeric or of the wrong shape. "duplicate": an
    earlier frame has the same geometry, charge and spin. "not computable": the
    potential does not accept the frame, such as a molecule where it needs a cell.
    "no stress": the target is the stress and the frame is not periodic in three
    directions. "no information": here only single atoms in vacuum; other such frames
    are found after their evaluation.
    """
    found = Defects()
    met = Geometries()
    for index, frame in enumerate(frames):
        defect = _defect(frame, backbone, labels, met)
        if defect is not None:
            found.add(defect, index)
            continue
        try:
            backbone.check_structure(frame)
        except BackboneError as error:
            found.add(NOT_COMPUTABLE, index, str(error))
    return found


def _defect(
    frame: Atoms, backbone: Backbone, labels: Labels, met: Geometries
) -> str | None:
    if len(frame) == 0:
        return "empty"
    if labels.of == "stress" and not has_stress(frame):
        return NO_STRESS
    reference = labels.reference(frame)
    if reference is None:
        return "missing"
    numbers = (reference, frame.positions, frame.cell.array)
    if not all(np.all(np.isfinite(part)) for part in numbers):
        return "not finite"
    known = backbone.elements
    if known is not None and set(frame.numbers.tolist()) - known:
        return "unknown elements"
    if labels.of == "forces" and is_lone(frame, reference):
        return NO_INFORMATION  # before the check for duplicates: copies count here too
    if any(_same(frame, other) for other in met.find(frame)):
        return "duplicate"
    met.add([frame])
    return None


def _same(frame: Atoms, other: Atoms) -> bool:
    """Return whether two frames agree in positions and cell (1e-5 Å) and in state."""
    states = [repr([f.info.get(name) for name in _STATE_KEYS]) for f in (frame, other)]
    return states[0] == states[1] and all(
        np.allclose(here, there, rtol=0.0, atol=_ROUND_OFF)
        for here, there in (
            (frame.positions, other.positions),
            (frame.cell.array, other.cell.array),
        )
    )


def usable_rows(
    frames: Sequence[Atoms],
    backbone: Backbone,
    labels: Labels,
    exclude: Collection[str] = (),
) -> list[int]:
    """Return the indices of frames without defects.

    Raises
    ------
    LabelError
        If a frame has a defect that ``exclude`` does not name.
    """
    found = find_defects(frames, backbone, labels)
    found.refuse(frames, labels, exclude)
    left_out = {index for rows in found.rows.values() for index in rows}
    return [i for i in range(len(frames)) if i not in left_out]


def drop_leaks(
    sets: Sequence[Sequence[Atoms]], exclude: Collection[str]
) -> list[set[int]]:
    """Return the frames of each set to leave out, so that no two share a geometry.

    A frame that is also in a later set is left out of the earlier set: the test set
    does not change. Rounding in a file and moving or rotating the whole structure do
    not make a new geometry (`uqcalc.probe.seen`).

    Parameters
    ----------
    sets : two or three sequences of Atoms
        Training, calibration (optional), and test.
    exclude : collection of str
        If it contains "duplicate", shared frames are left out; else they are an error.

    Raises
    ------
    LabelError
        If sets share geometries and ``exclude`` lacks "duplicate"; the message names
        the frames.

    Warns
    -----
    LabelWarning
        With the frames that are left out of each set.
    """
    names = (
        ("training", "calibration", "test") if len(sets) > 2 else ("training", "test")
    )
    dropped: list[set[int]] = [set() for _ in sets]
    later = Geometries()
    for place in reversed(range(len(sets))):
        own = enumerate(sets[place])
        dropped[place] |= {index for index, frame in own if later.find(frame)}
        later.add(sets[place])
    count = sum(map(len, dropped))
    if not count:
        return dropped
    listed = "; ".join(
        f"{name} frames {_listed(rows)}"
        for name, rows in zip(names, dropped, strict=True)
        if rows
    )
    if "duplicate" not in exclude:
        msg = (
            "training, calibration and test frames must be different structures, got "
            f"{count} in two of them ({listed}); divide them again, or leave these out "
            "with exclude=['duplicate'] (--exclude duplicate)"
        )
        raise LabelError(msg)
    msg = (
        f"{count} frames are in two of the training, calibration and test sets, and "
        "are left out of the earlier set, so that the test set stays complete: "
        f"{listed}"
    )
    warnings.warn(msg, LabelWarning, stacklevel=4)
    return dropped


def _listed(rows: Collection[int]) -> str:
    shown = sorted(rows)
    more = ", ..." if len(shown) > _NAMED else ""
    return f"{', '.join(map(str, shown[:_NAMED]))}{more}"
