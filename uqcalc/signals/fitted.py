"""The base class of fitted signals: card, file and thresholds."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import version
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
from uqcalc.signals.card import FILE, HeldOut, SignalCard
from uqcalc.signals.samples import Samples
from uqcalc.statistics.quantiles import group_quantile


_OWN = ("conformal", "distance", "rigidity")  # modules with uqcalc's own classes
Fitted = TypeVar("Fitted", bound="FittedSignal")


class FittedSignal(ABC):
    """A signal that was fitted on structures, for one backbone.

    Attributes
    ----------
    card : SignalCard
    held_out : HeldOut
        Risks from which `threshold` takes its limits.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[FittedSignal]]] = {}
    # Types of the card settings that the class reads.
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
        """Return the reading."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors from which, with the card, `rebuild` makes the signal."""

    @classmethod
    @abstractmethod
    def rebuild(
        cls, card: SignalCard, held_out: HeldOut, tensors: dict[str, torch.Tensor]
    ) -> Self:
        """Build the signal from the output of `tensors`."""

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that this signal was not fitted for.

        Raises
        ------
        SignalError
            If the feature width or the fingerprint differs; the message gives both
            values.
        """
        width, expected = backbone.feature_dim, self.card.feature_dim
        if expected and width is not None and width != expected:
            msg = (
                f"{self.name} must match the backbone's feature width, got a signal "
                f"for {expected} features ({self.card.fingerprint}) and a backbone "
                f"with {width} ({backbone.fingerprint}); fit it for this backbone"
            )
            raise SignalError(msg)
        if not same_model(backbone.fingerprint, self.card.fingerprint):
            msg = (
                f"{self.name} must belong to this backbone, got a signal fitted for "
                f"{self.card.fingerprint} and the backbone {backbone.fingerprint}; "
                "load the model it was fitted for, or fit it again"
            )
            raise SignalError(msg)

    def threshold(
        self, *, suspect: float = 0.95, unreliable: float = 0.99
    ) -> Threshold:
        """Return limits at conformal quantiles of the risks of held-out groups.

        For structures of new groups drawn like these, on average at most a fraction
        ``1 - suspect`` is SUSPECT or worse, and at most ``1 - unreliable`` is
        UNRELIABLE (`uqcalc.statistics.quantiles.group_quantile`). The limits measure
        how unusual a structure is, not the error of its forces.

        Raises
        ------
        ValueError
            Unless 0 < suspect <= unreliable < 1.
        LabelError
            If too few groups were held out; the message gives the number needed.
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
        """Compute the risks of the held-out structures for `threshold`."""
        read = samples.risks(self, indices)
        self.keep(HeldOut(read.risks, samples.groups[read.order]))

    def keep(self, held_out: HeldOut) -> None:
        """Store held-out risks for `threshold` and their statistics on the card."""
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
        """Write one safetensors file. A failed write leaves no partial file.

        Raises
        ------
        RecordError, SignalError
            If the folder does not exist, or if a different kind of file has this path.
        """
        return self.card.write(path, self.tensors() | self.held_out.tensors())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file written by `save`.

        Raises
        ------
        SignalError
            If the file holds something else or another kind of signal, or is damaged.
        """
        card, tensors = SignalCard.read(path)
        if card.kind != cls.kind:
            msg = (
                f"file must hold a {cls.kind}, got a {card.kind} in {path}; use "
                "uqcalc.load_signal, which loads any kind"
            )
            raise SignalError(msg)
        return rebuilt(cls, card, tensors, path)


def load_signal(path: str | os.PathLike[str]) -> FittedSignal:
    """Read a file of any fitted signal.

    Raises
    ------
    SignalError
        If this version does not know the kind of signal, or the file is damaged.
    """
    card, tensors = SignalCard.read(path)
    return rebuilt(known_kind(card), card, tensors, path)


def known_kind(card: SignalCard) -> type[FittedSignal]:
    """Return the class of the signal that a card describes."""
    for name in _OWN:  # importing a module registers its class
        import_module(f"uqcalc.signals.{name}")
    if card.kind not in FittedSignal.kinds:
        msg = (
            f"fitted signal must be one of {sorted(FittedSignal.kinds)}, got "
            f"{card.kind!r}; import the module that defines it, or upgrade uqcalc"
        )
        raise SignalError(msg)
    return FittedSignal.kinds[card.kind]


def rebuilt(
    kind: type[Fitted],
    card: SignalCard,
    tensors: dict[str, torch.Tensor],
    origin: object,
) -> Fitted:
    """Build a signal from its card and tensors; a missing entry is a SignalError."""
    try:
        held_out = HeldOut.from_tensors(tensors)
        own = {k: v for k, v in tensors.items() if not k.startswith("held_out.")}
        return kind.rebuild(card, held_out, own)
    except KeyError as error:
        msg = (
            f"{card.kind} in {origin} must be complete, got no entry {error}; "
            f"{FILE.otherwise}"
        )
        raise SignalError(msg) from error
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        msg = (
            f"{card.kind} in {origin} must be readable, got {type(error).__name__}: "
            f"{error}; {FILE.otherwise}"
        )
        raise SignalError(msg) from error


def fit_card(
    kind: str, samples: Samples, elements: Iterable[int], features: int, **entries: Any
) -> SignalCard:
    """Return the card for a fit on these samples."""
    card = SignalCard(
        kind=kind,
        fingerprint=samples.backbone.fingerprint,
        feature_dim=features,
        elements=sorted({int(z) for z in elements}),
        uqcalc_version=version("uqcalc"),
        **entries,
    )
    card.training["groups"] = len(np.unique(samples.groups))
    if not samples.grouped:
        note = (
            "no groups were given, and each frame counts as independent: limits from "
            "frames of one run are too narrow; give a group key"
        )
        card.notes.append(note)
    if samples.offsets:
        card.notes.append(
            "errors of energies are those after subtracting fitted offsets"
        )
    return card
