"""Signals: what one forward pass says about its own reliability."""

from uqcalc.signals.base import Signal, TensorReading
from uqcalc.signals.force_delta import ForceDelta
from uqcalc.signals.physics import MaxForce
from uqcalc.signals.probe import ProbeSignal
from uqcalc.signals.spread import ForceSpread


__all__ = [
    "ForceDelta",
    "ForceSpread",
    "MaxForce",
    "ProbeSignal",
    "Signal",
    "TensorReading",
]
