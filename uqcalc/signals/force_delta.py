"""Force Delta: difference between the direct and conservative forces of a model."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.differentiable import Differentiable
from uqcalc.distillation.head import DistilledHead
from uqcalc.errors import BackboneError
from uqcalc.signals.base import TensorReading


PROJECTIONS = frozenset({"net_force", "net_torque"})


@final
class ForceDelta:
    """RMS of direct minus conservative force over the 3N components, in eV/Å.

    ``U = sqrt(sum_i |F_direct,i - F_cons,i|^2 / 3N)`` and per atom
    ``|F_direct,i - F_cons,i| / sqrt(3)``, whose RMS is U ("When Forces Disagree: A
    Data-Free Fast Uncertainty Estimate for Direct-Force Pre-trained Neural Network
    Potentials", 2025, equation 1). Both forces come from one forward and one backward
    pass; no labels are needed.

    Some direct heads (Orb's) remove the net force and, for molecules, the net torque
    from their forces. For such a potential uqcalc removes them from both forces before
    the comparison, so that the removal does not add to U. Other heads (metatomic
    models, distilled heads) do not remove the net force. It is then a real error and
    stays in U.

    U is not calibrated: it ranks structures, but is not the size of the force error.
    `uqcalc.calibrate_threshold` gives a limit from runs that you trust.

    If ``FixAtoms`` fixes some atoms, the risk is U over the free atoms
    (``force_delta_free``); ``force_delta`` is U over all atoms. With a distilled head
    the risk is NaN for elements that the head was not distilled on.

    Parameters
    ----------
    head : path or DistilledHead, optional
        A head made by `uqcalc.distill`, for a potential without direct forces. Its
        forces replace the direct forces (experimental).
    projection : bool, optional
        Whether to remove the net force and, for molecules, the net torque from both
        forces. By default uqcalc removes what the head removes
        (`Prediction.projected`). False is equation 1 without a projection.
    interval : int
        Read the signal at every ``interval``-th geometry, from the first one on: the
        backward pass may double the cost of a step. At the others there is no reading,
        and its threshold is skipped.
    """

    name = "force_delta"
    remedy = (
        "distil a head for this model (uqcalc distill) and pass "
        "ForceDelta(head=...), or wrap another model"
    )
    requires: frozenset[str] = frozenset({"direct_forces", "conservative_forces"})

    def __init__(
        self,
        head: str | os.PathLike[str] | DistilledHead | None = None,
        *,
        projection: bool | None = None,
        interval: int = 1,
    ) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            msg = f"interval must be a whole number of at least 1, got {interval!r}"
            raise ValueError(msg)
        self.interval = interval
        self.projection = projection
        if head is not None and not isinstance(head, DistilledHead):
            head = DistilledHead.load(head)
        self.head = head
        if self.head is not None:
            self.requires = self.head.requires | {"conservative_forces"}

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that the head was not distilled from."""
        if self.head is not None:
            self.head.check(backbone)

    def __call__(self, prediction: Prediction) -> TensorReading | None:
        """Return the reading; None if the pass lacks one of the two forces."""
        if prediction.conservative_forces is None:
            return None
        if self.head is None:
            if prediction.direct_forces is None:
                return None
            out = self._taken_out(prediction.projected)
            return _reading(prediction, prediction.direct_forces, out)
        out = self._taken_out(frozenset())
        reading = _reading(prediction, self.head(prediction), out)
        if unseen := self.head.unseen_elements(prediction.numbers):
            note = f"the head was distilled without elements {unseen}"
            return replace(reading, risk=float("nan"), note=note)
        return reading

    def uncertainty(self, graph: Differentiable, atoms: Atoms) -> torch.Tensor:
        """Return U of one geometry in eV/Å, differentiable in the leaves of ``graph``.

        Raises
        ------
        BackboneError
            If the model gives no direct forces.
        """
        direct, projected = graph.direct_forces, graph.projected
        if self.head is not None:
            direct = self.head.differentiable(graph, atoms)
            projected = frozenset()
        if direct is None:
            msg = (
                "model must give direct forces for Force Delta, got none; distil a "
                "head with uqcalc.distill and pass ForceDelta(head=...)"
            )
            raise BackboneError(msg)
        squares = squared_deltas(
            direct,
            graph.conservative_forces,
            graph.positions,
            periodic=bool(atoms.pbc.any()),
            projected=self._taken_out(projected),
        )
        return squares.mean().div(3).sqrt()

    def _taken_out(self, by_the_head: frozenset[str]) -> frozenset[str]:
        """Return the names of the parts that are removed from both forces."""
        if self.projection is None:
            return by_the_head
        return PROJECTIONS if self.projection else frozenset()


def _reading(
    prediction: Prediction,
    direct_forces: torch.Tensor | np.ndarray,
    projected: frozenset[str],
) -> TensorReading:
    """Return the reading for these direct forces, (atoms, 3) in eV/Å."""
    direct = torch.as_tensor(direct_forces)
    conservative = torch.as_tensor(prediction.conservative_forces).to(direct)
    positions = torch.as_tensor(prediction.positions).to(direct.device)
    squares = squared_deltas(
        direct,
        conservative,
        positions,
        periodic=bool(prediction.pbc.any()),
        projected=projected,
    )
    whole = squares.mean().div(3).sqrt()
    results: dict[str, Any] = {
        "force_delta": whole,
        "force_deltas": squares.div(3).sqrt(),
    }
    risk = whole
    if prediction.fixed is not None and not prediction.fixed.all():
        # weights instead of a boolean mask: a mask would wait for the device
        free = torch.as_tensor(~prediction.fixed).to(squares)
        mean = (squares * free).sum() / float((~prediction.fixed).sum())
        risk = results["force_delta_free"] = mean.div(3).sqrt()
    if prediction.direct_stress is not None:
        results["stress_delta"] = _stress_delta(prediction, direct)
    return TensorReading(
        signal=ForceDelta.name,
        risk=risk,
        unit="eV/Å",
        results=results,
        per_atom_key="force_deltas",
    )


def squared_deltas(
    direct: torch.Tensor,
    conservative: torch.Tensor,
    positions: torch.Tensor,
    *,
    periodic: bool,
    projected: frozenset[str],
) -> torch.Tensor:
    """Return |F_direct,i - F_cons,i|^2 in eV²/Å², (atoms,), differentiable.

    ``projected`` names the parts to remove: net force and, for molecules, net torque.
    The projection is linear, so removing them from the difference is enough.
    """
    apart = (direct - conservative).double()
    if "net_force" in projected:
        apart = apart - apart.mean(dim=0)
    if "net_torque" in projected and not periodic:
        apart = without_torque(apart, positions.double())
    return (apart**2).sum(dim=1)


def without_torque(forces: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return forces (atoms, 3) without net torque, changed as little as possible.

    ``F_i - w x r_i`` with ``I w = sum_i r_i x F_i``, r from the centroid and I the
    inertia tensor for equal masses. Its pseudo-inverse works for linear molecules, too.
    """
    arms = positions - positions.mean(dim=0)
    torque = torch.linalg.cross(arms, forces).sum(dim=0)
    squares = (arms**2).sum()
    inertia = squares * torch.eye(3).to(arms) - arms.mT @ arms
    spin: torch.Tensor = torch.linalg.pinv(inertia, rtol=1e-9) @ torque
    turning: torch.Tensor = torch.linalg.cross(spin.expand_as(arms), arms)
    return forces - turning


def _stress_delta(prediction: Prediction, like: torch.Tensor) -> torch.Tensor | float:
    """Return the RMS difference of both stresses over nine components, in eV/Å³.

    NaN if the conservative stress is missing.
    """
    if prediction.conservative_stress is None:
        return float("nan")
    direct = torch.as_tensor(prediction.direct_stress).to(like).double()
    conservative = torch.as_tensor(prediction.conservative_stress).to(like).double()
    twice = torch.tensor([1.0, 1, 1, 2, 2, 2]).to(direct)
    squares: torch.Tensor = twice * (direct - conservative) ** 2
    return squares.sum().div(9).sqrt()
