"""Plain physics: numbers that a broken simulation shows without any training."""

from __future__ import annotations

from typing import final

import numpy as np

from uqcalc.backbones.base import Prediction
from uqcalc.signals.base import TensorReading


@final
class MaxForce:
    """The largest force on any atom, max_i |F_i|, in eV/Å."""

    name = "max_force"
    requires = frozenset({"forces"})

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Read it off the forces of the tapped model."""
        norms = np.linalg.norm(prediction.forces, axis=1)
        return TensorReading(
            signal=self.name,
            risk=float(norms.max()),
            unit="eV/Å",
            results={"max_force": float(norms.max())},
        )
