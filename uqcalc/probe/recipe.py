"""How a probe is trained: every choice in one frozen record."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """How a probe is trained.

    The defaults are for hundreds to tens of thousands of labels;
    ``Recipe.published()`` is the paper's (arXiv:2605.00640, section 4.1).

    Attributes
    ----------
    architecture : {"joined", "standard", "probe-2026"}
        The default joins attention, trend and local path (`uqcalc.probe.joined`);
        "standard" is its attention alone.
    folds : int
        Of the groups, for weights and calibration of the default.
    suspect, unreliable : float
        Cutoffs on P(reliable) that the default policy takes: by default SUSPECT when
        more than one in five such predictions is wrong, UNRELIABLE when more than
        half are.
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
    suspect: float = 0.8
    unreliable: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            msg = (
                f"architecture must be one of {ARCHITECTURES}, got "
                f"{self.architecture!r}"
            )
            raise ValueError(msg)
        for name in ("epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)

    @classmethod
    def published(cls, **changes: Any) -> Recipe:
        """Return the published recipe with ``changes``."""
        recipe = cls(
            architecture=RAW_ARCHITECTURE,
            epochs=200,
            patience=25,
            learning_rate=5e-5,
            weight_decay=1e-4,
            size_normalised=True,
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
