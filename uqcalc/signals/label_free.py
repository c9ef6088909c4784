"""Signals without labels: largest force, committee spreads, a model's own estimates."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch

from uqcalc.backbones.base import Prediction
from uqcalc.signals.base import TensorReading


@final
class MaxForce:
    """The largest force on any atom, max_i |F_i|, in eV/Å."""

    name = "max_force"
    requires = frozenset({"forces"})

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Return the reading from the model's forces."""
        norms = np.linalg.norm(prediction.forces, axis=1)
        return TensorReading(
            signal=self.name,
            risk=float(norms.max()),
            unit="eV/Å",
            results={"max_force": float(norms.max())},
        )


# How often each Voigt component of the stress occurs in the 3 x 3 matrix.
VOIGT_COUNTS = np.array([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
_REMEDY = "wrap a committee: uqcalc.Committee([one, other]), or a committee of MACE"


@final
class ForceSpread:
    """The committee's standard deviation of the forces, in eV/Å.

    Per atom ``s_i = sqrt(sum_k |F_ki - mean_k F_ki|^2 / (3 K))`` with the population
    variance over the K members; over the structure ``sqrt(mean_i s_i^2)``
    (Schran et al. 2020, doi:10.1063/5.0016004), and ``max_i s_i``.

    Parameters
    ----------
    reduction : {"rms", "max"}
        The risk is the RMS or the maximum over atoms. The results hold both.
    """

    name = "force_spread"
    remedy = _REMEDY
    requires = frozenset({"committee_forces"})

    def __init__(self, reduction: str = "rms") -> None:
        if reduction not in {"rms", "max"}:
            msg = f"reduction must be 'rms' or 'max', got {reduction!r}"
            raise ValueError(msg)
        self.reduction = reduction

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments that build the same signal."""
        return {"reduction": self.reduction}

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Return the reading from the members' forces, (members, atoms, 3)."""
        members = _members(prediction, "committee_forces")
        per_atom = np.sqrt(members.var(axis=0).mean(axis=1, dtype=float))
        rms = float(np.sqrt(np.mean(per_atom**2)))
        worst = float(per_atom.max())
        return TensorReading(
            signal=self.name,
            risk=rms if self.reduction == "rms" else worst,
            unit="eV/Å",
            results={
                "force_spread": rms,
                "force_spread_max": worst,
                "force_spreads": per_atom,
            },
            per_atom_key="force_spreads",
        )


@final
class EnergySpread:
    """The committee's standard deviation of the energy per atom, in eV/atom.

    ``sqrt(sum_k (E_k - mean_k E_k)^2 / K) / atoms``, with the population variance over
    the K members. Different energy zeros of the members add to it: use it for members
    that were trained on the same labels.
    """

    name = "energy_spread"
    remedy = _REMEDY
    requires = frozenset({"committee_energies"})

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Return the reading from the members' energies, (members,)."""
        members = _members(prediction, "committee_energies")
        risk = float(np.std(members, dtype=float)) / len(prediction.numbers)
        return TensorReading(
            signal=self.name,
            risk=risk,
            unit="eV/atom",
            results={"energy_spread": risk},
        )


@final
class StressSpread:
    """The committee's standard deviation of the stress, in eV/Å³.

    Root mean square, over the nine components, of the population standard deviation of
    each component. The risk is NaN, with a note, for a structure that is not periodic
    in all three directions.
    """

    name = "stress_spread"
    judges = frozenset({"stress"})
    remedy = _REMEDY
    requires = frozenset({"committee_stresses"})

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Return the reading from the members' stresses, (members, 6)."""
        if not prediction.pbc.all():
            note = "only structures with three cell vectors have a stress"
            return self._reading(float("nan"), note)
        members = _members(prediction, "committee_stresses")
        variances = members.var(axis=0, dtype=float)
        return self._reading(float(np.sqrt(VOIGT_COUNTS @ variances / 9)))

    def _reading(self, risk: float, note: str = "") -> TensorReading:
        return TensorReading(
            signal=self.name,
            risk=risk,
            unit="eV/Å³",
            results={"stress_spread": risk},
            note=note,
        )


def _members(prediction: Prediction, name: str) -> np.ndarray:
    members: np.ndarray | None = getattr(prediction, name)
    if members is None:
        msg = f"prediction must carry {name}, got None; {_REMEDY}"
        raise ValueError(msg)
    return members


@final
class OrbConfidence:
    """The force error that Orb's confidence head predicts, in eV/Å.

    For each atom, a head of Orb v3 gives probabilities for bins of the mean absolute
    error over the three force components (Rhodes et al. 2025, arXiv:2504.06231). This
    signal is the mean of that distribution; it needs no extra pass. The training of the
    head left out errors above the last bin (0.3 eV/Å), so it cannot predict them.
    `uqcalc.calibrate_threshold` finds limits.

    Parameters
    ----------
    reduce : {"mean", "max"}
        The risk is the mean or the maximum over atoms. The results hold both.
    """

    name = "orb_confidence"
    remedy = "wrap an Orb v3 model, which has a head 'confidence'"
    requires = frozenset({"expected_errors"})
    unit = "eV/Å"

    def __init__(self, reduce: str = "mean") -> None:
        self.reduce = _checked_reduce(reduce)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments that build the same signal."""
        return {"reduce": self.reduce}

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Return the reading from the expected errors, (atoms,)."""
        keys = (
            "expected_force_error",
            "expected_force_error_max",
            "expected_force_errors",
        )
        return _of_atoms(self, prediction.expected_errors, keys)


@final
class EnergyUncertainty:
    """The model's own uncertainty of the energy of each atom, in eV.

    PET-MAD and other models of metatomic compute it in the same pass, as the standard
    deviation from the last layer (LLPR: Bigi et al. 2024,
    doi:10.1088/2632-2153/ad805f). metatomic's calculator warns above 0.1 eV.
    `uqcalc.calibrate_threshold` finds limits for your runs. `EnergySpread` reads the
    ensemble of the same model.

    Parameters
    ----------
    reduce : {"max", "mean"}
        The risk is the maximum or the mean over atoms. The results hold both.
    """

    name = "energy_uncertainty"
    judges = frozenset({"energy"})
    remedy = "wrap a metatomic model with an output 'energy_uncertainty' of each atom"
    requires = frozenset({"energy_uncertainties"})
    unit = "eV"

    def __init__(self, reduce: str = "max") -> None:
        self.reduce = _checked_reduce(reduce)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments that build the same signal."""
        return {"reduce": self.reduce}

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Return the reading from the uncertainties, (atoms,)."""
        keys = (
            "atomic_energy_uncertainty",
            "atomic_energy_uncertainty_max",
            "atomic_energy_uncertainties",
        )
        return _of_atoms(self, prediction.energy_uncertainties, keys)


def _checked_reduce(reduce: str) -> str:
    if reduce not in {"mean", "max"}:
        msg = f"reduce must be 'mean' or 'max', got {reduce!r}"
        raise ValueError(msg)
    return reduce


def _of_atoms(
    signal: OrbConfidence | EnergyUncertainty,
    per_atom: torch.Tensor | None,
    keys: tuple[str, str, str],
) -> TensorReading:
    """Return a reading of one value for each atom; keys of mean, maximum and values."""
    if per_atom is None:
        [field] = signal.requires
        msg = f"prediction must carry {field}, got None; {signal.remedy}"
        raise ValueError(msg)
    mean, worst = per_atom.mean(), per_atom.max()
    return TensorReading(
        signal=signal.name,
        risk=mean if signal.reduce == "mean" else worst,
        unit=signal.unit,
        results=dict(zip(keys, (mean, worst, per_atom), strict=True)),
        per_atom_key=keys[-1],
    )
