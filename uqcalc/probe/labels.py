"""Labels: where the reference is, and which frames cannot serve as one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.errors import LabelError


DEFECTS = ("missing", "not finite", "duplicate", "unknown elements", "empty")
# What, beyond the geometry, tells two states apart; kept in ``atoms.info``.
_STATE_KEYS = ("charge", "total_charge", "spin", "total_spin")


@dataclass(frozen=True, slots=True)
class Labels:
    """Where the reference is, and which errors count as reliable.

    Attributes
    ----------
    target : {"forces", "energy"}
        RMS force error over the structure [eV/Å], or absolute total energy error
        [eV] (the paper's).
    energy_key, forces_key : str
        Keys of ``atoms.info`` and ``atoms.arrays``; "energy" and "forces" also find
        what ASE's readers put on the frame's calculator. Values in eV and eV/Å.
    group_key : str, optional
        Key of ``atoms.info`` that says which frames belong together (one molecule,
        one run); splits never divide a group.
    percentile : float
        Of the training errors, taken as boundary.
    boundary : float, optional
        The boundary itself, in eV/Å or eV, instead of a percentile.
    """

    target: str = "forces"
    energy_key: str = "REF_energy"
    forces_key: str = "REF_forces"
    group_key: str | None = None
    percentile: float = 50.0
    boundary: float | None = None

    def __post_init__(self) -> None:
        if self.target not in {"forces", "energy"}:
            msg = f"target must be 'forces' or 'energy', got {self.target!r}"
            raise LabelError(msg)
        if not 0 < self.percentile < 100:
            msg = f"percentile must lie in (0, 100), got {self.percentile}"
            raise LabelError(msg)
        if self.boundary is not None and not 0 < self.boundary < np.inf:
            msg = f"boundary must be positive and finite, got {self.boundary}"
            raise LabelError(msg)

    def reference(self, frame: Atoms) -> NDArray[np.float64] | None:
        """Return the label, shape () or (atoms, 3); None where no such numbers are."""
        stored = frame.calc.results if frame.calc is not None else {}
        if self.target == "energy":
            value = frame.info.get(self.energy_key, stored.get(self.energy_key))
            shape: tuple[int, ...] = ()
        else:
            value = frame.arrays.get(self.forces_key, stored.get(self.forces_key))
            shape = (len(frame), 3)
        if value is None:
            return None
        array = np.asarray(value)
        # a None that went through extxyz comes back as True: that is no label
        if array.dtype.kind not in "fiu" or array.shape != shape:
            return None
        return array.astype(float)

    def error(self, prediction: Prediction, reference: NDArray[np.float64]) -> float:
        """Return the error whose size decides: eV, or eV/Å."""
        results = prediction.results
        if self.target == "energy":
            return abs(float(results["energy"]) - float(reference))
        difference = np.asarray(results["forces"], dtype=float) - reference
        return float(np.sqrt(np.mean(difference**2)))


def find_defects(
    frames: Sequence[Atoms], backbone: Backbone, labels: Labels
) -> dict[str, list[int]]:
    """Return which frames cannot serve as labels, and why; each under one defect.

    "missing" is a label that is absent or not numbers of the right shape, "duplicate"
    a geometry (with its charge and spin) that came before.
    """
    found: dict[str, list[int]] = {}
    seen: set[bytes] = set()
    for index, frame in enumerate(frames):
        defect = _defect(frame, backbone, labels, seen)
        if defect is not None:
            found.setdefault(defect, []).append(index)
    return found


def _defect(
    frame: Atoms, backbone: Backbone, labels: Labels, seen: set[bytes]
) -> str | None:
    if len(frame) == 0:
        return "empty"
    reference = labels.reference(frame)
    if reference is None:
        return "missing"
    if not (np.all(np.isfinite(reference)) and np.all(np.isfinite(frame.positions))):
        return "not finite"
    known = backbone.elements
    if known is not None and set(frame.numbers.tolist()) - known:
        return "unknown elements"
    key = geometry_key(frame.numbers, frame.positions, frame.cell.array, frame.pbc)
    key += repr([frame.info.get(name) for name in _STATE_KEYS]).encode()
    if key in seen:
        return "duplicate"
    seen.add(key)
    return None


def geometry_key(
    numbers: NDArray[np.int64], positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike
) -> bytes:
    """Return a digest that two geometries share when equal to 1e-6 Å."""
    digest = hashlib.sha256(np.asarray(numbers, dtype=np.int64).tobytes())
    for array in (positions, cell, pbc):
        # + 0.0 makes one of the two zeros
        rounded = np.round(np.asarray(array, dtype=float), 6) + 0.0
        digest.update(rounded.tobytes())
    return digest.digest()


def refuse_defects(
    found: dict[str, list[int]], frames: Sequence[Atoms], exclude: Collection[str]
) -> None:
    """Raise LabelError for defects that ``exclude`` does not name."""
    if unknown := set(exclude) - set(DEFECTS):
        msg = f"exclude must name defects among {DEFECTS}, got {sorted(unknown)}"
        raise LabelError(msg)
    refused = {defect: found[defect] for defect in found if defect not in exclude}
    if refused:
        listed = "; ".join(
            f"{defect}: {len(rows)} (frames {', '.join(map(str, rows[:5]))}"
            f"{', ...' if len(rows) > 5 else ''})"
            for defect, rows in refused.items()
        )
        msg = (
            f"every one of the {len(frames)} frames must have a usable label, got "
            f"{listed}; correct them or pass exclude={sorted(refused)!r}"
        )
        if rows := refused.get("missing"):
            frame = frames[rows[0]]
            msg += (
                "; missing: nothing of the right shape under the keys of Labels, frame "
                f"{rows[0]} has info {sorted(frame.info)} and arrays "
                f"{sorted(frame.arrays)}"
            )
        raise LabelError(msg)
