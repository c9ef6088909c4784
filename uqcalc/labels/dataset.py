"""From labelled frames to features and errors, one backbone evaluation per frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.fingerprint import same_model
from uqcalc.cluster import RayWorkers
from uqcalc.errors import LabelError
from uqcalc.labels.comparison import ENOUGH, compare
from uqcalc.labels.defects import (
    NO_INFORMATION,
    NOT_COMPUTABLE,
    find_defects,
    warn_of_no_information,
)
from uqcalc.labels.exploded import exploded, warn_of_exploded
from uqcalc.labels.features import Evaluated, predict_all, predict_cached
from uqcalc.labels.groups import divide, group_names
from uqcalc.labels.labels import Labels
from uqcalc.labels.offsets import (
    crossed_energies,
    fit_offsets,
    offset_energies,
    warn_of_offsets,
    warn_of_span,
)
from uqcalc.labels.regimes import Conditions
from uqcalc.labels.shards import AtomRows, evenly, numbers_of, sizes_of, taken
from uqcalc.probe.card import Card
from uqcalc.probe.seen import geometry_hashes
from uqcalc.targets import QUANTITIES, TARGETS


@dataclass(slots=True, eq=False)
class Dataset:
    """Labelled structures: predictions with features, errors and groups.

    Attributes
    ----------
    predictions : sequence of Prediction
        Features on the CPU in float32; a list in memory, or
        `uqcalc.labels.shards.Shards` on disk.
    errors : array (structures,)
        In the unit of the target (`uqcalc.targets.TARGETS`).
    groups : list of str
    excluded : dict
        Defect -> indices of the frames that were left out because of it.
    atom_errors : sequence of arrays (atoms,), optional
        |ΔF_i| in eV/Å for every target, NaN where the force on the atom vanishes by
        symmetry; None if a frame has no finite reference forces.
    residuals : array (structures,), optional
        Reference minus predicted energy in eV, before offsets; for relative energies
        minus the median of the composition. None for forces and stresses.
    offsets : dict
        Atomic number -> eV that was subtracted from the residuals; empty if none.
    offsets_fitted : bool
        Whether the offsets were fitted to these structures.
    labels : Labels, optional
        Target of the errors and key of the groups.
    fingerprint : str, optional
        Fingerprint of the potential that gave the predictions.
    geometries : array of int64 (structures,), optional
        Hashes of `uqcalc.probe.seen.geometry_hashes`.
    conditions : Conditions, optional
        Regimes and temperatures that ``info`` states.
    """

    predictions: Sequence[Prediction]
    errors: NDArray[np.float64]
    groups: list[str]
    excluded: dict[str, list[int]]
    atom_errors: Sequence[NDArray[Any]] | None = None
    residuals: NDArray[np.float64] | None = None
    offsets: dict[str, float] = field(default_factory=dict)
    offsets_fitted: bool = False
    labels: Labels | None = None
    fingerprint: str | None = None
    geometries: NDArray[np.int64] | None = None
    conditions: Conditions | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def group_key(self) -> str | None:
        """Key of ``atoms.info`` that names the groups; None: each frame is a group."""
        return None if self.labels is None else self.labels.group_key

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Atoms of each structure, (structures,)."""
        return sizes_of(self.predictions)

    @property
    def numbers(self) -> Sequence[NDArray[np.int64]]:
        """Atomic numbers of each structure."""
        return numbers_of(self.predictions)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """Return the structures at ``indices``; predictions on disk stay there."""
        rows = np.asarray(indices, dtype=int)
        said = self.conditions
        of_atoms, residuals = self.atom_errors, self.residuals
        if isinstance(of_atoms, AtomRows):
            of_atoms = of_atoms.take(rows)
        elif of_atoms is not None:
            of_atoms = [of_atoms[i] for i in rows]
        return replace(
            self,
            predictions=taken(self.predictions, rows),
            errors=self.errors[rows],
            groups=[self.groups[i] for i in rows],
            atom_errors=of_atoms,
            residuals=None if residuals is None else residuals[rows],
            geometries=None if self.geometries is None else self.geometries[rows],
            conditions=None if said is None else said.take(rows),
        )

    def check(self, fingerprint: str) -> None:
        """Check that the predictions are of the potential with this fingerprint.

        Raises
        ------
        LabelError
            If the fingerprints differ; the message names both. A dataset without a
            fingerprint passes.
        """
        if self.fingerprint and not same_model(self.fingerprint, fingerprint):
            msg = (
                f"dataset must be of the potential {fingerprint}, got one of "
                f"{self.fingerprint}; build it with that calculator"
            )
            raise LabelError(msg)

    def exploded(self) -> NDArray[np.bool_]:
        """Return on which structures the potential explodes, (structures,) of bool.

        They stay labels, but a fit must exclude them from means, scales and limits
        (`uqcalc.labels.exploded`).
        """
        residuals = self.residuals
        if residuals is not None and self.offsets:
            residuals = residuals - offset_energies(self.numbers, self.offsets)
        return exploded(self.predictions, self.atom_errors, residuals)

    def with_offsets(self, offsets: Mapping[str, float]) -> Dataset:
        """Return the same structures with energy errors after ``offsets`` (in eV).

        Raises
        ------
        LabelError
            If the errors are not of energies.
        """
        numbers, _ = self._energies()
        errors = self._errors_after(offset_energies(numbers, offsets))
        return replace(self, errors=errors, offsets=dict(offsets), offsets_fitted=False)

    def fit_offsets(self) -> Dataset:
        """Return the same structures with errors after offsets fitted to them.

        Raises
        ------
        LabelError
            If the errors are not of energies.
        """
        found = fit_offsets(*self._energies())
        return replace(self.with_offsets(found), offsets_fitted=True)

    def crossed(self) -> Dataset:
        """Return the same structures, each error after offsets from other groups only.

        Offsets fitted to labels make the errors of the same labels too small.
        ``offsets`` does not change. If the offsets were not fitted to these labels,
        nothing changes.
        """
        if not self.offsets_fitted:
            return self
        energies = crossed_energies(*self._energies(), self.groups)
        return replace(self, errors=self._errors_after(energies))

    def split(self, fractions: Sequence[float], seed: int) -> list[Dataset]:
        """Divide whole groups into shares of about ``fractions`` of the frames.

        Offsets that were fitted to all structures are fitted again, to the first share
        only: held-out labels must not affect them.

        Raises
        ------
        LabelError
            If there are fewer groups than shares.
        """
        shares = divide(self.groups, fractions, seed)
        first, *others = [self.subset(share) for share in shares]
        if not self.offsets_fitted:
            return [first, *others]
        first = first.fit_offsets()
        return [first, *(part.with_offsets(first.offsets) for part in others)]

    def _errors_after(self, energies: NDArray[np.float64]) -> NDArray[np.float64]:
        target = "energy" if self.labels is None else self.labels.target
        residuals = self._energies()[1]
        return np.asarray(TARGETS[target].error(residuals, energies, self.sizes))

    def _energies(
        self,
    ) -> tuple[Sequence[NDArray[np.int64]], NDArray[np.float64]]:
        if self.residuals is None:
            msg = "offsets must be of energies, got errors of forces"
            raise LabelError(msg)
        return self.numbers, self.residuals


def build_dataset(  # noqa: PLR0913  (what a set of labels needs)
    frames: Sequence[Atoms],
    backbone: Backbone,
    labels: Labels,
    *,
    exclude: Collection[str] = (),
    offsets: Mapping[str, float] | None = None,
    title: str = "features",
    cache: str | os.PathLike[str] | None = None,
    workers: RayWorkers | None = None,
) -> Dataset:
    """Evaluate labelled frames, in native batches if the backbone has them.

    Parameters
    ----------
    exclude : collection of str
        Frames with these defects are left out and counted, instead of an error:
        "missing", "not finite" (label or prediction), "duplicate", "unknown elements",
        "empty", "not computable" (the potential fails), "no stress" (for the target
        "stress": not periodic in three directions). Frames with "no information" are
        always left out, counted, and named in a warning: for targets of forces, frames
        whose forces vanish by symmetry (isolated atoms, perfect crystals); for relative
        energies, the only frame of a composition.
    offsets : dict, optional
        eV per element (atomic number as a string) to subtract from the residuals; they
        were fitted to other labels of this kind (`Dataset.offsets`). Without them,
        ``labels.offsets=True`` fits offsets to these frames.
    cache : path, optional
        Folder that stores the features. Stored features are not computed again and are
        not held in memory. ``frames`` may then be any sequence, such as an
        ``ase.io.Trajectory`` of more frames than fit into memory.
    workers : RayWorkers, optional
        Workers of a Ray cluster that evaluate the frames, with the same results.

    Raises
    ------
    LabelError
        If a frame has a defect that is not excluded, no frame is left, or the target
        is the stress and the potential gives none in eV/Å³.
    RecordError
        If the cache is of another potential.

    Warns
    -----
    LabelWarning
        If labels seem to be in another unit or of another level of theory, some frames
        have no information, or the potential explodes on some.
    """
    _refuse_without(labels, backbone)
    wanted = sorted({"energy", "forces", labels.of})

    def predict(kept: list[int]) -> Evaluated:
        if cache is None:
            return predict_all(frames, kept, backbone, title, wanted, workers)
        keys = labels.info_keys
        return predict_cached(
            frames, kept, backbone, cache, title, keys, wanted, workers
        )

    data = _labelled(frames, predict, backbone, labels, exclude)
    if data.residuals is None or labels.relative:
        return data
    if offsets:
        return data.with_offsets(offsets)
    if labels.offsets:
        return data.fit_offsets()
    sample = evenly(len(data), ENOUGH)
    numbers = numbers_of(taken(data.predictions, sample))
    warn_of_offsets(numbers, data.residuals[sample])
    return data


def _refuse_without(labels: Labels, backbone: Backbone) -> None:
    """Raise LabelError if the potential lacks the quantity of the labels."""
    if labels.of not in backbone.provides:
        msg = (
            f"potential must give {labels.of} in {QUANTITIES[labels.of].unit} for the "
            f"target {labels.target!r}, got {backbone.name}, which gives "
            f"{sorted(backbone.provides)}; choose another target, or a calculator with "
            f"{labels.of} in this unit"
        )
        raise LabelError(msg)


def _labelled(
    frames: Sequence[Atoms],
    predict: Callable[[list[int]], Evaluated],
    backbone: Backbone,
    labels: Labels,
    exclude: Collection[str],
) -> Dataset:
    """Return the usable frames, before offsets."""
    found = find_defects(frames, backbone, labels)
    found.refuse(frames, labels, exclude)
    kept = _kept(frames, found.rows)
    group_names(frames, labels.group_key, kept)  # raises before the costly evaluation
    predictions, failed = predict(kept)
    for k, reason in failed.items():
        found.add(NOT_COMPUTABLE, kept[k], reason)
    found.refuse(frames, labels, exclude)
    kept = _kept(frames, found.rows)
    seen = compare(frames, kept, predictions, labels)
    sound = np.flatnonzero(seen.finite & ~seen.blank)
    for row in np.asarray(kept)[~seen.finite].tolist():
        found.add("not finite", row)
    for row in np.asarray(kept)[seen.blank].tolist():
        found.add(NO_INFORMATION, row)
    found.refuse(frames, labels, exclude)
    warn_of_no_information(
        found.rows.get(NO_INFORMATION, []), len(frames), relative=labels.relative
    )
    kept = _kept(frames, found.rows)
    data = Dataset(
        taken(predictions, sound),
        seen.errors[sound],
        group_names(frames, labels.group_key, kept),
        found.rows,
        atom_errors=None if seen.atom_errors is None else seen.atom_errors.take(sound),
        residuals=None if seen.residuals is None else seen.residuals[sound],
        labels=labels,
        fingerprint=backbone.fingerprint,
        geometries=geometry_hashes(frames, kept),
        conditions=Conditions.of(frames, kept),
    )
    worst = np.flatnonzero(data.exploded())
    named = np.asarray(kept)[worst]
    warn_of_exploded(named, taken(data.predictions, worst), len(frames))
    return data


def _kept(frames: Sequence[Atoms], found: dict[str, list[int]]) -> list[int]:
    left_out = {index for indices in found.values() for index in indices}
    kept = [i for i in range(len(frames)) if i not in left_out]
    if not kept:
        counts = {defect: len(rows) for defect, rows in found.items()}
        msg = (
            f"at least one of the {len(frames)} frames must have a usable label, got "
            f"none (left out: {counts}); add labelled frames"
        )
        raise LabelError(msg)
    return kept


def labels_for(card: Card, labels: Labels | None) -> Labels:
    """Return the labels for a test of a probe; by default those of its target.

    Raises
    ------
    LabelError
        If the labels are of another target. If they ask for offsets and the probe has
        none: offsets fitted to the test labels would make the result too good.
    """
    wanted = labels or Labels(card.target)
    if wanted.target != card.target:
        msg = (
            f"target of the labels must be {card.target!r}, which this probe was "
            f"fitted for, got {wanted.target!r}"
        )
        raise LabelError(msg)
    if wanted.offsets and not card.offsets:
        msg = (
            "offsets=True must have a probe that was fitted with offsets, got a "
            "probe without; fit the probe with Labels(offsets=True), or pass "
            "offsets=False"
        )
        raise LabelError(msg)
    return wanted


def held_out_dataset(
    card: Card,
    frames: Sequence[Atoms],
    backbone: Backbone,
    labels: Labels,
    exclude: Collection[str],
    cache: str | os.PathLike[str] | None = None,
    workers: RayWorkers | None = None,
) -> Dataset:
    """Evaluate ``frames``, with energy errors after the offsets of the probe.

    ``cache`` is a folder that stores the features, ``workers`` evaluate the frames
    (`build_dataset`).
    """
    offsets = card.offsets or None
    data = build_dataset(
        frames,
        backbone,
        labels,
        exclude=exclude,
        offsets=offsets,
        cache=cache,
        workers=workers,
    )
    warn_of_span(data.numbers, card.training.get("offset_span") if offsets else None)
    return data
