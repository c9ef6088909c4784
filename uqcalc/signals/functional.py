"""The spread of a learned perturbation: an uncertainty from one potential."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, final

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.errors import ModelError
from uqcalc.files.entries import ElementsSeen
from uqcalc.records import checked_interval
from uqcalc.signals.base import TensorReading
from uqcalc.signals.label_free import VOIGT_COUNTS


if TYPE_CHECKING:
    from uqcalc.perturbation.members import Members
    from uqcalc.perturbation.perturbation import Perturbation


_ENERGY, _STRESS = "functional_energy_spread", "functional_stress_spread"


@final
class FunctionalSpread:
    """Standard deviation of the forces over the members of a learned perturbation.

    In eV/Å, per atom ``s_i = sqrt(sum_k |F_ki - mean_k F_ki|^2 / (3 (K - 1)))`` over
    the K members, and over the structure ``sqrt(mean_i s_i^2)``. A perturbation that
    was trained with the CRPS (arXiv:2605.19939) gives a spread of the size of the
    error on structures like its training frames. The results also have the spread of
    the energy per atom in eV/atom and, for periodic structures, that of the stress in
    eV/Å³ (root mean square over nine components). A `Policy` can limit these, too:
    ``Threshold("functional_energy_spread", ...)``.

    **A reading costs one pass of the potential for each member**; ``interval`` divides
    this cost. Energy and forces in ``results`` stay those of the potential.

    The risk is NaN for elements that the perturbation was not trained on.

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
    stress : bool, optional
        Whether to read the stress of the members. By default if the perturbation was
        trained with stresses. Some potentials (MACE) then evaluate the members of a
        periodic structure one by one.

    Raises
    ------
    ModelError
        If the file is unusable, if there are fewer than 2 members, or, at the first
        use, if the perturbation belongs to another potential.
    ValueError
        If ``interval`` is not a whole number of at least 1.
    """

    name = "functional_spread"
    remedy = "pass the signal to ReliableCalculator, which runs the members"

    def __init__(
        self,
        perturbation: Perturbation | str | os.PathLike[str],
        members: int = 16,
        interval: int = 1,
        seed: int = 0,
        *,
        stress: bool | None = None,
    ) -> None:
        from uqcalc.perturbation.perturbation import Perturbation

        if isinstance(perturbation, str | os.PathLike):
            perturbation = Perturbation.load(perturbation)
        given: object = perturbation
        if not isinstance(given, Perturbation):
            msg = (
                "perturbation must be a Perturbation or its file, got "
                f"{type(given).__name__}; make one with uqcalc.perturb"
            )
            raise ModelError(msg)
        if isinstance(members, bool) or not isinstance(members, int) or members < 2:
            msg = (
                f"members must be a whole number of at least 2, got {members!r}; 8 to "
                "32 are usual"
            )
            raise ModelError(msg)
        self.perturbation = perturbation
        self.members = members
        self.interval = checked_interval(interval, "interval")
        self.seed = seed
        card = perturbation.card
        self._seen = ElementsSeen(card.elements)
        self.stress = bool(card.training.get("stress")) if stress is None else stress
        self.requires = frozenset({"perturbed_forces", "perturbed_energies"})
        # values that a policy can limit, with the quantity that each judges
        self.judged = {
            "functional_force_spread_max": frozenset({"forces"}),
            _ENERGY: frozenset({"energy"}),
        }
        if self.stress:
            self.requires |= {"perturbed_stresses"}
            self.judged[_STRESS] = frozenset({"stress"})

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments, beside the perturbation, that build the same signal."""
        names = ("members", "interval", "seed", "stress")
        return {name: getattr(self, name) for name in names}

    def extend(self, backbone: Backbone) -> Backbone:
        """Return ``backbone`` with the members of the perturbation on demand.

        Raises
        ------
        ModelError
            If the perturbation belongs to another potential, or if another signal needs
            other members.
        """
        from uqcalc.perturbation.members import PerturbedBackbone

        if isinstance(backbone, PerturbedBackbone):
            backbone.check_same(self.perturbation, self.members, self.seed)
            return backbone
        return PerturbedBackbone(backbone, self.perturbation, self.members, self.seed)

    def sample(
        self,
        atoms: Atoms,
        members: int | None = None,
        calculator: BaseCalculator | Backbone | None = None,
    ) -> Members:
        """Return the members for one structure: energies, forces, stresses.

        See `Perturbation.sample`. By default as many members as the signal has, with
        its seed: these are the members of its readings.
        """
        return self.perturbation.sample(
            atoms,
            self.members if members is None else members,
            calculator,
            seed=self.seed,
            stress=self.stress,
        )

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
            _ENERGY: float(np.std(energies, ddof=1)) / len(prediction.numbers),
        }
        stresses = prediction.perturbed_stresses
        if stresses is not None:
            parts = stresses.var(axis=0, ddof=1, dtype=float)
            results[_STRESS] = float(np.sqrt(VOIGT_COUNTS @ parts / VOIGT_COUNTS.sum()))
        note = ""
        if unseen := self._seen.unseen(prediction.numbers):
            note = f"the perturbation was trained without elements {unseen}"
            spread = float("nan")
            results = {key: value * spread for key, value in results.items()}
        return TensorReading(
            signal=self.name,
            risk=spread,
            unit="eV/Å",
            results=results,
            per_atom_key="functional_force_spreads",
            note=note,
        )
