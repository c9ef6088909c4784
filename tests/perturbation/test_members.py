"""The members of a perturbation: physics, and nothing left on the model."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from backbones.toys import mace_on_shared_models
from builders import salt
from perturbation.made import made

import uqcalc
from uqcalc.errors import BackboneError, ModelError
from uqcalc.perturbation.layers import find_layers
from uqcalc.perturbation.members import PerturbedBackbone
from uqcalc.perturbation.perturbation import Perturbation
from uqcalc.signals.functional import FunctionalSpread


@pytest.fixture(scope="module")
def backbone():
    return uqcalc.tap(uqcalc.open_model("default"))


@pytest.fixture
def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.03, seed=0)
    return atoms


def test_without_weights_every_member_is_the_potential(backbone, ethanol):
    plain = backbone(ethanol, ["energy", "forces"])
    members = PerturbedBackbone(backbone, made(backbone, 0.0), 3, 0)
    found = members.evaluate_members(ethanol)
    np.testing.assert_allclose(found.energies, plain.energy, rtol=1e-6)
    tolerance = 1e-5 * np.abs(plain.forces).max()
    assert np.abs(found.forces - plain.forces).max() < tolerance


def test_nothing_stays_on_the_model(backbone, ethanol):
    before = backbone(ethanol, ["energy", "forces"])
    seen = PerturbedBackbone(backbone, made(backbone), 3, 0)
    during = seen(ethanol, ["energy", "forces", "perturbed_forces"])
    after = backbone(ethanol, ["energy", "forces"])
    assert np.ptp(during.perturbed_energies) > 1e-4
    for other in (during, after):
        assert other.energy == before.energy
        assert np.array_equal(other.forces, before.forces)
    hooks = [m for m in backbone.network.modules() if m._forward_hooks]
    assert not hooks


def test_members_in_one_batch_are_those_of_single_passes(backbone, ethanol):
    perturbation = made(backbone)
    together = PerturbedBackbone(backbone, perturbation, 5, 3).evaluate_members(ethanol)
    draws = perturbation.draws(5, 3, len(ethanol))
    for index in range(5):
        with perturbation.applied(backbone, draws[index : index + 1]):
            alone = backbone(ethanol, ["energy", "forces"])
        assert together.energies[index] == pytest.approx(alone.energy, rel=1e-6)
        np.testing.assert_allclose(together.forces[index], alone.forces, atol=1e-4)


def test_forces_of_a_member_are_the_gradient_of_its_energy(backbone, ethanol):
    seen = PerturbedBackbone(backbone, made(backbone, 0.2), 3, 0)
    step = 0.01
    energies = []
    for sign in (1, -1):
        moved = ethanol.copy()
        moved.positions[2, 0] += sign * step
        energies.append(seen.evaluate_members(moved).energies)
    expected = -(energies[0] - energies[1]) / (2 * step)
    found = seen.evaluate_members(ethanol).forces[:, 2, 0]
    np.testing.assert_allclose(found, expected, atol=0.02 + 0.01 * np.abs(found).max())


def far_apart(one, count):
    several = one.copy()
    for index in range(1, count):
        other = one.copy()
        other.translate((30.0 * index, 0, 0))
        several += other
    return several


def spreads(noise, members, *frames):
    """Return RMS spread of the forces and spread of the total energy of each frame."""
    tiny = uqcalc.tap(mace_on_shared_models())
    seen = PerturbedBackbone(tiny, made(tiny, 0.05, noise), members, 0)
    several = [seen.evaluate_members(frame) for frame in frames]
    forces = [np.sqrt(m.forces.var(axis=0, ddof=1).mean()) for m in several]
    return np.array(forces), np.array([m.energies.std(ddof=1) for m in several])


def test_spread_with_one_vector_forces_constant_energy_as_n():
    """Exact for copies far apart and for images of a cell."""
    water = molecule("H2O")
    forces, energies = spreads("structure", 3, water, far_apart(water, 4))
    np.testing.assert_allclose(forces[1], forces[0], rtol=1e-9)
    np.testing.assert_allclose(energies[1], 4 * energies[0], rtol=1e-9)
    forces, energies = spreads("structure", 3, salt(), salt().repeat((2, 1, 1)))
    np.testing.assert_allclose(forces[1], forces[0], rtol=1e-9)
    np.testing.assert_allclose(energies[1], 2 * energies[0], rtol=1e-9)


def test_spread_with_atom_vectors_forces_constant_energy_as_root_n():
    water = molecule("H2O")
    forces, energies = spreads("atom", 64, water, far_apart(water, 4))
    np.testing.assert_allclose(forces[1], forces[0], rtol=0.2)
    np.testing.assert_allclose(energies[1], 2 * energies[0], rtol=0.2)
    forces, _ = spreads("atom", 8, salt(), salt().repeat((2, 1, 1)))
    np.testing.assert_allclose(forces[1], forces[0], rtol=0.2)


def test_the_first_atoms_keep_their_vectors_in_a_larger_structure(backbone):
    water = molecule("H2O")
    seen = PerturbedBackbone(backbone, made(backbone, 0.05, "atom"), 4, 0)
    two = seen.evaluate_members(far_apart(water, 2)).forces
    one = seen.evaluate_members(water).forces
    scale = one.std(axis=0).max()
    np.testing.assert_allclose(two[:, :3], one, atol=0.01 * scale)
    assert (two[:, :3] - two[:, 3:]).std(axis=0).max() > 0.3 * scale


def test_file_gives_the_same_members(backbone, ethanol, tmp_path):
    perturbation = made(backbone)
    read = Perturbation.load(perturbation.save(tmp_path / "my.perturbation"))
    one, other = (
        PerturbedBackbone(backbone, p, 3, 0).evaluate_members(ethanol)
        for p in (perturbation, read)
    )
    assert np.array_equal(one.forces, other.forces)
    assert read.card == perturbation.card


def test_signal_beside_the_potential(backbone, ethanol):
    """The same trajectory as without the signal; members are evaluated only if due."""

    def run(calculator):
        atoms = ethanol.copy()
        atoms.calc = calculator
        VelocityVerlet(atoms, 0.2).run(4)
        return atoms

    signal = FunctionalSpread(made(backbone), members=3, interval=2)
    limits = uqcalc.Policy([uqcalc.Threshold("functional_spread", 1.0, 2.0)])
    watched = uqcalc.ReliableCalculator(backbone, None, [signal], limits)
    atoms, bare = run(watched), run(uqcalc.open_model("default"))
    assert np.array_equal(atoms.positions, bare.positions)
    found = watched.results["functional_force_spreads"]
    assert found.shape == (len(ethanol),)
    rms = np.sqrt(np.mean(found**2))
    assert watched.results["functional_force_spread"] == pytest.approx(rms)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (["no.such"], "matches none"),
        (["interactions.0"], "must be a linear layer"),
    ],
)
def test_layers_that_take_no_noise_are_refused(backbone, layers, words):
    with pytest.raises(BackboneError, match=words):
        find_layers(backbone, layers)


def test_noise_for_atoms_needs_layers_of_atoms(backbone, ethanol):
    perturbation = made(backbone, noise="atom")
    with (
        pytest.raises(BackboneError, match="one row for each atom"),
        perturbation.applied(backbone, perturbation.draws(2, 0, 5)),
    ):
        backbone(ethanol, ["energy", "forces"])


def test_another_potential_is_refused(backbone):
    perturbation = made(backbone)
    object.__setattr__(perturbation.card, "fingerprint", "mace:0000000000000000")
    with pytest.raises(ModelError, match="must belong to this backbone"):
        FunctionalSpread(perturbation).extend(backbone)
