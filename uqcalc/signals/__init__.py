"""Signals: what one forward pass says about its own reliability."""

from uqcalc.signals.base import Signal, TensorReading
from uqcalc.signals.card import SignalCard
from uqcalc.signals.confidence import OrbConfidence
from uqcalc.signals.conformal import ConformalInterval
from uqcalc.signals.distance import LatentDistance
from uqcalc.signals.fitted import FittedSignal, load_signal
from uqcalc.signals.force_delta import ForceDelta
from uqcalc.signals.physics import MaxForce
from uqcalc.signals.probe import ProbeSignal
from uqcalc.signals.rigidity import PredictionRigidity
from uqcalc.signals.samples import Split
from uqcalc.signals.sanity import Sanity
from uqcalc.signals.spread import EnergySpread, ForceSpread, StressSpread


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
