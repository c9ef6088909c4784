"""Signals: measures of reliability that are computed from one forward pass."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from uqcalc.signals.base import Signal, TensorReading
    from uqcalc.signals.card import SignalCard
    from uqcalc.signals.conformal import ConformalInterval
    from uqcalc.signals.distance import LatentDistance
    from uqcalc.signals.fitted import FittedSignal, load_signal
    from uqcalc.signals.force_delta import ForceDelta
    from uqcalc.signals.label_free import (
        EnergySpread,
        ForceSpread,
        MaxForce,
        OrbConfidence,
        StressSpread,
    )
    from uqcalc.signals.probe import ProbeSignal
    from uqcalc.signals.rigidity import PredictionRigidity
    from uqcalc.signals.samples import Split
    from uqcalc.signals.sanity import Sanity

# Public name -> module, imported on first use, so that cards are read without torch.
_HOME = {
    "ConformalInterval": "conformal",
    "EnergySpread": "label_free",
    "FittedSignal": "fitted",
    "ForceDelta": "force_delta",
    "ForceSpread": "label_free",
    "LatentDistance": "distance",
    "MaxForce": "label_free",
    "OrbConfidence": "label_free",
    "PredictionRigidity": "rigidity",
    "ProbeSignal": "probe",
    "Sanity": "sanity",
    "Signal": "base",
    "SignalCard": "card",
    "Split": "samples",
    "StressSpread": "label_free",
    "TensorReading": "base",
    "load_signal": "fitted",
}

__all__ = [
    "ConformalInterval",
    "EnergySpread",
    "FittedSignal",
    "ForceDelta",
    "ForceSpread",
    "LatentDistance",
    "MaxForce",
    "OrbConfidence",
    "PredictionRigidity",
    "ProbeSignal",
    "Sanity",
    "Signal",
    "SignalCard",
    "Split",
    "StressSpread",
    "TensorReading",
    "load_signal",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
