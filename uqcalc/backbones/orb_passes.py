"""Passes of an Orb model through which gradients flow back to the atoms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from uqcalc.backbones.differentiable import Differentiable, strained
from uqcalc.backbones.prediction import Capture


def with_gradient(
    original: Callable[..., dict[str, torch.Tensor]],
    energy: str,
    captured: Capture,
    batch: Any,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Run the one forward pass on differentiable edge vectors, then one backward."""
    with torch.enable_grad():
        vectors, displacement, _ = batch.compute_differentiable_edge_vectors(
            use_stress_displacement=True, use_rotation=False
        )
        batch.edge_features["vectors"] = vectors
        output = original(batch, **options)
        inputs = [batch.node_features["positions"], displacement]
        gradient, virial = torch.autograd.grad(output[energy].sum(), inputs)
    volumes = torch.linalg.det(batch.system_features["cell"]).abs().view(-1, 1, 1)
    stress = torch.where(volumes > 0, virial / volumes, torch.zeros_like(virial))
    captured.more["conservative_forces"] = -gradient
    captured.more["conservative_stress"] = _voigt(stress)
    return {name: value.detach() for name, value in output.items()}


def _voigt(stress: torch.Tensor) -> torch.Tensor:
    """Return (..., 6) of symmetric (..., 3, 3): xx, yy, zz, yz, xz, xy."""
    rows, columns = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
    return stress[..., rows, columns]


def differentiable_pass(
    regressor: Any,
    graph: Any,
    given: torch.Tensor,
    heads: tuple[str, str | None],
) -> Differentiable:
    """Evaluate one graph with its own graph of operations kept.

    ``given`` are the positions, (atoms, 3) in Å; the graph holds them wrapped into the
    cell. ``heads`` name those of the energy and, where there is one, of the forces.
    """
    energy_head, force_head = heads
    wrapped = graph.node_features["positions"]
    positions = given.to(wrapped).requires_grad_()
    strain = torch.zeros(3, 3).to(wrapped).requires_grad_()
    offset = (wrapped - positions).detach()
    cell = graph.system_features["cell"]
    moved, stretched = strained(positions + offset, strain, cell)
    shifts = graph.edge_features["unit_shifts"] @ stretched.squeeze(0)
    graph.node_features["positions"] = moved
    graph.system_features["cell"] = stretched
    vectors = moved[graph.receivers] - moved[graph.senders] + shifts
    graph.edge_features["vectors"] = vectors
    # not the compiled call: compiled graphs cannot be differentiated twice
    features = regressor.model.forward(graph)["node_features"]
    energy = regressor.heads[energy_head].predict(features, graph).sum()
    direct = None
    if force_head is not None:
        direct = regressor.heads[force_head].predict(features, graph)
    if regressor.pair_repulsion:
        repulsion = regressor.pair_repulsion_fn(graph)
        energy = energy + repulsion["energy"].sum()
        if direct is not None and "forces" in repulsion:
            direct = direct + repulsion["forces"]
    # with respect to the strained ones: forces of the strained structure
    (gradient,) = torch.autograd.grad(energy, [moved], create_graph=True)
    return Differentiable(positions, strain, energy, features, -gradient, direct)
