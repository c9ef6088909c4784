"""The largest force, and the spreads of a committee, without further evaluations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.stress import voigt_6_to_full_3x3_stress
from backbones.toys import ModuleCalculator, Springs, mace_on_shared_models
from builders import mace_calculator, rattled, salt
from closeness import FLOAT64, close
from toys import ToyBackbone, copper

from uqcalc import (
    Committee,
    EnergySpread,
    ForceSpread,
    MaxForce,
    Policy,
    ReliableCalculator,
    RotationAverage,
    StressSpread,
    Threshold,
    tap,
)
from uqcalc.signals.base import to_host
from uqcalc.testing import check_signal


SEEDS = (0, 1, 2)
STIFFNESS = np.array([0.2, 0.3, 0.7])
ALL = [EnergySpread(), ForceSpread("max"), StressSpread()]
WANTED = ["energy", "forces", "stress", "committee_stresses"]


@pytest.fixture(scope="module")
def committee():
    return tap(mace_calculator(0, 1, 2))


def springs():
    """Members with known results; the first one has the features."""
    first = tap(ModuleSprings(STIFFNESS[0]), module="model.readout")
    return Committee([first, *map(Springs, STIFFNESS[1:])])


class ModuleSprings(ModuleCalculator):
    """Springs that also evaluate a torch module."""

    implemented_properties = Springs.implemented_properties

    def __init__(self, stiffness):
        super().__init__()
        self.springs = Springs(stiffness)

    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.springs.calculate(atoms, properties)
        self.results = dict(self.springs.results)


def risk(signal, prediction):
    [reading] = to_host([signal(prediction)])
    return reading.risk


@pytest.mark.parametrize("atoms", [rattled(), salt()], ids=["molecule", "crystal"])
def test_spreads_of_springs_are_those_of_their_stiffness(atoms):
    prediction = springs()(atoms, WANTED)
    arms = atoms.positions - atoms.positions.mean(axis=0)
    squares = np.sum(arms**2)
    expected = STIFFNESS.std() * squares / 2 / len(atoms)
    assert risk(EnergySpread(), prediction) == pytest.approx(expected, rel=1e-9)
    lengths = STIFFNESS.std() * np.linalg.norm(arms, axis=1) / np.sqrt(3)
    assert risk(ForceSpread("max"), prediction) == pytest.approx(lengths.max())
    rms = np.sqrt(np.mean(lengths**2))
    assert risk(ForceSpread(), prediction) == pytest.approx(rms)
    for one, other in (("rms", "max"), ("max", "rms")):
        [first], [second] = (
            to_host([ForceSpread(reduction)(prediction)]) for reduction in (one, other)
        )
        assert first.results["force_spread"] == second.results["force_spread"]
        assert first.results["force_spread_max"] == pytest.approx(lengths.max())
    stress = risk(StressSpread(), prediction)
    if atoms.pbc.all():
        virial = arms.T @ arms / atoms.cell.volume
        matrix = STIFFNESS.std() * np.abs(virial)
        assert stress == pytest.approx(np.sqrt(np.mean(matrix**2)), rel=1e-9)
    else:
        assert np.isnan(stress)
        [reading] = to_host([StressSpread()(prediction)])
        assert "three cell vectors" in reading.note


@pytest.mark.parametrize(
    "make",
    [
        lambda: tap(mace_on_shared_models(*SEEDS)),
        lambda: Committee([mace_on_shared_models(seed) for seed in SEEDS]),
    ],
    ids=["mace committee", "committee of maces"],
)
@pytest.mark.parametrize("batched", [True, False])
def test_spreads_are_those_of_single_models(make, batched):
    frames = [salt(), salt(seed=2)]
    backbone = make()
    if batched:
        predictions = backbone.predict_many(frames, WANTED)
    else:
        predictions = [backbone(atoms, WANTED).own() for atoms in frames]
    for atoms, prediction in zip(frames, predictions, strict=True):
        results = []
        for seed in SEEDS:
            single = mace_on_shared_models(seed)
            single.calculate(atoms)
            results.append(single.results)
        energies = [one["energy"] for one in results]
        stresses = [voigt_6_to_full_3x3_stress(one["stress"]) for one in results]
        expected = np.std(energies) / len(atoms)
        assert risk(EnergySpread(), prediction) == pytest.approx(expected, rel=1e-6)
        expected = np.sqrt(np.mean(np.var(stresses, axis=0)))
        assert risk(StressSpread(), prediction) == pytest.approx(expected, rel=1e-6)
        assert prediction.energy == pytest.approx(prediction.committee_energies.mean())


def test_batch_has_energies_and_no_stress_without_a_request():
    backbone = tap(mace_on_shared_models(*SEEDS))
    frames = [salt(), salt(seed=2)]
    before = backbone.passes
    predictions = backbone.predict_many(frames)
    assert backbone.passes - before == len(SEEDS)  # one batch
    for prediction, atoms in zip(predictions, frames, strict=True):
        alone = backbone(atoms, ["energy", "forces"]).committee_energies
        close(prediction.committee_energies, alone, FLOAT64)
        assert prediction.committee_stresses is None


@pytest.mark.parametrize("signal", ALL, ids=lambda s: s.name)
@pytest.mark.parametrize("make", [springs, lambda: tap(mace_on_shared_models(0, 1))])
def test_contract(signal, make):
    check_signal(signal, make()(salt(), WANTED))


@pytest.mark.parametrize("signal", ALL, ids=lambda s: s.name)
def test_a_single_model_has_no_spread(signal):
    policy = Policy([Threshold(signal.name, 1.0, 2.0)])
    with pytest.raises(ValueError, match=r"mace provides.*uqcalc\.Committee"):
        ReliableCalculator(mace_on_shared_models(), signals=[signal], policy=policy)
    with pytest.raises(ValueError, match=r"must carry committee_.*, got None"):
        signal(tap(mace_on_shared_models())(salt(), ["energy"]))


def test_a_step_costs_no_pass_more_and_adds_the_results():
    signals = [ForceSpread(), EnergySpread(), StressSpread()]
    policy = Policy([Threshold(signal.name, 1e-9, 1e9) for signal in signals])
    atoms = salt()
    calc = ReliableCalculator(
        mace_on_shared_models(0, 1), signals=signals, policy=policy
    )
    assessment = calc.assess(atoms)
    assert calc.backbone.passes == 2
    units = {
        r.signal: r.unit
        for r in assessment.readings
        if r.signal not in ("sanity", "flags")
    }
    assert set(units.values()) == {"eV/Å", "eV/atom", "eV/Å³"}
    for name in ("force_spread", "energy_spread", "stress_spread"):
        assert calc.results[name] == assessment.reading(name).risk > 0
    molecule = ReliableCalculator(calc.backbone, signals=signals, policy=policy)
    verdict = molecule.assess(rattled()).verdict
    assert any("stress_spread" in reason for reason in verdict.reasons)


def test_rotating_a_committee_keeps_its_energies():
    inner = springs()
    atoms = salt()
    single = risk(EnergySpread(), inner(atoms, ["energy", "forces"]))
    averaged = RotationAverage(inner, 3)
    assert "committee_stresses" not in averaged.provides
    prediction = averaged(atoms, ["energy", "forces"])
    assert risk(EnergySpread(), prediction) == pytest.approx(single)


def test_invalid_reduction_is_refused():
    with pytest.raises(
        ValueError, match="reduction must be 'rms' or 'max', got 'mean'"
    ):
        ForceSpread("mean")


def test_max_force_is_the_longest_force():
    atoms = copper()
    prediction = ToyBackbone(EMT())(atoms, ["energy", "forces"])
    atoms.calc = EMT()
    forces = atoms.get_forces()
    [reading] = to_host([MaxForce()(prediction)])
    longest = max(sum(x * x for x in row) ** 0.5 for row in forces.tolist())
    close(reading.risk, longest, FLOAT64)
    assert (reading.unit, reading.results["max_force"]) == ("eV/Å", reading.risk)


def test_force_spread_is_its_closed_form(committee):
    atoms = rattled()
    prediction = committee(atoms, ["energy", "forces"])
    singles = [mace_calculator(seed) for seed in (0, 1, 2)]
    forces = [single.get_property("forces", atoms) for single in singles]
    mean = sum(forces) / 3
    squares = sum(((f - mean) ** 2).sum(axis=1) for f in forces) / (3 * 3)
    [reading] = to_host([ForceSpread()(prediction)])
    close(reading.per_atom, np.sqrt(squares), FLOAT64, of=forces)
    close(reading.risk, np.sqrt(squares.mean()), FLOAT64, of=forces)
    assert reading.results["force_spread"] == reading.risk
    assert reading.unit == "eV/Å"


def test_equal_members_do_not_spread(committee):
    prediction = committee(rattled(), ["energy", "forces"])
    equal = np.stack([prediction.forces] * 4)
    [reading] = to_host([ForceSpread()(replace(prediction, committee_forces=equal))])
    assert reading.risk == 0
    assert not reading.per_atom.any()
