"""Tapped calculators: one pass of the model gives ASE results and features."""

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.registry import tap


__all__ = ["Backbone", "Prediction", "tap"]
