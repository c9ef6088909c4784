"""Tapped calculators: one backbone pass gives ASE results and features together."""

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.registry import tap


__all__ = ["Backbone", "Prediction", "tap"]
