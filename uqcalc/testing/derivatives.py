"""Compare forces and stress with central differences of the energy."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.testing.clauses import Limits, to_array
from uqcalc.testing.instruments import predict, predict_all


def check_forces(backbone: Backbone, atoms: Atoms, limits: Limits) -> None:
    """Check -dE/dr: the conservative forces, and the user's where they are so."""
    base = predict_all(backbone, atoms)
    components = np.random.default_rng(3).permutation(3 * len(atoms))[:4]
    for atom, axis in zip(*np.divmod(components, 3), strict=True):
        sides = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * limits.step
            sides.append(predict(backbone, moved))
        up, down = sides
        rise = up.energy - down.energy
        pairs = {}
        if base.conservative_forces is not None:
            pairs["the tapped model"] = (to_array(base.conservative_forces), rise)
        if backbone.conservative:
            pairs["the calculator"] = (
                base.results["forces"],
                float(up.results["energy"]) - float(down.results["energy"]),
            )
        for whose, (forces, change) in pairs.items():
            error = abs(float(forces[atom, axis]) + change / (2 * limits.step))
            message = (
                f"forces of {whose} must be -dE/dx to {limits.force_atol:.0e} eV/Å, "
                f"got {error:.1e} at atom {atom}, axis {axis}"
            )
            limits.require("forces", error <= limits.force_atol, message)


def check_stress(backbone: Backbone, atoms: Atoms, limits: Limits) -> None:
    """Check (1/V) dE/dstrain along a random symmetric strain, where there is a cell."""
    base = predict_all(backbone, atoms)
    stress = _stress(backbone, base)
    if stress is None or not atoms.pbc.all():
        return
    rng = np.random.default_rng(4)
    strain = rng.normal(size=(3, 3))
    strain = (strain + strain.T) / (2 * np.linalg.norm(strain))
    size = limits.step / atoms.cell.volume ** (1 / 3)
    energies = []
    for sign in (1, -1):
        strained = atoms.copy()
        cell = atoms.cell.array @ (np.eye(3) + sign * size * strain)
        strained.set_cell(cell, scale_atoms=True)
        energies.append(predict(backbone, strained).energy)
    slope = (energies[0] - energies[1]) / (2 * size)
    weights = np.array([1, 1, 1, 2, 2, 2])  # off-diagonal elements occur twice
    along = full_3x3_to_voigt_6_stress(strain) * weights
    error = abs(float(stress @ along) * atoms.cell.volume - slope)
    limit = limits.force_atol * len(atoms) * 10.0  # eV: every atom moves by up to 10 Å
    message = (
        f"stress must be (1/V) dE/dstrain to {limit:.0e} eV, got {error:.1e} along a "
        "random strain"
    )
    limits.require("stress", error <= limit, message)


def _stress(backbone: Backbone, base: Prediction) -> np.ndarray | None:
    """Return the model's stress that is a derivative of its energy, (6,)."""
    if base.conservative_stress is not None:
        return to_array(base.conservative_stress)
    own = backbone.model_calculator.results
    if not backbone.conservative or "stress" not in own:
        return None
    if "direct_stress" in backbone.provides:  # the results may hold that one
        return None
    stress = np.asarray(own["stress"])
    return stress if stress.shape == (6,) else full_3x3_to_voigt_6_stress(stress)
