"""Labelled frames -> features and errors, in one pass of the backbone each."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from rich.progress import Progress

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.errors import LabelError


# Atoms in one native batch: enough to fill two cores, little enough for any memory.
BATCH_ATOMS = 512
DEFECTS = ("missing", "not finite", "duplicate", "unknown elements", "empty")


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
        """Return the label, shape () or (atoms, 3), or None where there is none."""
        stored = frame.calc.results if frame.calc is not None else {}
        if self.target == "energy":
            value = frame.info.get(self.energy_key, stored.get(self.energy_key))
            shape: tuple[int, ...] = ()
        else:
            value = frame.arrays.get(self.forces_key, stored.get(self.forces_key))
            shape = (len(frame), 3)
        if value is None:
            return None
        array = np.asarray(value, dtype=float)
        return array if array.shape == shape else None

    def error(self, prediction: Prediction, reference: NDArray[np.float64]) -> float:
        """Return the error whose size decides: eV, or eV/Å."""
        results = prediction.results
        if self.target == "energy":
            return abs(float(results["energy"]) - float(reference))
        difference = np.asarray(results["forces"], dtype=float) - reference
        return float(np.sqrt(np.mean(difference**2)))


@dataclass(slots=True, eq=False)
class Dataset:
    """Labelled structures as a probe sees them.

    Attributes
    ----------
    predictions : list of Prediction
        Features on the CPU in float32.
    errors : array (structures,)
        In eV or eV/Å.
    groups : list of str
    excluded : dict
        Defect -> indices of the frames that were left out because of it.
    """

    predictions: list[Prediction]
    errors: NDArray[np.float64]
    groups: list[str]
    excluded: dict[str, list[int]]

    def __len__(self) -> int:
        return len(self.predictions)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """Return the structures at ``indices``."""
        return Dataset(
            [self.predictions[i] for i in indices],
            self.errors[np.asarray(indices, dtype=int)],
            [self.groups[i] for i in indices],
            self.excluded,
        )

    def split(self, fractions: Sequence[float], seed: int) -> list[Dataset]:
        """Divide whole groups into shares of about ``fractions`` of the frames.

        Raises
        ------
        LabelError
            If there are fewer groups than shares.
        """
        members: dict[str, list[int]] = defaultdict(list)
        for index, group in enumerate(self.groups):
            members[group].append(index)
        if len(members) < len(fractions):
            msg = (
                f"labels must come in at least {len(fractions)} groups to be split, got "
                f"{len(members)}; pass separate calibration and test frames, or no "
                "group key where frames are independent"
            )
            raise LabelError(msg)
        names = sorted(members)
        np.random.default_rng(seed).shuffle(names)
        # every share gets one group, then each next group goes where most is missing
        shares: list[list[int]] = [members[name] for name in names[: len(fractions)]]
        goal = np.asarray(fractions) / sum(fractions)
        for name in names[len(fractions) :]:
            sizes = np.array([len(share) for share in shares])
            neediest = int(np.argmin(sizes / sizes.sum() / goal))
            shares[neediest] = shares[neediest] + members[name]
        return [self.subset(sorted(share)) for share in shares]


def build_dataset(
    frames: Sequence[Atoms],
    backbone: Backbone,
    labels: Labels,
    *,
    exclude: Collection[str] = (),
    title: str = "features",
) -> Dataset:
    """Evaluate labelled frames, in native batches where the backbone has them.

    Parameters
    ----------
    exclude : collection of str
        Defects to leave out (and count) instead of refusing them: "missing",
        "not finite", "duplicate", "unknown elements", "empty".

    Raises
    ------
    LabelError
        If a frame has a defect that is not excluded, or none is left.
    """
    found = find_defects(frames, backbone, labels)
    _refuse(found, frames, exclude)
    left_out = {index for indices in found.values() for index in indices}
    kept = [i for i in range(len(frames)) if i not in left_out]
    if not kept:
        msg = f"labelled frames must not be zero, got none usable of {len(frames)}"
        raise LabelError(msg)
    predictions: dict[int, Prediction] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=len(kept))
        for batch in _batches(kept, frames):
            done = backbone.predict_many([frames[i] for i in batch])
            predictions.update(zip(batch, map(_slim, done), strict=True))
            progress.advance(task, len(batch))
    errors = [_error(predictions[i], frames[i], labels) for i in kept]
    groups = [_group(frames[i], i, labels.group_key) for i in kept]
    return Dataset([predictions[i] for i in kept], np.array(errors), groups, found)


def find_defects(
    frames: Sequence[Atoms], backbone: Backbone, labels: Labels
) -> dict[str, list[int]]:
    """Return which frames cannot serve as labels, and why; each under one defect."""
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
    digest = hashlib.sha256(frame.numbers.tobytes())
    for array in (frame.positions, frame.cell.array, frame.pbc):
        digest.update(np.round(np.asarray(array, dtype=float), 6).tobytes())
    if digest.digest() in seen:
        return "duplicate"
    seen.add(digest.digest())
    return None


def _refuse(
    found: dict[str, list[int]], frames: Sequence[Atoms], exclude: Collection[str]
) -> None:
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
        raise LabelError(msg)


def _batches(kept: Sequence[int], frames: Sequence[Atoms]) -> Iterator[list[int]]:
    """Group frames of like size, up to `BATCH_ATOMS` atoms together."""
    batch: list[int] = []
    atoms = 0
    for index in sorted(kept, key=lambda i: len(frames[i])):
        if batch and atoms + len(frames[index]) > BATCH_ATOMS:
            yield batch
            batch, atoms = [], 0
        batch.append(index)
        atoms += len(frames[index])
    if batch:
        yield batch


def _slim(prediction: Prediction) -> Prediction:
    """Keep features and charges as own float32 copies on the CPU."""
    charges = prediction.charges
    return Prediction(
        numbers=prediction.numbers,
        positions=prediction.positions,
        cell=prediction.cell,
        pbc=prediction.pbc,
        results={k: prediction.results[k] for k in ("energy", "forces")},
        energy=prediction.energy,
        forces=prediction.forces,
        features=prediction.features.to("cpu", torch.float32, copy=True),
        charges=None if charges is None else charges.to("cpu", torch.float32, copy=True),
    )


def _error(prediction: Prediction, frame: Atoms, labels: Labels) -> float:
    reference = labels.reference(frame)
    if reference is None:
        msg = "frame must have a label, got none; build the dataset again"
        raise LabelError(msg)
    return labels.error(prediction, reference)


def _group(frame: Atoms, index: int, key: str | None) -> str:
    if key is None:
        return str(index)
    if key not in frame.info:
        msg = (
            f"frame {index} must have the group key {key!r} in info, got "
            f"{sorted(frame.info)}; add it or choose another key"
        )
        raise LabelError(msg)
    return str(frame.info[key])
