"""Prediction rigidity: energy uncertainty from a model's last-layer features."""

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
from torch import nn

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.labels.labels import Labels
from uqcalc.signals.base import TensorReading
from uqcalc.signals.card import HeldOut, SignalCard
from uqcalc.signals.fitted import FittedSignal, fit_card
from uqcalc.signals.samples import Samples, Split


if TYPE_CHECKING:
    from uqcalc.labels.dataset import Dataset


# Regularisation per structure of the fit; ranks change little from 1e-3 to 1.
ZETA2 = 1e-2
# A feature counts as always zero below this fraction of the largest scale.
_CONSTANT = 1e-6


@final
class Rigidity(nn.Module):
    """Variance of a linear last layer: ``alpha^2 f^T (F^T F / n + zeta^2 I)^-1 f``.

    F (n, dim) holds the features of the n structures of the fit, each summed over
    atoms; f (dim,) holds the features of a structure or of one atom. The variance is
    the inverse of the prediction rigidity (Bigi et al. 2024,
    doi:10.1088/2632-2153/ad805f; alpha includes n here). Features are first scaled to a
    mean square of 1, so that ``zeta^2`` has the same weight for all of them.

    The rigidity among the inputs of a probe (`uqcalc.probe.numbers.PlainNumbers`)
    differs: it is ``x^T C^-1 x / dim`` of single atoms, with C their second moment and
    without alpha. The file of this signal holds the eigenvalues of ``F^T F / n`` and
    zeta^2 by themselves; the file of a probe holds one factor of C^-1.

    Parameters
    ----------
    tensors : mapping
        "scale" (dim,), "basis" and "eigenvalues" of F^T F / structures, "alpha2" in
        the squared unit of the errors, and "zeta2".
    """

    scale: torch.Tensor
    basis: torch.Tensor
    eigenvalues: torch.Tensor
    alpha2: torch.Tensor
    zeta2: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name in ("scale", "basis", "eigenvalues", "alpha2", "zeta2"):
            self.register_buffer(name, tensors[name])

    @classmethod
    def fit(cls, gram: torch.Tensor, structures: int, zeta2: float = ZETA2) -> Self:
        """Fit to ``gram`` = F^T F, (dim, dim), over ``structures`` structures."""
        mean = gram.detach().cpu().double() / structures
        scale = mean.diagonal().sqrt()
        scale = torch.where(scale > _CONSTANT * scale.max(), scale, scale.max())
        values, basis = torch.linalg.eigh(mean / scale / scale[:, None])
        return cls(
            {
                "scale": scale,
                "basis": basis.contiguous(),  # same sums as after loading
                "eigenvalues": values.clamp(min=0),
                "alpha2": torch.tensor(1.0, dtype=torch.float64),
                "zeta2": torch.tensor(zeta2, dtype=torch.float64),
            }
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the variance (rows,), float64, for features (rows, dim)."""
        squares = (features.double() / self.scale @ self.basis).square()
        shares: torch.Tensor = squares / (self.eigenvalues + self.zeta2)
        return self.alpha2 * shares.sum(dim=-1)

    def scaled(self, alpha: float) -> Self:
        """Return a copy with this alpha, in the unit of the errors."""
        state = dict(self.state_dict())
        return type(self)(state | {"alpha2": torch.full_like(self.alpha2, alpha**2)})

    def calibrated(self, sums: torch.Tensor, errors: torch.Tensor) -> Self:
        """Return a copy with the maximum-likelihood alpha.

        For Gaussian errors of mean zero it is ``alpha^2 = mean(error^2 / variance)``,
        over structures outside the fit.

        Parameters
        ----------
        sums, errors : tensors (structures, dim), (structures,)
            Features summed over atoms, and errors of the energy.
        """
        variances = self.scaled(1.0)(sums)
        ratios = errors.double().square() / variances
        return self.scaled(float(ratios.mean().sqrt()))


# Smallest number of held-out labels for alpha.
FEWEST_LABELS = 10
UNCALIBRATED = (
    "uncalibrated: alpha is 1, because there were too few labels, and the risk has "
    "no unit"
)


@final
class PredictionRigidity(FittedSignal):
    """Standard deviation of the energy from the last layer's prediction rigidity.

    ``sigma^2 = alpha^2 f^T (F^T F / n + zeta^2 I)^-1 f`` with the features f of the
    structure, summed over atoms, and F of the n structures of the fit (LLPR: Bigi et
    al. 2024, doi:10.1088/2632-2153/ad805f). alpha is the maximum-likelihood value for
    the energies of held-out structures. The features of one atom give the uncertainty
    of the energy of that atom. The features are the input of the readout; the formula
    is exact if the readout is linear.

    Without labels alpha is 1: the risk then ranks structures but is not in eV.
    The risk is NaN for an element outside the fit; the note names it.
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
        """Fit to structures, and calibrate alpha on the held-out ones.

        Parameters
        ----------
        frames : sequence of Atoms or Dataset
            The closer to the potential's own training set, the better. A dataset must
            have total energies as its target.
        calculator : ase calculator or Backbone
            The potential; for a dataset, the potential that it was built with.
        labels : Labels, optional
            Keys of the energies; ``Labels("energy")`` by default. The fit also uses
            frames without energies.
        per_atom : bool
            Whether the risk is sigma divided by the number of atoms.
        regularization : float
            ``zeta^2``, for features whose mean square is 1.
        split : Split
            The groups that are held out for alpha and for `threshold`.

        Raises
        ------
        LabelError
            If a frame cannot be evaluated, or if the labels are not total energies.

        Warns
        -----
        LabelWarning
            If there are too few held-out energies for alpha.
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
        """Compute the standard deviations on the device of the features."""
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
        """Return the eigendecomposition of F^T F / n, the scale, alpha^2 and zeta^2."""
        return self.rigidity.state_dict()

    @classmethod
    def rebuild(
        cls, card: SignalCard, held_out: HeldOut, tensors: dict[str, torch.Tensor]
    ) -> Self:
        """Build the signal from the output of `tensors`."""
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
    """Return the maximum-likelihood alpha and the share of errors within 1, 2 sigma."""
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
        f"be calibrated, got {labels} under the energy key of the labels; the risk "
        "ranks structures, but has no unit"
    )
    warnings.warn(text, LabelWarning, stacklevel=4)
