"""Committee disagreement, where the wrapped calculator is a committee."""

from __future__ import annotations

from typing import final

import numpy as np

from uqcalc.backbones.base import Prediction
from uqcalc.signals.base import TensorReading


@final
class ForceSpread:
    """RMS over atoms of the committee's force standard deviation, in eV/Å.

    Per atom ``s_i = sqrt(sum_k |F_ki - mean_k F_ki|^2 / (3 K))`` with the population
    variance over the K members; the risk is ``sqrt(mean_i s_i^2)``
    (Schran et al. 2020, doi:10.1063/5.0016004).
    """

    name = "force_spread"
    requires = frozenset({"committee_forces"})

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Read it off the members' forces, shape (members, atoms, 3)."""
        members = prediction.committee_forces
        if members is None:
            msg = "prediction must carry committee_forces, got None; wrap a committee"
            raise ValueError(msg)
        per_atom = np.sqrt(members.var(axis=0).mean(axis=1, dtype=float))
        risk = float(np.sqrt(np.mean(per_atom**2)))
        return TensorReading(
            signal=self.name,
            risk=risk,
            unit="eV/Å",
            results={"force_spread": risk, "force_spreads": per_atom},
            per_atom_key="force_spreads",
        )
