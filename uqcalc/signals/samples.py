"""The structures that a signal is fitted on: frames or a dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from uqcalc.agreement import vanishing
from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.batching import evaluate_each
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError
from uqcalc.labels.defects import warn_of_no_information
from uqcalc.labels.groups import group_names
from uqcalc.labels.ownresults import is_own_result, refuse_own_results
from uqcalc.progress import progress_bar
from uqcalc.signals.base import Signal, to_host


if TYPE_CHECKING:
    from uqcalc.labels.dataset import Dataset
    from uqcalc.labels.labels import Labels


@dataclass(frozen=True, slots=True, eq=False)
class Risks:
    """Risks and errors of some samples, in the order of evaluation.

    Attributes
    ----------
    order : array (structures,)
        Index of each sample.
    risks : array (structures,)
        Risk; NaN if the signal does not run.
    errors : array (structures,)
        Error; NaN without a label.
    elements : list of sets
        Atomic numbers of each sample.
    """

    order: NDArray[np.int64]
    risks: NDArray[np.float64]
    errors: NDArray[np.float64]
    elements: list[set[int]]

    def where(self, chosen: NDArray[np.bool_]) -> Risks:
        """Return the samples where ``chosen`` is True."""
        elements = [self.elements[i] for i in np.flatnonzero(chosen)]
        return Risks(
            self.order[chosen], self.risks[chosen], self.errors[chosen], elements
        )

    def refuse_missing(self, target: str) -> None:
        """Raise LabelError if a sample has no error."""
        if len(missing := self.order[np.isnan(self.errors)]):
            msg = (
                f"every frame must have a finite reference for {target}, got none in "
                f"{len(missing)} (the first: frame {missing.min()}); leave them out, "
                "or name the key in labels"
            )
            raise LabelError(msg)

    def refuse_unknown(self, name: str, everything: Risks) -> None:
        """Raise LabelError if ``name`` gave no risk for samples of ``everything``."""
        if lost := len(everything.order) - len(self.order):
            msg = (
                f"the risk of the signal {name!r} must be finite for enough frames, "
                f"got NaN for {lost} of {len(everything.order)}, such as frames with "
                "elements that its fit lacked; fit the signal on these elements, or "
                "choose another signal"
            )
            raise LabelError(msg)


@dataclass(frozen=True, slots=True)
class Split:
    """The share of the groups that is held out of a fit, for its thresholds.

    Attributes
    ----------
    held_out : float
        Share of the groups, in [0, 1). With 0 the signal has no thresholds of its own.
    group_key : str, optional
        Key of ``atoms.info`` with the group of a frame (one molecule, one run). Without
        it each frame is its own group. `uqcalc.Labels` can also give the key, and a
        dataset has its own groups.
    seed : int
        Seed of all random choices.
    """

    held_out: float = 0.2
    group_key: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            msg = f"held_out must be a share in [0, 1), got {self.held_out}"
            raise LabelError(msg)


class Samples:
    """Structures in groups, evaluated when they are read.

    Parameters
    ----------
    source : sequence of Atoms or Dataset
        Frames are evaluated in batches; their predictions are not kept in memory.
    calculator : ase calculator or Backbone
        The potential; for a dataset, the potential that it was built with.
    labels : Labels, optional
        Keys of the references of frames.
    group_key : str, optional
        Replaces the key in ``labels``.

    Attributes
    ----------
    groups : array (structures,)
        Group of each structure, as an integer.
    grouped : bool
        Whether the groups were given; otherwise each frame is its own group.
    offsets : bool
        Whether the errors of energies are those after fitted offsets.
    """

    def __init__(
        self,
        source: Sequence[Atoms] | Dataset,
        calculator: BaseCalculator | Backbone,
        labels: Labels | None = None,
        group_key: str | None = None,
    ) -> None:
        from uqcalc.labels.dataset import Dataset  # slow to import

        if isinstance(source, (str, Path, Atoms)):
            msg = (
                f"frames must be a list of Atoms or a Dataset, got "
                f"{type(source).__name__}; read files first: "
                'ase.io.read("frames.xyz", ":")'
            )
            raise LabelError(msg)
        self.backbone = tap(calculator)
        if isinstance(source, Dataset):
            source.check(self.backbone.fingerprint)
            source = source.crossed()  # offsets fitted to other groups only
        self.offsets = False
        self._labels = labels
        self._dataset = source if isinstance(source, Dataset) else None
        self._frames = [] if isinstance(source, Dataset) else list(source)
        if isinstance(source, Dataset):
            _check_labels(source.labels, labels)
            names = list(source.groups)
            self.grouped = source.group_key is not None or len(set(names)) < len(names)
            self.offsets = bool(source.offsets)
        else:
            _refuse_offsets(labels)
            key = group_key or (labels.group_key if labels else None)
            names = group_names(self._frames, key)
            self.grouped = key is not None
        if not names:
            msg = "at least one frame must be given, got none; add frames"
            raise LabelError(msg)
        self.groups = np.unique(names, return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self.groups)

    def split(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices for the fit and the held-out indices, in whole groups.

        Raises
        ------
        LabelError
            If there is only one group.
        """
        names = np.unique(self.groups)
        everything = np.arange(len(self))
        if split.held_out == 0:
            return everything, everything[:0]
        if len(names) < 2:
            msg = (
                "frames must come in at least 2 groups, so that one can be held out, "
                "got 1; add groups, or pass Split(held_out=0) for a signal without "
                "thresholds"
            )
            raise LabelError(msg)
        count = min(max(1, round(split.held_out * len(names))), len(names) - 1)
        held = np.random.default_rng(split.seed).permutation(names)[:count]
        is_held = np.isin(self.groups, held)
        return everything[~is_held], everything[is_held]

    def read(
        self,
        indices: NDArray[np.int64],
        requires: Collection[str] = (),
        title: str = "features",
    ) -> Iterator[tuple[int, Prediction, float | None]]:
        """Yield (index, prediction, error) of each structure.

        The error has the unit of the target; it is None for frames without a label.
        ``requires`` names quantities that the predictions must have. If errors of
        forces are read, frames whose forces vanish by symmetry are left out
        (`uqcalc.labels.defects`).

        Raises
        ------
        LabelError
            If a frame cannot be evaluated, or a dataset lacks a required quantity.

        Warns
        -----
        LabelWarning
            If frames are left out; the message names them.
        """
        if self._dataset is None:
            yield from self._evaluated(indices, requires, title)
            return
        for index in indices:
            prediction = self._dataset.predictions[index]
            _require(prediction, requires)
            yield int(index), prediction, float(self._dataset.errors[index])

    def risks(self, signal: Signal, indices: NDArray[np.int64]) -> Risks:
        """Return risks of a signal, and errors where there are labels.

        Raises
        ------
        LabelError
            As `read`.
        """
        rows: list[tuple[int, float, float]] = []
        elements = []
        title = signal.name
        for index, prediction, error in self.read(indices, signal.requires, title):
            reading = signal(prediction)
            risk = to_host([reading])[0].risk if reading else np.nan
            rows.append((index, risk, np.nan if error is None else error))
            elements.append(set(np.unique(prediction.numbers).tolist()))
        table = np.array(rows, dtype=float).reshape(-1, 3)
        return Risks(table[:, 0].astype(int), table[:, 1], table[:, 2], elements)

    def _evaluated(
        self, indices: NDArray[np.int64], requires: Collection[str], title: str
    ) -> Iterator[tuple[int, Prediction, float | None]]:
        wanted = {"energy", "forces", *({*requires} & self.backbone.on_demand)}
        if self._labels is not None:
            wanted |= {self._labels.of} & self.backbone.provides
        blank: list[int] = []
        own: list[int] = []
        by_size = sorted(indices, key=lambda i: len(self._frames[i]))
        with progress_bar() as progress:
            task = progress.add_task(title, total=len(by_size))
            frames = (self._frames[i] for i in by_size)
            evaluated = evaluate_each(self.backbone, frames, sorted(wanted))
            for index, (_, outcome) in zip(by_size, evaluated, strict=True):
                prediction = _sound(int(index), outcome)
                progress.advance(task)
                if self._says_nothing(index, prediction):
                    blank.append(int(index))
                    continue
                if self._is_own(index, prediction):
                    own.append(int(index))
                yield int(index), prediction, self._error(index, prediction)
        warn_of_no_information(sorted(blank), len(self._frames))
        if self._labels is not None:
            refuse_own_results(sorted(own), len(by_size) - len(blank), self._labels)

    def _says_nothing(self, index: int, prediction: Prediction) -> bool:
        """Return whether forces are the target and vanish by symmetry."""
        if self._labels is None or self._labels.of != "forces":
            return False
        reference = self._labels.reference(self._frames[index])
        if reference is None:
            return False
        return bool(vanishing(prediction.results["forces"], reference).all())

    def _is_own(self, index: int, prediction: Prediction) -> bool:
        """Return whether the label is the result of the potential itself."""
        if self._labels is None or self._labels.of not in prediction.results:
            return False
        reference = self._labels.reference(self._frames[index])
        if reference is None:
            return False
        return is_own_result(prediction, reference, self._labels)

    def _error(self, index: int, prediction: Prediction) -> float | None:
        if self._labels is None:
            return None
        reference = self._labels.reference(self._frames[index])
        if reference is None or not np.all(np.isfinite(reference)):
            return None
        return self._labels.error(prediction, reference)


def _sound(index: int, outcome: Prediction | str) -> Prediction:
    if isinstance(outcome, Prediction):
        if bool(outcome.features.isfinite().all()):
            return outcome
        outcome = "features are NaN or infinite"
    msg = (
        f"the potential must be able to evaluate every frame, got frame {index}: "
        f"{outcome}; leave it out"
    )
    raise LabelError(msg)


def _require(prediction: Prediction, requires: Collection[str]) -> None:
    missing = [
        name
        for name in sorted({*requires} - {"energy", "forces", "stress"})
        if getattr(prediction, name, True) is None
    ]
    if missing:
        msg = (
            f"dataset must hold {missing} for this signal, got a dataset without; "
            "pass the frames instead"
        )
        raise LabelError(msg)


def _check_labels(own: Labels | None, wanted: Labels | None) -> None:
    if own is not None and wanted is not None and own.target != wanted.target:
        msg = (
            f"target of the dataset must be {wanted.target!r}, got {own.target!r}; "
            "build the dataset with other labels, or pass the frames"
        )
        raise LabelError(msg)


def _refuse_offsets(labels: Labels | None) -> None:
    if labels is not None and labels.offsets:
        msg = (
            "labels of a list of frames must have offsets=False, got offsets=True; "
            "pass a Dataset, which fits and subtracts offsets"
        )
        raise LabelError(msg)
