"""Several probes in one calculator: each judges only its own quantity."""

import math

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.units import GPa
from builders import tiny_probe
from toys import ToyBackbone, copper

from uqcalc import (
    Level,
    Monitor,
    Policy,
    ReliableCalculator,
    Threshold,
    annotate,
    default_calculator,
    relax,
)
from uqcalc.asking import why_ask
from uqcalc.errors import ModelError


SURE, UNSURE = 9.0, -9.0


def probe(target="forces", bias=SURE, boundary=0.1):
    made = tiny_probe(
        ToyBackbone(EMT()),
        target=target,
        bias=bias,
        elements=[29, 79],
        boundary=boundary,
    )
    return made.with_card(calibration=(0.0, bias))


def calculator(*probes, policy=None):
    return ReliableCalculator(ToyBackbone(EMT()), probe=list(probes), policy=policy)


def with_stress(bias):
    return calculator(probe("stress", bias), probe("forces"))


def test_readings_and_results_are_named_after_the_target():
    three = (probe("stress"), probe("energy_per_atom", UNSURE), probe("forces"))
    atoms = copper()
    atoms.calc = calculator(*three)
    atoms.get_forces()
    found = atoms.calc.assessment
    names = [reading.signal for reading in found.readings]
    assert names[:3] == ["probe", "probe_stress", "probe_energy_per_atom"]
    assert atoms.calc.results["probe_reliability"] > 0.9
    assert atoms.calc.results["probe_reliability_stress"] > 0.9
    assert atoms.calc.results["probe_reliability_energy_per_atom"] < 0.1
    assert found.reading("probe").meaning.startswith("P(RMS force error")
    assert found.reading("probe_stress").meaning.startswith("P(RMS stress error")
    keys = [key for reading in found.readings for key in reading.results]
    assert len(set(keys)) == len(keys)
    assert all(reading.per_atom is not None for reading in found.readings[:3])
    assert {*atoms.calc.refusal("no").results()} >= {
        "probe_reliability",
        "probe_reliability_stress",
    }


def test_at_a_constant_cell_only_the_forces_count():
    atoms = copper()
    atoms.calc = calculator(
        probe("forces"), probe("stress", UNSURE), probe("energy_per_atom", UNSURE)
    )
    assert atoms.calc.assess(atoms).level is Level.RELIABLE
    levels = {event.level for event in relax(atoms, fmax=0.05).history}
    assert levels == {Level.RELIABLE}


@pytest.mark.parametrize("policy", [None, Policy([Threshold("probe", 0.2, 0.5)])])
@pytest.mark.parametrize(
    ("pressures", "bias", "level"),
    [
        (11.0, UNSURE, Level.SUSPECT),
        (-11.0, UNSURE, Level.SUSPECT),
        (11.0, SURE, Level.RELIABLE),
        (9.0, UNSURE, Level.RELIABLE),
    ],
)
def test_a_strained_crystal_whose_stress_is_unreliable_is_suspect(
    pressures, bias, level, policy
):
    atoms = copper()
    atoms.set_cell(atoms.cell * (0.98 if pressures > 0 else 1.05), scale_atoms=True)
    atoms.calc = EMT()
    pressure = -atoms.get_stress()[:3].mean()
    strained = probe("stress", bias, boundary=float(pressure / pressures))
    calc = calculator(probe("forces"), strained, policy=policy)
    found = calc.assess(atoms)
    assert found.level is level
    if level is Level.SUSPECT:
        shown = f"{pressure / GPa:.3g} GPa"
        assert (
            f"probe_stress: the pressure is {shown}, and P(" in found.verdict.reasons[0]
        )
        assert why_ask(found)[0] == "disagree"
    if policy is None and bias == UNSURE:
        assert calc.assess(atoms, use="moving_cell").level is Level.UNRELIABLE


@pytest.mark.parametrize(
    ("bias", "level"), [(SURE, Level.RELIABLE), (UNSURE, Level.UNRELIABLE)]
)
def test_when_the_cell_moves_the_stress_counts_too(bias, level):
    atoms = copper()
    atoms.calc = with_stress(bias)
    path = relax(FrechetCellFilter(atoms), fmax=0.05, steps=3, patience=99)
    assert {event.level for event in path.history} == {level}
    assert not any("the cell moves" in why for e in path.history for why in e.reasons)
    frames = [bulk("Cu", a=a, cubic=True) for a in (3.6, 3.61, 3.62)]
    for frame in frames:
        frame.rattle(0.05, seed=0)
    done = list(annotate(frames, with_stress(bias)))
    levels = [frame.info["reliability_level"] for frame in done[1:]]
    assert levels == [int(level)] * 2


MISSING = {
    ("energy_per_atom",): "forces move the atoms, but no signal of the policy judges "
    "the forces",
    ("stress",): "forces move the atoms, but no signal of the policy judges the forces",
    ("stress", "energy_per_atom"): "judges the forces",
}


@pytest.mark.parametrize("targets", MISSING)
def test_a_run_whose_forces_no_probe_judges_is_suspect(targets):
    atoms = copper()
    atoms.calc = calculator(*map(probe, targets))
    assert atoms.calc.assess(atoms).level is Level.RELIABLE  # on its own quantity
    dynamics = VelocityVerlet(atoms, 0.1)
    monitor = Monitor(dynamics)
    dynamics.run(2)
    assert {event.level for event in monitor.history} == {Level.SUSPECT}
    assert MISSING[targets] in monitor.history[0].reasons[0]


@pytest.mark.parametrize(
    ("targets", "missing"),
    [
        (("forces", "energy_per_atom"), "the cell moves, but no signal of the policy "
         "judges the stress"),
        (("stress",), "judges the forces"),
        (("energy_per_atom",), "judges the forces and stress"),
    ],
)  # fmt: skip
def test_a_moving_cell_without_a_probe_of_forces_and_stress_is_suspect(
    targets, missing
):
    atoms = copper()
    atoms.calc = calculator(*map(probe, targets))
    path = relax(FrechetCellFilter(atoms), fmax=0.05, steps=2, patience=99)
    assert {event.level for event in path.history} == {Level.SUSPECT}
    assert any(missing in why for why in path.history[0].reasons)


@pytest.mark.parametrize(
    ("use", "biases", "level"),
    [
        ("energy", (UNSURE, UNSURE, SURE), Level.RELIABLE),
        ("energy", (SURE, SURE, UNSURE), Level.UNRELIABLE),
        ("fixed_cell", (SURE, UNSURE, UNSURE), Level.RELIABLE),
        ("moving_cell", (SURE, UNSURE, SURE), Level.UNRELIABLE),
        ("moving_cell", (SURE, SURE, UNSURE), Level.RELIABLE),
        (None, (SURE, UNSURE, UNSURE), Level.RELIABLE),
    ],
)
def test_the_use_decides_which_probe_counts(use, biases, level):
    names = ("forces", "stress", "energy_per_atom")
    calc = calculator(*map(probe, names, biases))
    assert calc.assess(copper(), use=use).level is level
    [frame] = annotate([copper()], calc, use=use)
    assert frame.info["reliability_level"] == int(level)


def test_an_energy_that_no_probe_judges_is_never_reliable():
    found = calculator(probe("forces"), probe("stress")).assess(copper(), use="energy")
    assert found.level is Level.SUSPECT
    assert "no signal of the policy judges the energy" in found.verdict.reasons[0]
    with pytest.raises(ValueError, match="use must be one of"):
        calculator(probe("forces")).assess(copper(), use="stress")


def test_forces_that_vanish_by_symmetry_do_not_hide_energy_and_stress():
    names = ("forces", "stress", "energy_per_atom")
    calc, crystal = calculator(*map(probe, names)), bulk("Cu", cubic=True)
    assert calc.assess(crystal).level is Level.SUSPECT
    for use in ("energy", "moving_cell"):
        assert calc.assess(crystal, use=use).level is Level.RELIABLE
    alone = calculator(probe("forces"))
    assert alone.assess(crystal, use="energy").level is Level.SUSPECT


def test_an_own_policy_replaces_that_of_the_probes():
    own = Policy([Threshold("probe_stress", 0.2, 0.5)])
    atoms = copper()
    atoms.calc = calculator(probe("forces", UNSURE), probe("stress"), policy=own)
    assert atoms.calc.assess(atoms).level is Level.RELIABLE
    with pytest.raises(ValueError, match="policy must judge signals that run"):
        calculator(probe("forces"), policy=own)


def test_auto_among_several_is_the_probe_that_ships():
    bundled = default_calculator()
    own = bundled.signals[0].probe.with_card(target="energy")
    calc = ReliableCalculator(bundled.backbone, probe=["auto", own])
    assert [s.name for s in calc.signals[:2]] == ["probe", "probe_energy"]
    with pytest.raises(ModelError, match="must be a probe that ships for the model"):
        calculator("auto", probe("stress"))


def test_two_probes_of_one_target_beside_the_first_are_refused():
    with pytest.raises(ValueError, match="signals must have distinct names"):
        calculator(probe("forces"), probe("stress"), probe("stress"))


def test_the_policy_of_a_moving_cell_survives_a_log_and_never_improves_a_verdict():
    policy = with_stress(SURE).policy
    assert Policy.from_dict(policy.to_dict()) == policy
    assert policy.signals == ("probe",)
    assert policy.signals_for("moving_cell") == ("probe", "probe_stress")
    poor = calculator(probe("forces", UNSURE), probe("stress"))
    found = poor.assess(copper())
    assert poor.policy.for_use(found, "moving_cell").level is Level.UNRELIABLE
    refused = poor.policy.for_use(poor.refusal("no"), "moving_cell")
    assert refused.level is Level.UNRELIABLE
    assert math.isnan(refused.reading("probe_stress").risk)


def test_the_log_of_a_run_names_every_probe(tmp_path):
    atoms = copper()
    atoms.calc = with_stress(SURE)
    dynamics = VelocityVerlet(atoms, 0.1)
    Monitor(dynamics, log=tmp_path / "run.jsonl")
    dynamics.run(2)
    described = atoms.calc.describe()
    assert described["probe"]["target"] == "forces"
    assert [card["target"] for card in described["further_probes"]] == ["stress"]
