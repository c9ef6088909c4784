"""The spread as a signal: samples, limits, bounds and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from backbones.toys import mace_on_shared_models
from builders import rattled, salt
from perturbation.made import made

import uqcalc
from uqcalc import (
    ConformalInterval,
    FunctionalSpread,
    Level,
    Policy,
    ReliableCalculator,
    Threshold,
    load_signal,
)
from uqcalc.errors import BackboneError, ModelError
from uqcalc.perturbation.members import PerturbedBackbone


LOOSE = Policy([Threshold("functional_spread", 1e3, 2e3)])


@pytest.fixture(scope="module")
def calculator():
    return mace_on_shared_models()


@pytest.fixture(scope="module")
def perturbation(calculator):
    return made(uqcalc.tap(calculator))


def test_a_sample_is_reproducible_and_one_potential_for_every_structure(
    calculator, perturbation
):
    atoms = rattled()
    one = perturbation.sample(atoms, 6, calculator, seed=3)
    assert one.energies.shape == (6,)
    assert one.forces.shape == (6, len(atoms), 3)
    assert one.stresses is None
    atoms.calc = calculator
    again = perturbation.sample(atoms, 6, seed=3)
    assert np.array_equal(one.forces, again.forces)
    other = perturbation.sample(atoms, 6, seed=4)
    assert not np.array_equal(one.energies, other.energies)
    first = perturbation.sample(atoms, 1, seed=3)  # fewer members are the first ones
    np.testing.assert_allclose(first.energies, one.energies[:1], rtol=1e-12)
    # work along a step is the difference of each member's own energies
    with pytest.raises(TypeError, match=r"one structure .*, got str"):
        perturbation.sample("md.xyz", 3, calculator)
    step = 1e-4 * one.forces[2]
    there, back = (
        perturbation.sample(molecule_at(atoms, sign * step), 3, calculator, seed=3)
        for sign in (1, -1)
    )
    work = (one.forces[2] * step).sum()
    assert back.energies[2] - there.energies[2] == pytest.approx(2 * work, rel=1e-3)


def molecule_at(atoms, shift):
    moved = atoms.copy()
    moved.positions += shift
    return moved


def test_the_signal_samples_the_members_of_its_readings(calculator, perturbation):
    signal = FunctionalSpread(perturbation, members=5, seed=2)
    atoms = rattled()
    atoms.calc = ReliableCalculator(calculator, None, [signal], LOOSE)
    atoms.get_potential_energy()
    members = signal.sample(atoms)
    spread = np.sqrt(members.forces.var(axis=0, ddof=1).mean())
    found = atoms.calc.results
    assert found["functional_force_spread"] == pytest.approx(spread)
    each = members.energies.std(ddof=1) / len(atoms)
    assert found["functional_energy_spread"] == pytest.approx(each)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"members": 0}, ModelError, "at least 1"),
        ({"calculator": None}, ModelError, "calculator must be given"),
        ({"calculator": mace_on_shared_models(1)}, ModelError, "must belong to this"),
    ],
)
def test_invalid_samples_are_refused(calculator, perturbation, change, error, words):
    given = {"members": 2, "calculator": calculator} | change
    with pytest.raises(error, match=words):
        perturbation.sample(molecule("H2O"), **given)


def test_geometries_with_nan_are_refused(calculator, perturbation):
    atoms = molecule("H2O")
    atoms.positions[0, 0] = np.nan
    with pytest.raises(BackboneError, match="finite"):
        perturbation.sample(atoms, 2, calculator)


@pytest.mark.parametrize("value", [0, 1, True, 2.5])
def test_the_number_of_members_is_checked(perturbation, value):
    with pytest.raises(ModelError, match="at least 2"):
        FunctionalSpread(perturbation, members=value)


def test_something_else_than_a_perturbation_is_refused():
    with pytest.raises(ModelError, match="must be a Perturbation or its file"):
        FunctionalSpread(3)


def test_the_interval_is_checked_and_divides_the_passes(calculator, perturbation):
    with pytest.raises(ValueError, match="interval must be"):
        FunctionalSpread(perturbation, interval=0)
    passes = {}
    for interval in (1, 3):
        signal = FunctionalSpread(perturbation, members=2, interval=interval)
        atoms = rattled()
        atoms.calc = ReliableCalculator(calculator, None, [signal], LOOSE)
        atoms.get_forces()
        before = atoms.calc.backbone.passes
        VelocityVerlet(atoms, 0.1).run(6)
        passes[interval] = atoms.calc.backbone.passes - before
    assert passes == {1: 12, 3: 8}  # one pass holds both members


def test_stress_is_that_of_the_members_and_may_be_limited(calculator, perturbation):
    atoms = salt()
    backbone = uqcalc.tap(calculator)
    seen = PerturbedBackbone(backbone, perturbation, 3, 0)
    stresses = seen.evaluate_members(atoms, stress=True).stresses
    assert stresses.shape == (3, 6)
    strain, along = 1e-4, []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell * [1 + sign * strain, 1, 1], scale_atoms=True)
        along.append(seen.evaluate_members(strained).energies)
    slope = (along[0] - along[1]) / (2 * strain * atoms.get_volume())
    np.testing.assert_allclose(stresses[:, 0], slope, rtol=1e-4)
    signal = FunctionalSpread(perturbation, members=3, stress=True)
    policy = Policy(LOOSE.thresholds, [Threshold("functional_stress_spread", 0, 1e-12)])
    calc = ReliableCalculator(calculator, None, [signal], policy)
    assert calc.assess(atoms, "fixed_cell").level is Level.RELIABLE
    moving = calc.assess(atoms, "moving_cell")
    assert moving.level is Level.UNRELIABLE
    assert "functional_stress_spread" in str(moving.verdict.reasons)


def test_a_stress_that_is_not_read_is_not_judged(calculator, perturbation):
    signal = FunctionalSpread(perturbation, members=2)
    policy = Policy(LOOSE.thresholds, [Threshold("functional_stress_spread", 1, 2)])
    with pytest.raises(ValueError, match="must judge signals that run"):
        ReliableCalculator(calculator, None, [signal], policy)
    calc = ReliableCalculator(calculator, None, [signal], LOOSE)
    found = calc.assess(salt(), "moving_cell")
    assert found.level is Level.SUSPECT
    assert "no signal of the policy judges the stress" in str(found.verdict.reasons)


def test_other_readings_may_be_limited(calculator, perturbation):
    signal = FunctionalSpread(perturbation, members=3)
    atoms = rattled()
    for name in ("functional_energy_spread", "functional_force_spread_max"):
        policy = Policy([*LOOSE.thresholds, Threshold(name, 0.0, 1e-12)])
        calc = ReliableCalculator(calculator, None, [signal], policy)
        assessment = calc.assess(atoms)
        assert assessment.level is Level.UNRELIABLE
        assert name in str(assessment.verdict.reasons)


def test_elements_without_training_are_unreliable(calculator, perturbation):
    signal = FunctionalSpread(perturbation, members=2)
    calc = ReliableCalculator(calculator, None, [signal], LOOSE, sanity=False)
    assessment = calc.assess(molecule("NH3"))
    assert assessment.level is Level.UNRELIABLE
    assert "trained without elements ['N']" in str(assessment.verdict.reasons)


def test_a_bound_from_the_spread_is_kept_in_one_file(
    calculator, perturbation, tmp_path
):
    rng = np.random.default_rng(0)
    frames = [rattled(seed=seed) for seed in range(12)]
    backbone = uqcalc.tap(calculator)
    for frame in frames:
        forces = backbone(frame, ["energy", "forces"]).forces
        frame.arrays["REF_forces"] = forces + rng.normal(0, 0.1, forces.shape)
    signal = FunctionalSpread(perturbation, members=3)
    bound = ConformalInterval.fit(frames, calculator, signal, coverage=0.8)
    kept = load_signal(bound.save(tmp_path / "bound.safetensors"))
    limits = Policy([Threshold("conformal_forces", 1.0, 2.0)])
    found = [
        ReliableCalculator(calculator, None, [one], limits).assess(frames[0])
        for one in (bound, kept)
    ]
    risks = [assessment.readings[0].risk for assessment in found]
    assert risks[0] == risks[1] > 0
    beside = ReliableCalculator(calculator, None, [kept, signal], limits)
    assert len(beside.assess(frames[0]).readings) == 4
    others = [made(backbone, 0.1), perturbation]
    for other, members in zip(others, (3, 4), strict=True):
        second = FunctionalSpread(other, members=members)
        with pytest.raises(ModelError, match="same members of one perturbation"):
            ReliableCalculator(calculator, None, [kept, second], limits)
