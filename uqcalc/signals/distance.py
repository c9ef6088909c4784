"""Latent distance: how unlike the atoms of a fit the atoms of a structure are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, final

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.latent import AtomSample, Mahalanobis, Neighbours, PerElement
from uqcalc.signals.base import TensorReading
from uqcalc.signals.card import HeldOut, SignalCard
from uqcalc.signals.fitted import FittedSignal, fit_card
from uqcalc.signals.samples import Samples, Split


if TYPE_CHECKING:
    from uqcalc.probe.dataset import Dataset


# Atoms of an element that a fit looks at, unless the user says how many.
PER_ELEMENT = {"mahalanobis": 5000, "nearest": 1000}
_CLASSES: dict[str, type[Mahalanobis | Neighbours]] = {
    "mahalanobis": Mahalanobis,
    "nearest": Neighbours,
}


@final
class LatentDistance(FittedSignal):
    """Distance of each atom's features to those of its element in the fit.

    A pure number, about 1 for atoms like those of the fit. It needs no labels, and
    knows no errors: it says how unusual a structure is. `fit` makes one.

    - "mahalanobis": ``sqrt((x - m)^T C^-1 (x - m) / dim)`` with mean and shrunk
      covariance of the element (Lee et al. 2018, arXiv:1807.03888; see
      `uqcalc.latent.Mahalanobis`).
    - "nearest": mean distance to the k nearest atoms of the element in the fit, of
      features standardised over all atoms, over ``sqrt(dim)``.

    An element that was not in the fit gives NaN, with its name in the note.

    Examples
    --------
    >>> distance = LatentDistance.fit(frames, calculator)  # doctest: +SKIP
    >>> atoms.calc = ReliableCalculator(
    ...     calculator, signals=[distance], policy=Policy([distance.threshold()])
    ... )  # doctest: +SKIP
    """

    kind = "latent_distance"
    settings_read: ClassVar[Mapping[str, Any]] = {
        "kind": Literal["mahalanobis", "nearest"],
        "reduce": Literal["mean", "max"],
    }

    def __init__(
        self, card: SignalCard, distance: PerElement, held_out: HeldOut | None = None
    ) -> None:
        super().__init__(card, held_out)
        self.distance = distance

    @classmethod
    def fit(
        cls,
        frames: Sequence[Atoms] | Dataset,
        calculator: BaseCalculator | Backbone,
        *,
        kind: str = "mahalanobis",
        reduce: str = "mean",
        nearest: int = 5,
        per_element: int | None = None,
        split: Split = Split(),  # noqa: B008  (frozen)
    ) -> Self:
        """Fit to structures that the potential is trusted on; labels are not needed.

        Parameters
        ----------
        frames : sequence of Atoms or Dataset
            The closer to the potential's own training set, the better.
        calculator : ase calculator or Backbone
            The potential; of a dataset, the one it was built with.
        kind : {"mahalanobis", "nearest"}
        reduce : {"mean", "max"}
            Over atoms: which is the risk. Both are among the results.
        nearest : int
            How many neighbours count.
        per_element : int, optional
            Atoms of an element that are looked at (and, for "nearest", kept) at most,
            drawn at random: 5 000, for "nearest" 1 000.
        split : Split
            Which groups are held out, for `threshold`.

        Raises
        ------
        ValueError
            For settings that are none.
        LabelError
            If a frame cannot be evaluated, or there are too few groups.
        """
        _check_settings(kind, reduce, nearest, per_element)
        samples = Samples(frames, calculator, group_key=split.group_key)
        fitting, held = samples.split(split)
        sample = AtomSample(per_element or PER_ELEMENT[kind], split.seed)
        for _, prediction, _ in samples.read(fitting, cls.requires):
            sample.add(prediction.numbers, prediction.features)
        numbers, features = sample.arrays()
        options = {"nearest": nearest} if kind == "nearest" else {}
        distance = _CLASSES[kind].fit(numbers, features, **options)
        card = fit_card(
            cls.kind,
            samples,
            sample.seen,
            features.shape[1],
            risk=f"{reduce} over atoms of the {kind} distance of the features",
            settings={"kind": kind, "reduce": reduce, **options},
            training=_counts(fitting, held, sample, len(numbers)),
        )
        signal = cls(card, distance)
        signal.hold_out(samples, held)
        return signal

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Read the distance of every atom on the device of the features."""
        features = prediction.features
        if self.distance.centre.device != features.device:
            self.distance.to(features.device)
        with torch.no_grad():
            per_atom = self.distance(prediction.numbers, features)
        mean, worst = per_atom.mean(), per_atom.max()
        results: dict[str, Any] = {
            "latent_distance": mean,
            "latent_distance_max": worst,
            "latent_distances": per_atom,
        }
        unseen = self.unseen_elements(prediction.numbers)
        return TensorReading(
            signal=self.name,
            risk=mean if self.card.settings["reduce"] == "mean" else worst,
            results=results,
            per_atom_key="latent_distances",
            note=f"elements {unseen} were not in its fit" if unseen else "",
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the fit's means and covariances, or its reference atoms."""
        return self.distance.state_dict()

    @classmethod
    def rebuild(
        cls, card: SignalCard, held_out: HeldOut, tensors: dict[str, torch.Tensor]
    ) -> Self:
        """Make it again from `tensors`."""
        kind = _CLASSES[card.settings["kind"]]
        return cls(card, kind(tensors), held_out)


def _counts(
    fitting: NDArray[np.int64], held: NDArray[np.int64], sample: AtomSample, used: int
) -> dict[str, int]:
    return {
        "structures": len(fitting),
        "held_out": len(held),
        "atoms": sum(sample.seen.values()),
        "atoms_used": used,
    }


def _check_settings(
    kind: str, reduce: str, nearest: int, per_element: int | None
) -> None:
    if kind not in _CLASSES:
        msg = f"kind must be one of {sorted(_CLASSES)}, got {kind!r}"
        raise ValueError(msg)
    if reduce not in {"mean", "max"}:
        msg = f"reduce must be 'mean' or 'max', got {reduce!r}"
        raise ValueError(msg)
    if nearest < 1 or (per_element is not None and per_element < 1):
        msg = (
            "nearest and per_element must be at least 1, got "
            f"{nearest} and {per_element}"
        )
        raise ValueError(msg)
