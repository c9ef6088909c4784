"""Perturbations of each potential: equivariant, exact without noise, no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from perturbation.made import DIMENSION, KINDS, opened

from uqcalc.errors import BackboneError
from uqcalc.perturbation.members import PerturbedBackbone


WANTED = ["energy", "forces"]


@pytest.mark.parametrize("kind", KINDS)
def test_zero_noise_is_the_potential_bit_for_bit(kind):
    backbone, perturbation, atoms = opened(kind)
    before = backbone(atoms, WANTED)
    with perturbation.applied(backbone, torch.zeros(1, DIMENSION)):
        zero = backbone(atoms, WANTED)
    with perturbation.applied(backbone, torch.ones(1, DIMENSION)):
        one = backbone(atoms, WANTED)
    assert zero.energy == before.energy
    assert np.array_equal(zero.forces, before.forces)
    assert abs(one.energy - before.energy) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_rotated_structure_has_rotated_members(kind):
    """To the accuracy of the potential: Orb learns the symmetry from data."""
    backbone, perturbation, atoms = opened(kind)
    turned = atoms.copy()
    turned.rotate(70, (1, 2, 3), rotate_cell=True)
    matrix = np.linalg.lstsq(atoms.positions, turned.positions, rcond=None)[0]
    seen = PerturbedBackbone(backbone, perturbation, 3, 0)
    one, other = seen.evaluate_members(atoms), seen.evaluate_members(turned)
    plain = [backbone(a, WANTED).forces for a in (atoms, turned)]
    defect = np.abs(plain[0] @ matrix - plain[1]).max()
    apart = np.abs(one.forces @ matrix - other.forces).max()
    assert apart < 2 * defect + 1e-9
    shift = abs(np.subtract(*(backbone(a, WANTED).energy for a in (atoms, turned))))
    assert np.abs(one.energies - other.energies).max() < 2 * shift + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_on_the_model_after_an_error(kind):
    backbone, perturbation, atoms = opened(kind)
    before = backbone(atoms, WANTED)
    with (
        pytest.raises(KeyError),
        perturbation.applied(backbone, torch.ones(1, DIMENSION)),
    ):
        raise KeyError
    with (
        pytest.raises(BackboneError, match="multiple of the 7 members"),
        perturbation.applied(backbone, torch.ones(7, DIMENSION)),
    ):
        backbone(atoms[:5], WANTED)
    assert not any(m._forward_hooks for m in backbone.network.modules())
    after = backbone(atoms, WANTED)
    assert after.energy == before.energy
    assert np.array_equal(after.forces, before.forces)
