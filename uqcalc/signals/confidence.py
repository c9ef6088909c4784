"""A model's own confidence: what Orb v3 expects of its forces."""

from __future__ import annotations

from typing import Any, final

from uqcalc.backbones.base import Prediction
from uqcalc.signals.base import TensorReading


@final
class OrbConfidence:
    """The force error that the model itself expects, in eV/Å.

    Orb v3 has a head that gives, for each atom, probabilities of bins of the mean
    absolute error over the three components of its force (Rhodes et al. 2025,
    arXiv:2504.06231). The mean of that distribution is read, in the pass that runs
    anyway. Larger errors than that of the last bin (0.3 eV/Å) were left out when the
    head was trained: it cannot expect them. `uqcalc.calibrate_threshold` finds limits.

    Parameters
    ----------
    reduce : {"mean", "max"}
        Over atoms: which is the risk. Both are among the results.
    """

    name = "orb_confidence"
    remedy = "wrap an Orb v3 model, whose heads have one named 'confidence'"
    requires = frozenset({"expected_errors"})

    def __init__(self, reduce: str = "mean") -> None:
        if reduce not in {"mean", "max"}:
            msg = f"reduce must be 'mean' or 'max', got {reduce!r}"
            raise ValueError(msg)
        self.reduce = reduce

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the same signal again."""
        return {"reduce": self.reduce}

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Read the expected errors, (atoms,)."""
        per_atom = prediction.expected_errors
        if per_atom is None:
            msg = f"prediction must carry expected_errors, got None; {self.remedy}"
            raise ValueError(msg)
        mean, worst = per_atom.mean(), per_atom.max()
        return TensorReading(
            signal=self.name,
            risk=mean if self.reduce == "mean" else worst,
            unit="eV/Å",
            results={
                "expected_force_error": mean,
                "expected_force_error_max": worst,
                "expected_force_errors": per_atom,
            },
            per_atom_key="expected_force_errors",
        )
