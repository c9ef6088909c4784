"""What all signals with a fit have in common: a card, a file, thresholds."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.fingerprint import same_model
from uqcalc.errors import LabelError, SignalError
from uqcalc.files.entries import ElementsSeen, check_some
from uqcalc.policy import Threshold
from uqcalc.signals.base import TensorReading
from uqcalc.signals.card import FILE, SCHEMA, HeldOut, SignalCard, read_signal
from uqcalc.signals.samples import Samples
from uqcalc.statistics.quantiles import group_quantile


_OWN = ("conformal", "distance", "rigidity")  # modules of the classes of our own
Fitted = TypeVar("Fitted", bound="FittedSignal")


class FittedSignal(ABC):
    """A signal that was fitted on structures, for one backbone.

    Attributes
    ----------
    card : SignalCard
    held_out : HeldOut
        What thresholds are taken from.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[FittedSignal]]] = {}
    # Types of the settings on its card that it reads.
    settings_read: ClassVar[Mapping[str, Any]] = {}
    name: str
    remedy = "fit the signal for a backbone that gives them"
    requires: frozenset[str] = frozenset({"features"})

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kinds[cls.kind] = cls

    def __init__(self, card: SignalCard, held_out: HeldOut | None = None) -> None:
        what = f"settings of {card.kind}"
        check_some(self.settings_read, card.settings, what, SignalError, FILE.otherwise)
        self.card = card
        self.held_out = held_out or HeldOut.none()
        self.name = card.kind
        self._seen = ElementsSeen(card.elements)

    @abstractmethod
    def __call__(self, prediction: Prediction) -> TensorReading | None:
        """Read the risk."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what, with the card, makes the same signal again."""

    @classmethod
    @abstractmethod
    def rebuild(
        cls, card: SignalCard, held_out: HeldOut, tensors: dict[str, torch.Tensor]
    ) -> Self:
        """Make it again from `tensors`."""

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that this signal was not fitted for.

        Raises
        ------
        SignalError
            If the feature width or the fingerprint differs; it names both sides.
        """
        width, expected = backbone.feature_dim, self.card.feature_dim
        if expected and width is not None and width != expected:
            msg = (
                f"{self.name} must match the backbone's feature width, got one for "
                f"{expected} features ({self.card.fingerprint}) and a backbone with "
                f"{width} ({backbone.fingerprint}); fit it for this backbone"
            )
            raise SignalError(msg)
        if not same_model(backbone.fingerprint, self.card.fingerprint):
            msg = (
                f"{self.name} must belong to this backbone, got one fitted for "
                f"{self.card.fingerprint} and the backbone {backbone.fingerprint}; "
                "load the model it was fitted for, or fit it again"
            )
            raise SignalError(msg)

    def threshold(
        self, *, suspect: float = 0.95, unreliable: float = 0.99
    ) -> Threshold:
        """Return limits at conformal quantiles of the groups that were held out.

        Of structures of new groups drawn like these, a share of at most
        ``1 - suspect`` will be SUSPECT or worse and ``1 - unreliable`` UNRELIABLE, on
        average (`uqcalc.statistics.quantiles.group_quantile`). That says how unusual a
        structure is, not how wrong its forces are.

        Raises
        ------
        ValueError
            If the quantiles are not in order.
        LabelError
            If too few groups were held out; it says how many it takes.
        """
        if not 0 < suspect <= unreliable < 1:
            msg = (
                "quantiles must be 0 < suspect <= unreliable < 1, got "
                f"{suspect} and {unreliable}"
            )
            raise ValueError(msg)
        if not len(self.held_out.risks):
            msg = (
                f"thresholds of {self.name} must come from groups that were held out, "
                "got none; fit it with Split(held_out=0.2), or use "
                "uqcalc.calibrate_threshold"
            )
            raise LabelError(msg)
        risks, groups = self.held_out.risks, self.held_out.groups
        return Threshold(
            self.name,
            suspect=group_quantile(risks, groups, suspect),
            unreliable=group_quantile(risks, groups, unreliable),
        )

    def hold_out(self, samples: Samples, indices: NDArray[np.int64]) -> None:
        """Read the structures that were kept from the fit, for `threshold`."""
        read = samples.risks(self, indices)
        self.keep(HeldOut(read.risks, samples.groups[read.order]))

    def keep(self, held_out: HeldOut) -> None:
        """Take thresholds from these, and say on the card what they are."""
        self.held_out = held_out
        self.card.training["held_out_groups"] = len(np.unique(held_out.groups))
        if len(held_out.risks):
            known = held_out.risks[np.isfinite(held_out.risks)]
            self.card.report["held_out_unknown"] = len(held_out.risks) - len(known)
            if len(known):
                median, high = np.quantile(known, [0.5, 0.95])
                self.card.report["held_out_median"] = float(median)
                self.card.report["held_out_95_percent"] = float(high)

    def unseen_elements(self, numbers: NDArray[np.int64]) -> list[str]:
        """Return the symbols in ``numbers`` that were not in the fit."""
        return self._seen.unseen(numbers)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all.

        Raises
        ------
        RecordError, SignalError
            If the folder does not exist, or the file is something else.
        """
        tensors = self.tensors() | self.held_out.tensors()
        card = asdict(self.card)
        card["schema"] = max(self.card.schema, SCHEMA)  # of the file that is written
        return FILE.write(path, tensors, card)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of `save`.

        Raises
        ------
        SignalError
            If it is something else, another signal, or damaged.
        """
        card, tensors = read_signal(path)
        if card.kind != cls.kind:
            msg = (
                f"file must hold a {cls.kind}, got a {card.kind} in {path}; use "
                "uqcalc.load_signal, which takes any"
            )
            raise SignalError(msg)
        return rebuilt(cls, card, tensors, path)


def load_signal(path: str | os.PathLike[str]) -> FittedSignal:
    """Read a file of any fitted signal.

    Raises
    ------
    SignalError
        If it holds none that this version knows, or is damaged.
    """
    card, tensors = read_signal(path)
    return rebuilt(known_kind(card), card, tensors, path)


def known_kind(card: SignalCard) -> type[FittedSignal]:
    """Return the class that a card is of."""
    for name in _OWN:  # a class is known once its module was imported
        import_module(f"uqcalc.signals.{name}")
    if card.kind not in FittedSignal.kinds:
        msg = (
            f"fitted signal must be one of {sorted(FittedSignal.kinds)}, got "
            f"{card.kind!r}; import what defines it, or upgrade uqcalc"
        )
        raise SignalError(msg)
    return FittedSignal.kinds[card.kind]


def rebuilt(
    kind: type[Fitted],
    card: SignalCard,
    tensors: dict[str, torch.Tensor],
    origin: object,
) -> Fitted:
    """Make a signal again; an entry that is not there is an error."""
    try:
        held_out = HeldOut.from_tensors(tensors)
        own = {k: v for k, v in tensors.items() if not k.startswith("held_out.")}
        return kind.rebuild(card, held_out, own)
    except KeyError as error:
        msg = (
            f"{card.kind} in {origin} must hold all it was saved with, got none named "
            f"{error}; {FILE.otherwise}"
        )
        raise SignalError(msg) from error
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        msg = (
            f"{card.kind} in {origin} must be as it was saved, got what cannot be read "
            f"({type(error).__name__}: {error}); {FILE.otherwise}"
        )
        raise SignalError(msg) from error


def fit_card(
    kind: str, samples: Samples, elements: Iterable[int], features: int, **entries: Any
) -> SignalCard:
    """Return the card of a fit on these samples."""
    card = SignalCard(
        kind=kind,
        fingerprint=samples.backbone.fingerprint,
        feature_dim=features,
        elements=sorted({int(z) for z in elements}),
        **entries,
    )
    card.training["groups"] = len(np.unique(samples.groups))
    if not samples.grouped:
        note = (
            "no groups were given: each frame counts by itself, though frames of one "
            "run repeat each other; give a group key, or limits come out too narrow"
        )
        card.notes.append(note)
    if samples.offsets:
        card.notes.append("errors of energies are those after fitted offsets")
    return card
