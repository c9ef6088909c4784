"""Which frames cannot serve as labels, and why: found, named, refused or left out."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms

from uqcalc.backbones.base import Backbone
from uqcalc.errors import BackboneError, LabelError
from uqcalc.probe.labelling.information import is_lone
from uqcalc.probe.labelling.labels import Labels
from uqcalc.probe.labelling.seen import Geometries


NOT_COMPUTABLE = "not computable"
NO_INFORMATION = "no information"  # forces that vanish by symmetry, left out by default
DEFECTS = (
    "missing", "not finite", "duplicate", "unknown elements", "empty", NOT_COMPUTABLE,
    NO_INFORMATION,
)  # fmt: skip
# What, beyond the geometry, tells two states apart; kept in ``atoms.info``.
_STATE_KEYS = ("charge", "total_charge", "spin", "total_spin")
_NAMED = 5  # frames of each defect
_ROUND_OFF = 1e-5  # Å: of single precision, and of what files keep


def check_frames(frames: object, exclude: object) -> None:
    """Refuse a path, or one structure, in the place of a list of frames.

    Raises
    ------
    LabelError
        Saying what to pass.
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
    """Frames that cannot serve as labels.

    Attributes
    ----------
    rows : dict
        Defect -> indices of frames.
    reasons : dict
        Index -> what the potential said of a frame that is not computable.
    """

    rows: dict[str, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, defect: str, index: int, reason: str | None = None) -> None:
        """Count a frame under a defect."""
        insort(self.rows.setdefault(defect, []), index)
        if reason is not None:
            self.reasons[index] = reason

    def refuse(
        self, frames: Sequence[Atoms], labels: Labels, exclude: Collection[str]
    ) -> None:
        """Raise LabelError for defects that ``exclude`` does not name.

        Frames without information are never refused: nobody has to correct them.
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
        if rows := refused.get("missing"):
            msg += _why_missing(frames[rows[0]], rows[0], labels)
        for index in refused.get(NOT_COMPUTABLE, [])[:1]:
            msg += f"; not computable: frame {index}: {self.reasons[index]}"
        raise LabelError(msg)


def _why_missing(frame: Atoms, index: int, labels: Labels) -> str:
    """Say what was looked for, what is there, and which of it may be the label."""
    what = "energy" if labels.of_energy else "forces"
    key = labels.energy_key if labels.of_energy else labels.forces_key
    stored = [] if frame.calc is None else sorted(frame.calc.results)
    msg = (
        f"; missing: no {what} under {key!r}, frame {index} has info "
        f"{sorted(frame.info)}, arrays {sorted(frame.arrays)} and, read by ASE, "
        f"{stored}"
    )
    if what in stored:
        msg += (
            f"; if the {what} read by ASE are the reference, say "
            f"{what}_key={what!r} (--{what}-key {what})"
        )
    return msg


def find_defects(
    frames: Sequence[Atoms], backbone: Backbone, labels: Labels
) -> Defects:
    """Return which frames cannot serve as labels, and why; each under one defect.

    "missing" is a label that is absent or not numbers of the right shape, "duplicate"
    a geometry (with its charge and spin) that came before, "not computable" one that
    the potential refuses, such as a molecule where it needs a cell. Of frames without
    information, these are the atoms in vacuum; others show when they are evaluated.
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
    reference = labels.reference(frame)
    if reference is None:
        return "missing"
    numbers = (reference, frame.positions, frame.cell.array)
    if not all(np.all(np.isfinite(part)) for part in numbers):
        return "not finite"
    known = backbone.elements
    if known is not None and set(frame.numbers.tolist()) - known:
        return "unknown elements"
    if not labels.of_energy and is_lone(frame, reference):
        return NO_INFORMATION  # however often it comes, and whatever the pass would say
    if any(_same(frame, other) for other in met.find(frame)):
        return "duplicate"
    met.add([frame])
    return None


def _same(frame: Atoms, other: Atoms) -> bool:
    """Say whether two frames of one geometry are in the same place and state."""
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
    """Return the indices of frames without the defects that ``exclude`` names.

    Raises
    ------
    LabelError
        If there are others.
    """
    found = find_defects(frames, backbone, labels)
    found.refuse(frames, labels, exclude)
    left_out = {index for rows in found.rows.values() for index in rows}
    return [i for i in range(len(frames)) if i not in left_out]
