"""Forces of permuted atoms or rotated structures are not taken for poor predictions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from uqcalc.labels.atomorder import in_another_order


def forces(count=30, atoms=12, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, rng.uniform(0.3, 2.0), (atoms, 3)) for _ in range(count)]


def near(labels, error, seed=1):
    """Predictions with errors of a share of the forces."""
    rng = np.random.default_rng(seed)
    return [x + error * np.std(x) * rng.normal(size=x.shape) for x in labels]


@pytest.mark.parametrize("error", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["permuted", "turned"])
def test_other_atoms_are_found(kind, error):
    labels = forces()
    if kind == "permuted":
        order = np.random.default_rng(2).permutation(12)
        other = [x[order] for x in labels]
    else:
        turn = Rotation.from_euler("xyz", [100, 40, 150], degrees=True)
        other = [turn.apply(x) for x in labels]
    assert in_another_order(near(labels, error), other)


@pytest.mark.parametrize("error", [0.0, 0.1, 0.5, 1.0, 3.0])
def test_poor_potential_is_not_another_order(error):
    labels = forces()
    assert not in_another_order(near(labels, error), labels)
    scaled = [0.2 * x for x in labels]  # softening, or another unit
    assert not in_another_order(scaled, labels)
    assert not in_another_order(forces(seed=5), labels)  # unrelated


def test_few_structures_or_small_forces_are_not_compared():
    labels = forces(4)
    assert not in_another_order(labels, [x[::-1] for x in labels])
    still = [1e-3 * x for x in forces()]
    assert not in_another_order(still, [x[::-1] for x in still])
