"""Prediction rigidity: how firmly the fit's structures hold an energy in place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.latent import ZETA2, Rigidity
from uqcalc.probe.labelling.labels import Labels
from uqcalc.signals.base import TensorReading
from uqcalc.signals.card import HeldOut, SignalCard
from uqcalc.signals.fitted import FittedSignal, fit_card
from uqcalc.signals.samples import Samples, Split


if TYPE_CHECKING:
    from uqcalc.probe.dataset import Dataset


# Held-out labels that the factor alpha is taken from, at least.
FEWEST_LABELS = 10
UNCALIBRATED = "uncalibrated: alpha is 1 for want of labels, and the risk has no unit"


@final
class PredictionRigidity(FittedSignal):
    """Standard deviation of the energy from the last layer's prediction rigidity.

    ``sigma^2 = alpha^2 f^T (F^T F / n + zeta^2 I)^-1 f`` with the features f summed
    over the structure, F those of the fit's n structures (LLPR: Bigi et al. 2024,
    doi:10.1088/2632-2153/ad805f), and alpha of maximum likelihood from the energies of
    held-out structures. With the features of one atom it is the local one: how firmly
    that atom's share of the energy is held. The features are what the backbone is
    tapped at, the input of the readout: exact where the readout is linear.

    Without labels alpha is 1: the risk ranks structures, but is no energy.
    An element that was not in the fit gives NaN, with its name in the note.

    Examples
    --------
    >>> rigidity = PredictionRigidity.fit(frames, calculator)  # doctest: +SKIP
    >>> policy = Policy([rigidity.threshold()])  # doctest: +SKIP
    """

    kind = "prediction_rigidity"
    settings_read: ClassVar[Mapping[str, Any]] = {"per_atom": bool}

    def __init__(
        self, card: SignalCard, rigidity: Rigidity, held_out: HeldOut | None = None
    ) -> None:
        super().__init__(card, held_out)
        self.rigidity = rigidity

    @classmethod
    def fit(
        cls,
        frames: Sequence[Atoms] | Dataset,
        calculator: BaseCalculator | Backbone,
        *,
        labels: Labels | None = None,
        per_atom: bool = False,
        regularization: float = ZETA2,
        split: Split = Split(),  # noqa: B008  (frozen)
    ) -> Self:
        """Fit to structures, and calibrate on those that are held out.

        Parameters
        ----------
        frames : sequence of Atoms or Dataset
            The closer to the potential's own training set, the better. A dataset must
            be one of total energies.
        calculator : ase calculator or Backbone
            The potential; of a dataset, the one it was built with.
        labels : Labels, optional
            Where the energies are; ``Labels("energy")`` by default. Frames without any
            serve the fit all the same.
        per_atom : bool
            Whether the risk is sigma over the number of atoms.
        regularization : float
            ``zeta^2``, of features whose mean square is 1.
        split : Split
            Which groups are held out, for alpha and for `threshold`.

        Raises
        ------
        LabelError
            If a frame cannot be evaluated, or the labels are no total energies.

        Warns
        -----
        LabelWarning
            If there are too few energies for alpha.
        """
        labels = labels or Labels("energy")
        if labels.target != "energy" or not regularization > 0:
            msg = (
                "labels must be for the target 'energy' and regularization positive, "
                f"got {labels.target!r} and {regularization}"
            )
            raise LabelError(msg)
        samples = Samples(frames, calculator, labels, split.group_key)
        fitting, held = samples.split(split)
        gram, elements = _gram(samples, fitting)
        rigidity = Rigidity.fit(gram, len(fitting), regularization)
        card = fit_card(
            cls.kind,
            samples,
            elements,
            len(gram),
            risk=f"standard deviation of the energy{' per atom' if per_atom else ''}",
            settings={"per_atom": per_atom, "zeta2": regularization},
            training={"structures": len(fitting), "held_out": len(held)},
        )
        return _calibrated(cls(card, rigidity), samples, held)

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Read the variances on the device of the features."""
        features = prediction.features
        if self.rigidity.scale.device != features.device:
            self.rigidity.to(features.device)
        with torch.no_grad():
            rows = torch.cat([features.double().sum(dim=0, keepdim=True), features])
            sigmas = self.rigidity(rows).sqrt()
        whole = sigmas[0]
        unseen = self.unseen_elements(prediction.numbers)
        if unseen:
            whole = torch.full_like(whole, torch.nan)
        mean = whole / len(prediction.numbers)
        return TensorReading(
            signal=self.name,
            risk=mean if self.card.settings["per_atom"] else whole,
            unit=self.card.unit,
            results={
                "rigidity_sigma": whole,
                "rigidity_sigma_per_atom": mean,
                "rigidity_sigmas": sigmas[1:],
            },
            per_atom_key="rigidity_sigmas",
            note=f"elements {unseen} were not in its fit" if unseen else "",
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the decomposed F^T F with its regularisation."""
        return self.rigidity.state_dict()

    @classmethod
    def rebuild(
        cls, card: SignalCard, held_out: HeldOut, tensors: dict[str, torch.Tensor]
    ) -> Self:
        """Make it again from `tensors`."""
        return cls(card, Rigidity(tensors), held_out)


def _gram(
    samples: Samples, indices: NDArray[np.int64]
) -> tuple[torch.Tensor, set[int]]:
    """Return F^T F, (dim, dim), and the elements of these structures."""
    gram: torch.Tensor | None = None
    elements: set[int] = set()
    for _, prediction, _ in samples.read(indices, {"features"}):
        total = _sum(prediction)
        product = torch.outer(total, total)
        gram = product if gram is None else gram.add_(product)
        elements.update(np.unique(prediction.numbers).tolist())
    if gram is None:
        msg = "at least one structure must be left to fit on, got none; add frames"
        raise LabelError(msg)
    return gram, elements


def _calibrated(
    signal: PredictionRigidity, samples: Samples, held: NDArray[np.int64]
) -> PredictionRigidity:
    """Return the signal with alpha and thresholds from held-out structures."""
    order: list[int] = []
    sigmas: list[float] = []
    errors: list[float] = []
    sizes: list[int] = []
    for index, prediction, error in samples.read(held, {"features"}, "calibration"):
        order.append(index)
        sizes.append(len(prediction.numbers))
        errors.append(math.nan if error is None else error)
        sigma = float(signal.rigidity(_sum(prediction)).sqrt())
        unseen = signal.unseen_elements(prediction.numbers)
        sigmas.append(math.nan if unseen else sigma)
    deviations, given = np.array(sigmas), np.array(errors)
    alpha, report = _alpha(deviations, given)
    per_atom = signal.card.settings["per_atom"]
    card = replace(
        signal.card,
        unit="" if alpha is None else "eV/atom" if per_atom else "eV",
        settings=signal.card.settings | {"alpha": alpha},
        report=report,
        notes=[*signal.card.notes, *([UNCALIBRATED] if alpha is None else [])],
    )
    if alpha is None and len(held):
        _warn(int(np.isfinite(given).sum()))
    calibrated = PredictionRigidity(card, signal.rigidity.scaled(alpha or 1.0))
    risks = deviations * (alpha or 1.0) / (np.array(sizes) if per_atom else 1)
    calibrated.keep(HeldOut(risks, samples.groups[np.array(order, dtype=int)]))
    return calibrated


def _alpha(
    sigmas: NDArray[np.float64], errors: NDArray[np.float64]
) -> tuple[float | None, dict[str, Any]]:
    """Return alpha of maximum likelihood, and how well it describes the errors."""
    both = np.isfinite(sigmas) & np.isfinite(errors)
    if both.sum() < FEWEST_LABELS:
        return None, {"labels": int(both.sum())}
    ratios = errors[both] / sigmas[both]
    alpha = float(np.sqrt(np.mean(ratios**2)))
    report: dict[str, Any] = {"labels": int(both.sum())}
    for bound in (1, 2):
        share = float(np.mean(np.abs(ratios) <= bound * alpha))
        report[f"errors_within_{bound}_sigma"] = share
    return alpha, report


def _sum(prediction: Prediction) -> torch.Tensor:
    return prediction.features.detach().cpu().double().sum(dim=0)


def _warn(labels: int) -> None:
    text = (
        f"prediction rigidity must have at least {FEWEST_LABELS} held-out energies to "
        f"be calibrated, got {labels} under the key of its Labels; its risk ranks "
        "structures, but has no unit"
    )
    warnings.warn(text, LabelWarning, stacklevel=4)
