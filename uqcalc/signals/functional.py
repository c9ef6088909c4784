"""The spread of a learned perturbation: one potential that knows its uncertainty."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.signals.base import TensorReading
from uqcalc.signals.label_free import VOIGT_COUNTS


if TYPE_CHECKING:
    from uqcalc.perturbation.perturbation import Perturbation


@final
class FunctionalSpread:
    """Standard deviation of the forces over the members of a learned perturbation.

    In eV/Å, per atom ``s_i = sqrt(sum_k |F_ki - mean_k F_ki|^2 / (3 (K - 1)))`` over
    the K members, and over the structure ``sqrt(mean_i s_i^2)``. A perturbation that
    was trained with the CRPS (arXiv:2605.19939) gives a spread of the size of the
    error on structures like its training frames. The results also have the spread of
    the energy per atom in eV/atom and, for periodic structures whose pass gives a
    stress, that of the stress in eV/Å³ (root mean square over nine components).

    **A reading costs one pass of the potential for each member**; ``interval`` divides
    this cost. Energy and forces in ``results`` stay those of the potential.

    Parameters
    ----------
    perturbation : Perturbation or path
        From `uqcalc.perturb`, or its file.
    members : int
        Number of members, at least 2.
    interval : int
        Read at the first of every so many geometries.
    seed : int
        Seed of the members, which are the same at every geometry.

    Raises
    ------
    ModelError
        If the file is unusable, or the perturbation belongs to another potential.
    """

    name = "functional_spread"
    remedy = "pass the signal to ReliableCalculator, which runs the members"

    def __init__(
        self,
        perturbation: Perturbation | str | os.PathLike[str],
        members: int = 16,
        interval: int = 1,
        seed: int = 0,
    ) -> None:
        if isinstance(perturbation, (str, Path, os.PathLike)):
            from uqcalc.perturbation.perturbation import Perturbation

            perturbation = Perturbation.load(perturbation)
        self.perturbation = perturbation
        self.members = members
        self.interval = interval
        self.seed = seed
        self.requires = frozenset({"perturbed_forces", "perturbed_energies"})

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the signal, for logs."""
        return {"members": self.members, "interval": self.interval, "seed": self.seed}

    def extend(self, backbone: Backbone) -> Backbone:
        """Return ``backbone`` with the members of the perturbation on demand.

        Raises
        ------
        ModelError
            If the perturbation belongs to another potential.
        """
        from uqcalc.perturbation.members import PerturbedBackbone

        return PerturbedBackbone(backbone, self.perturbation, self.members, self.seed)

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Return the reading from the members of one geometry."""
        forces, energies = prediction.perturbed_forces, prediction.perturbed_energies
        if forces is None or energies is None:
            msg = f"prediction must carry perturbed_forces, got None; {self.remedy}"
            raise ValueError(msg)
        variances = forces.var(axis=0, ddof=1, dtype=float).mean(axis=1)
        spread = float(np.sqrt(variances.mean()))
        results: dict[str, Any] = {
            "functional_force_spread": spread,
            "functional_force_spread_max": float(np.sqrt(variances.max())),
            "functional_force_spreads": np.sqrt(variances),
            "functional_energy_spread": float(np.std(energies, ddof=1))
            / len(prediction.numbers),
        }
        stresses = prediction.perturbed_stresses
        if stresses is not None:
            parts = stresses.var(axis=0, ddof=1, dtype=float)
            results["functional_stress_spread"] = float(
                np.sqrt(VOIGT_COUNTS @ parts / VOIGT_COUNTS.sum())
            )
        return TensorReading(
            signal=self.name,
            risk=spread,
            unit="eV/Å",
            results=results,
            per_atom_key="functional_force_spreads",
        )
