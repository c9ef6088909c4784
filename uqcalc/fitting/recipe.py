"""Settings for the training of a probe, in one frozen record."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, replace
from typing import Any

from uqcalc.probe.card import (
    ARCHITECTURES,
    JOINED_ARCHITECTURE,
    RAW_ARCHITECTURE,
)
from uqcalc.probe.inputs import SCALARS
from uqcalc.probe.network import Shape


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings for the training of a probe.

    The defaults are for hundreds to tens of thousands of labels.
    ``Recipe.published()`` is the recipe of the PROBE paper (arXiv:2605.00640, section
    4.1).

    Attributes
    ----------
    architecture : {"joined", "standard", "probe-2026"}
        "joined" combines attention with three other paths (`uqcalc.probe.stacked`);
        "standard" is its attention alone; "probe-2026" is the published network.
    folds : int
        Folds of the groups for weights and calibration of "joined".
    epochs, patience : int
        Largest number of passes over the labels, and number of passes without a lower
        validation loss after which training stops. With ``most_steps``, a pass over
        more than 500 batches counts as several.
    batch_size : int
        Structures in a gradient step.
    most_steps : int or None
        Largest number of gradient steps; None for no limit.
    atomic_energies : mapping or None
        For "probe-2026" only: eV by atomic number or symbol, subtracted from the
        predicted energy. None means the atomic shifts of an AIMNet2 model, and nothing
        for other models (`uqcalc.probe.official`).
    suspect, unreliable : float
        Cutoffs on P(reliable) of the default policy. By default a prediction is SUSPECT
        if P < 0.8 and UNRELIABLE if P < 0.5.
    """

    architecture: str = JOINED_ARCHITECTURE
    folds: int = 3
    epochs: int = 60
    patience: int = 12
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 64
    dropout: float = 0.1
    size_normalised: bool = False
    most_steps: int | None = 30_000
    atomic_energies: Mapping[int | str, float] | None = None
    suspect: float = 0.8
    unreliable: float = 0.5
    seed: int = 0
    devices: InitVar[int | None] = None
    accelerator: InitVar[str | None] = None

    def __post_init__(self, devices: int | None, accelerator: str | None) -> None:
        if devices is not None or accelerator is not None:
            text = (
                "devices and accelerator of a Recipe are ignored now, got "
                f"{devices!r} and {accelerator!r}: a probe trains on the CPU, in one "
                "process; leave them out"
            )
            warnings.warn(text, DeprecationWarning, stacklevel=3)
        if self.architecture not in ARCHITECTURES:
            msg = (
                f"architecture must be one of {ARCHITECTURES}, got "
                f"{self.architecture!r}"
            )
            raise ValueError(msg)
        for name in ("epochs", "patience", "batch_size", "most_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                msg = f"{name} must be at least 1, got {value}"
                raise ValueError(msg)
        if self.atomic_energies and self.architecture != RAW_ARCHITECTURE:
            msg = (
                f"atomic_energies must be left out for the architecture "
                f"{self.architecture!r}, which learns them, got "
                f"{dict(self.atomic_energies)}; they are for Recipe.published()"
            )
            raise ValueError(msg)
        if self.folds < 2:
            msg = (
                f"folds must be at least 2, got {self.folds}, because one fold is "
                "held out at a time; 3 is usual"
            )
            raise ValueError(msg)

    @classmethod
    def published(cls, **changes: Any) -> Recipe:
        """Return the published recipe with ``changes``.

        Where paper and released scripts (isayevlab/PROBE, June 2026) differ, or the
        scripts differ from each other, it follows the paper:

        ==================  ================  ================  ====================
        choice              here              paper             released scripts
        ==================  ================  ================  ====================
        label               `Labels` given    total energy      total energy
        epochs at most      1 000             not said          1 000
        patience            25                25                25 AIMNet2, 10 MACE
        batch               256               not said          3 072 AIMNet2, 256 MACE
        watched             a tenth of the    90/10 split       a tenth of the frames
                            groups
        class weights       inverse           inverse           none
                            frequency         frequency
        boundary            median of the     median of the     median of the
                            labels            training errors   training errors
        energy of AIMNet2   less atomic       predicted         less atomic energies,
                            energies, no      energy            no dispersion
                            dispersion
        importance          of the real       of the real       of padded atoms, too;
                            atoms             atoms             without charges
        missing labels      refused           not said          taken for 0 eV
        calibration         Platt, on frames  none              none
                            left out
        ==================  ================  ================  ====================

        If the boundary is the median, class weights are 1, and paper and scripts agree.
        To follow the scripts as closely as possible: use ``Labels("energy")`` without a
        ``group_key`` (the default target is forces), pass ``calibration=`` and
        ``test=`` frames to `uqcalc.fit`, so that only the tenth is taken from the
        training frames, and set ``patience=10`` for MACE or ``batch_size=3072`` for
        AIMNet2.
        """
        recipe = cls(
            architecture=RAW_ARCHITECTURE,
            epochs=1000,
            patience=25,
            learning_rate=5e-5,
            weight_decay=1e-4,
            batch_size=256,
            size_normalised=True,
            most_steps=None,
        )
        return replace(recipe, **changes)

    def shape(self, features: int, *, charges: bool) -> Shape:
        """Return the sizes of the network."""
        if self.architecture == RAW_ARCHITECTURE:
            return Shape(features, charges=charges, dropout=self.dropout)
        return Shape(
            features,
            scalars=SCALARS,
            width=64,
            heads=8,
            encoder=(128,),
            classifier=(64,),
            embedding=64,
            charges=charges,
            dropout=self.dropout,
        )
