"""Labelled frames -> features and errors, in one pass of the backbone each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.batching import batches
from uqcalc.errors import LabelError
from uqcalc.probe.labels import Labels, find_defects, refuse_defects
from uqcalc.probe.units import warn_of_units
from uqcalc.progress import progress_bar


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
                f"labels must come in at least {len(fractions)} groups (distinct "
                f"frames without a group key) to be split, got {len(members)}; add "
                "frames, or pass separate calibration and test frames"
            )
            raise LabelError(msg)
        names = sorted(members)
        np.random.default_rng(seed).shuffle(names)
        # every share gets one group, then each next group goes where most is missing
        shares = [list(members[name]) for name in names[: len(fractions)]]
        goal = np.asarray(fractions) / sum(fractions)
        for name in names[len(fractions) :]:
            sizes = np.array([len(share) for share in shares])
            shares[int(np.argmin(sizes / goal))].extend(members[name])
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
        "not finite" (label or prediction), "duplicate", "unknown elements", "empty".

    Raises
    ------
    LabelError
        If a frame has a defect that is not excluded, or none is left.
    """
    found = find_defects(frames, backbone, labels)
    refuse_defects(found, frames, exclude)
    kept = _kept(frames, found)
    predictions: dict[int, Prediction] = {}
    with progress_bar() as progress:
        task = progress.add_task(title, total=len(kept))
        by_size = sorted(kept, key=lambda i: len(frames[i]))
        for batch in batches(by_size, lambda i: len(frames[i])):
            done = backbone.predict_many([frames[i] for i in batch])
            predictions.update(zip(batch, map(_slim, done), strict=True))
            progress.advance(task, len(batch))
    if broken := [i for i in kept if not _finite(predictions[i])]:
        found["not finite"] = sorted(found.get("not finite", []) + broken)
        refuse_defects(found, frames, exclude)
        kept = _kept(frames, found)
    references = [_reference(frames[i], labels) for i in kept]
    warn_of_units(labels.target, [predictions[i] for i in kept], references)
    errors = [
        labels.error(predictions[i], reference)
        for i, reference in zip(kept, references, strict=True)
    ]
    groups = [_group(frames[i], i, labels.group_key) for i in kept]
    return Dataset([predictions[i] for i in kept], np.array(errors), groups, found)


def _kept(frames: Sequence[Atoms], found: dict[str, list[int]]) -> list[int]:
    left_out = {index for indices in found.values() for index in indices}
    kept = [i for i in range(len(frames)) if i not in left_out]
    if not kept:
        counts = {defect: len(rows) for defect, rows in found.items()}
        msg = (
            f"at least one of the {len(frames)} frames must be a usable label, got "
            f"none (left out: {counts}); add labelled frames"
        )
        raise LabelError(msg)
    return kept


def _finite(prediction: Prediction) -> bool:
    return prediction.finite and bool(prediction.features.isfinite().all())


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
        features=_own(prediction.features),
        charges=None if charges is None else _own(charges),
    )


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", torch.float32, copy=True)


def _reference(frame: Atoms, labels: Labels) -> NDArray[np.float64]:
    reference = labels.reference(frame)
    if reference is None:
        msg = "frame must have a label, got none; build the dataset again"
        raise LabelError(msg)
    return reference


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
