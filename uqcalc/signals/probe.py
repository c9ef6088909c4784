"""PROBE as a signal: P(reliable) from the features of the pass that ran anyway."""

from __future__ import annotations

from typing import final

import torch

from uqcalc.backbones.base import Prediction
from uqcalc.probe.checkpoint import Probe
from uqcalc.signals.base import TensorReading


@final
class ProbeSignal:
    """Risk = 1 - P(reliable) after calibration (arXiv:2605.00640).

    Parameters
    ----------
    probe : Probe
    importance : bool
        Whether every reading carries ``probe_importance``; `explain` gives it for
        single geometries otherwise.
    """

    name = "probe"

    def __init__(self, probe: Probe, *, importance: bool = True) -> None:
        self.probe = probe
        self.importance = importance
        charges = {"charges"} if probe.card.charges else set()
        self.requires = frozenset({"features", *charges})

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Read P(reliable) and, where wanted, the attention each atom receives."""
        return self._read(prediction, importance=self.importance)

    def explain(self, prediction: Prediction) -> TensorReading:
        """Return the same reading with importance."""
        return self._read(prediction, importance=True)

    def _read(self, prediction: Prediction, *, importance: bool) -> TensorReading:
        unseen = self.probe.unseen_elements(prediction.numbers)
        reliability, received = self.probe([prediction], importance=importance)
        if unseen:  # it would guess: say that it cannot know
            reliability = torch.full_like(reliability, torch.nan)
        results: dict[str, torch.Tensor] = {"probe_reliability": reliability[0]}
        if received is not None:
            results["probe_importance"] = received
        return TensorReading(
            signal=self.name,
            risk=1.0 - reliability[0],
            results=results,
            per_atom_key="probe_importance" if received is not None else None,
            note=f"elements {unseen} were not in its labels" if unseen else "",
        )
