"""Conformal intervals: bounds on |error| that hold with a chosen probability."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, final

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError, SignalError
from uqcalc.labels.labels import Labels
from uqcalc.policy import Threshold
from uqcalc.showing import in_words
from uqcalc.signals.base import Signal, TensorReading, check_readable, extended
from uqcalc.signals.card import HeldOut, SignalCard
from uqcalc.signals.fitted import FittedSignal, fit_card, known_kind, rebuilt
from uqcalc.signals.functional import FunctionalSpread
from uqcalc.signals.label_free import (
    EnergySpread,
    EnergyUncertainty,
    ForceSpread,
    MaxForce,
    OrbConfidence,
    StressSpread,
)
from uqcalc.signals.samples import Risks, Samples
from uqcalc.statistics.quantiles import conformal_factor, groups_needed
from uqcalc.targets import TARGETS


if TYPE_CHECKING:
    from uqcalc.labels.dataset import Dataset


_ONE_OF: Any = Literal
_PREFIX = "base."


@final
class ConformalInterval(FittedSignal):
    """An upper bound on the error of a structure, by conformal prediction.

    The bound is ``|error| <= factor * (risk + floor)`` with the risk of a base signal,
    or ``|error| <= factor`` without one. It holds with a probability of at least
    ``coverage`` for a structure of a new group drawn like the groups of the fit, for
    any distribution of the errors (Lei et al. 2018,
    doi:10.1080/01621459.2017.1307116; groups as in
    `uqcalc.statistics.quantiles.group_quantile`).
    The risk of this signal is the bound, in the unit of the error. A `Policy` can limit
    it directly: ``Threshold("conformal_forces", suspect=0.1, unreliable=0.3)``.

    The coverage is an average over structures and over fits. It does not hold for each
    kind of structure separately, nor for a run that leaves the distribution of the fit.
    The bound is NaN for elements outside the fit and where the base risk is NaN.
    """

    kind = "conformal_interval"
    settings_read: ClassVar[Mapping[str, Any]] = {
        "target": _ONE_OF[tuple(TARGETS)],
        "coverage": float,
        "factor": float,
        "floor": float,
        "signal": str,
        "base": dict[str, Any],
    }

    def __init__(
        self, card: SignalCard, base: Signal, held_out: HeldOut | None = None
    ) -> None:
        super().__init__(card, held_out)
        self.base = base
        self.name = f"conformal_{card.settings['target']}"
        self.judges = frozenset({TARGETS[card.settings["target"]].of})
        self.requires = base.requires
        self.interval: int = getattr(base, "interval", 1)

    @classmethod
    def fit(
        cls,
        frames: Sequence[Atoms] | Dataset,
        calculator: BaseCalculator | Backbone,
        signal: Signal | None = None,
        *,
        target: str = "forces",
        coverage: float = 0.9,
        labels: Labels | None = None,
        floor: float = 0.0,
    ) -> Self:
        """Fit to labelled structures that no other fit used.

        Parameters
        ----------
        frames : sequence of Atoms or Dataset
            Structures like those that the bound will be used for; ``signal`` must not
            be fitted on them. A dataset must have the target ``target``.
        calculator : ase calculator or Backbone
            The potential; for a dataset, the potential that it was built with.
        signal : Signal, optional
            The base signal, whose risk should grow with the error. Without it the bound
            is the same for all structures.
        target : {"forces", "energy", "energy_per_atom", "atom_forces", "stress", \
"relative_energy"}
            The error that is bounded, as in `uqcalc.Labels`; "relative_energy" needs a
            dataset.
        coverage : float
            Probability with which the bound holds, in (0, 1).
        labels : Labels, optional
            Keys of the references and of the groups.
        floor : float
            Added to the base risk, in its unit, before the scaling. A signal that can
            be zero where the error is not, such as `MaxForce` in relaxed crystals,
            needs a floor, or the factor becomes huge. Choose it without these frames.

        Raises
        ------
        LabelError
            If a frame cannot be evaluated or has no label, or if there are too few
            groups for the coverage; the message gives the number needed.
        ValueError, SignalError
            If the signal cannot read this backbone.
        """
        if target not in TARGETS or not floor >= 0 or not 0 < coverage < 1:
            msg = (
                f"target must be one of {sorted(TARGETS)}, floor at least 0 and "
                f"coverage between 0 and 1, got {target!r}, {floor} and {coverage}"
            )
            raise ValueError(msg)
        given = replace(labels or Labels(), target=target, boundary=None)
        base = Constant() if signal is None else signal
        samples = Samples(frames, extended(tap(calculator), base), given)
        check_readable(base, samples.backbone)
        read = samples.risks(base, np.arange(len(samples)))
        read.refuse_missing(target)
        known = read.where(np.isfinite(read.risks))
        groups = samples.groups[known.order]
        scales = known.risks + floor
        if len(set(groups)) < groups_needed(coverage):
            known.refuse_unknown(base.name, read)
        factor = conformal_factor(known.errors, scales, groups, coverage)
        settings = {"target": target, "coverage": coverage, "factor": factor}
        card = _card(samples, base, known, settings | {"floor": floor})
        interval = cls(card, base)
        interval.keep(HeldOut(factor * scales, groups))
        return interval

    def __call__(self, prediction: Prediction) -> TensorReading | None:
        """Return the bound; None if the base signal does not run on this step."""
        reading = self.base(prediction)
        if reading is None:
            return None
        settings, note = self.card.settings, reading.note
        bound = settings["factor"] * (reading.risk + settings["floor"])
        if unseen := self.unseen_elements(prediction.numbers):
            bound, note = float("nan"), f"elements {unseen} were not in its fit"
        return TensorReading(
            signal=self.name,
            risk=bound,
            unit=self.card.unit,
            results={
                f"{settings['target']}_error_bound": bound,
                **{key: reading.results[key] for key in reading.limits},
            },
            note=note,
            limits=reading.limits,  # the scope of the base signal applies here, too
            far_limits=reading.far_limits,
            doubts=reading.doubts,
            faults=reading.faults,
            absurd=reading.absurd,
        )

    def extend(self, backbone: Backbone) -> Backbone:
        """Return ``backbone`` with the further passes that the base signal needs."""
        return extended(backbone, self.base)

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that this signal or its base was not fitted for."""
        super().check(backbone)
        if hasattr(self.base, "check"):
            self.base.check(backbone)

    def threshold(
        self, *, suspect: float = 0.95, unreliable: float = 0.99
    ) -> Threshold:
        """Return limits at conformal quantiles of the bound over the fit's groups.

        Raises
        ------
        ValueError, LabelError
            As `FittedSignal.threshold`.
        LabelError
            If the bound is the same for all structures.
        """
        if isinstance(self.base, Constant):
            bound = in_words(self.card.settings["factor"], self.card.unit)
            msg = (
                "bound must differ between structures to have quantiles, got "
                f"{bound} for all; fit the bound with a signal"
            )
            raise LabelError(msg)
        return super().threshold(suspect=suspect, unreliable=unreliable)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the base signal; empty if it was not fitted."""
        if isinstance(self.base, FunctionalSpread):
            noise = self.base.perturbation.tensors()
            return {f"{_PREFIX}{name}": value for name, value in noise.items()}
        if not isinstance(self.base, FittedSignal):
            return {}
        own = self.base.tensors() | self.base.held_out.tensors()
        return {f"{_PREFIX}{name}": value for name, value in own.items()}

    @classmethod
    def rebuild(
        cls, card: SignalCard, held_out: HeldOut, tensors: dict[str, torch.Tensor]
    ) -> Self:
        """Build the signal and its base signal from a file.

        Raises
        ------
        SignalError
            If the file does not hold the base signal: pass it to `load`.
        """
        base, name = card.settings["base"], card.settings["signal"]
        own = {k.removeprefix(_PREFIX): v for k, v in tensors.items()}
        if "perturbation" in base:
            return cls(card, _functional(base, own), held_out)
        if "card" in base:
            inner = SignalCard.from_dict(base["card"])
            return cls(card, rebuilt(known_kind(inner), inner, own, name), held_out)
        if base.get("plain") not in _PLAIN:
            msg = (
                "signal= must be given for a conformal interval of the signal "
                f"{name!r}, got None; pass ConformalInterval.load(file, signal=...)"
            )
            raise SignalError(msg)
        return cls(card, _PLAIN[base["plain"]](**base["settings"]), held_out)

    @classmethod
    def load(cls, path: str | os.PathLike[str], signal: Signal | None = None) -> Self:
        """Read a file written by `save`.

        Parameters
        ----------
        signal : Signal, optional
            The base signal of the fit. Needed only if the file cannot hold it, for
            example a `uqcalc.ProbeSignal`.

        Raises
        ------
        SignalError
            If the file holds something else, or if the base signal is missing or has
            another name.
        """
        if signal is None:
            return super().load(path)
        card, tensors = SignalCard.read(path)
        if card.kind != cls.kind or signal.name != card.settings["signal"]:
            msg = (
                f"{path} must be a {cls.kind} of the signal {signal.name!r}, got a "
                f"{card.kind} of {card.settings.get('signal')!r}; pass this signal"
            )
            raise SignalError(msg)
        return cls(card, signal, HeldOut.from_tensors(tensors))


@final
class Constant:
    """A risk of 1 for every structure: the base of a constant bound."""

    name = "constant"
    requires: frozenset[str] = frozenset()

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Return 1."""
        del prediction
        return TensorReading(self.name, 1.0)


# Signals without a fit: the file stores their name. Others are passed to `load`.
_PLAIN: dict[str, Any] = {
    kind.name: kind
    for kind in (Constant, MaxForce, ForceSpread, EnergySpread, StressSpread)
} | {OrbConfidence.name: OrbConfidence, EnergyUncertainty.name: EnergyUncertainty}


def _functional(
    base: Mapping[str, Any], tensors: dict[str, torch.Tensor]
) -> FunctionalSpread:
    """Build the spread of a perturbation from its entry on a card, and its tensors."""
    from uqcalc.perturbation.card import PerturbationCard
    from uqcalc.perturbation.perturbation import Perturbation

    inner = PerturbationCard.from_dict(base["perturbation"])
    perturbation = Perturbation.rebuild(inner, tensors, FunctionalSpread.name)
    return FunctionalSpread(perturbation, **base["settings"])


def _card(
    samples: Samples, base: Signal, read: Risks, settings: dict[str, Any]
) -> SignalCard:
    target, coverage = settings["target"], settings["coverage"]
    bounded = TARGETS[target]
    left_out = len(samples) - len(read.order)
    return fit_card(
        ConformalInterval.kind,
        samples,
        set().union(*read.elements),
        0,  # the base signal checks the width
        risk=f"bound on the {bounded.bounded} that holds for a share {coverage:g}",
        unit=bounded.unit,
        settings=settings | {"signal": base.name, "base": _described(base)},
        training={"structures": len(read.order), "left_out": left_out},
        report={"median_error": float(np.median(read.errors))},
    )


def _described(base: Signal) -> dict[str, Any]:
    """Return the entry of the card from which the base signal is rebuilt."""
    if isinstance(base, FittedSignal):
        return {"card": base.card.to_dict()}
    if isinstance(base, FunctionalSpread):
        card = base.perturbation.card.to_dict()
        return {"perturbation": card, "settings": base.settings}
    if type(base) is _PLAIN.get(base.name):
        return {"plain": base.name, "settings": getattr(base, "settings", {})}
    return {}
