from __future__ import annotations

import json

import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.mixing import SumCalculator
from ase.io import read
from ase.io.trajectory import Trajectory
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.verlet import VelocityVerlet
from builders import mace_calculator, rattled, salt, tiny_probe
from closeness import close
from toys import (
    BAD,
    GOOD,
    POLICY,
    SUSPECT,
    Counted,
    Scripted,
    ToyBackbone,
    copper,
    watched,
)

from uqcalc import (
    ForceSpread,
    Level,
    MaxForce,
    Monitor,
    Policy,
    ReliableCalculator,
    Threshold,
    tap,
)
from uqcalc.errors import BackboneError, ProbeError
from uqcalc.records import Assessment, Reading, Verdict


@pytest.fixture(scope="module")
def base():
    return mace_calculator()


@pytest.fixture(scope="module")
def wrapped(base):
    backbone = tap(base)
    return ReliableCalculator(backbone, tiny_probe(backbone), signals=[MaxForce()])


def path_of(atoms, dynamics, steps):
    """Return all results of a run at each step, for a bitwise comparison."""
    path = []

    def keep():
        energy = np.array(atoms.get_potential_energy())
        moving = [atoms.positions.copy(), atoms.get_momenta(), atoms.cell.array.copy()]
        path.append([*moving, atoms.get_forces(), energy])

    dynamics.attach(keep)
    dynamics.run(steps)
    return path


def assert_bitwise(path, other):
    assert len(path) == len(other)
    for ours, theirs in zip(path, other, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def start(atoms, seed=0):
    rng = np.random.default_rng(seed)
    atoms.set_velocities(rng.normal(0, 0.01, (len(atoms), 3)))
    return atoms


# ------------------------------------------------------- wrapping changes nothing


@pytest.mark.parametrize("atoms", [rattled(), salt()], ids=["molecule", "crystal"])
def test_results_are_bitwise_those_of_the_base(base, wrapped, atoms):
    bare, atoms = atoms.copy(), atoms.copy()
    bare.calc, atoms.calc = base, wrapped
    names = ["energy", "free_energy", "forces"]
    names += ["stress"] if atoms.pbc.all() else []
    base.reset()
    expected = {name: base.get_property(name, bare) for name in names}
    passes = wrapped.backbone.passes
    for name in names:
        np.testing.assert_array_equal(wrapped.get_property(name, atoms), expected[name])
    assert wrapped.backbone.passes == passes + 1
    for key, value in base.results.items():
        np.testing.assert_array_equal(wrapped.results[key], value)
    assert set(wrapped.results) - set(base.results) == {
        "probe_reliability",
        "probe_importance",
        "max_force",
        "reliability_level",
        "flags_atoms",
        "sanity_contact",
        "sanity_unseen",
    }
    assert wrapped.results["probe_importance"].shape == (len(atoms),)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nve_is_bitwise_that_of_the_base_in_one_pass_a_step(tmp_path, dtype):
    base = mace_calculator(dtype=dtype)
    bare, atoms = start(rattled("H2O")), start(rattled("H2O"))
    bare.calc = base
    expected = path_of(bare, VelocityVerlet(bare, 0.5 * units.fs), 110)
    base.reset()
    backbone = tap(base)
    atoms.calc = ReliableCalculator(backbone, tiny_probe(backbone, bias=-9.0))
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    monitor = Monitor(
        dynamics,
        on_unreliable="warn",
        log=tmp_path / "run.jsonl",
        flagged=tmp_path / "flagged.xyz",
    )
    assert_bitwise(path_of(atoms, dynamics, 110), expected)
    assert backbone.passes == len(monitor.history) == 111
    assert {event.level for event in monitor.history} == {Level.UNRELIABLE}
    assert monitor.flagged.written == 100


def mtk(atoms):
    return IsotropicMTKNPT(
        atoms, 1.0 * units.fs, temperature_K=300, pressure_au=0.0, tdamp=50, pdamp=500
    )


def berendsen(atoms):
    return NPTBerendsen(
        atoms,
        1.0 * units.fs,
        temperature_K=300,
        pressure_au=0.0,
        taut=50 * units.fs,
        taup=500 * units.fs,
        compressibility_au=1e-3,
    )


@pytest.mark.parametrize("make", [mtk, berendsen])
def test_npt_is_bitwise_that_of_the_base_and_stress_costs_no_pass(base, make):
    bare, atoms = start(salt()), start(salt())
    base.reset()
    bare.calc = base
    with Counted(base) as bare_count:
        expected = path_of(bare, make(bare), 30)
    base.reset()
    backbone = tap(base)
    atoms.calc = ReliableCalculator(backbone, tiny_probe(backbone, bias=9.0))
    plain, geometries = atoms.calc.calculate, []

    def calculate(live, *args):
        geometries.append(live.positions.tobytes() + live.cell.array.tobytes())
        plain(live, *args)

    atoms.calc.calculate = calculate
    with Counted(base) as count:
        assert_bitwise(path_of(atoms, make(atoms), 30), expected)
    assert not np.array_equal(atoms.cell.array, salt().cell.array)
    assert count.passes == backbone.passes == len(geometries) == len(set(geometries))
    assert count.passes == bare_count.passes


class LazyEMT(EMT):
    """Gives only requested properties, as some torch calculators do."""

    def calculate(self, atoms, properties, system_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {k: v for k, v in self.results.items() if k in properties}


def test_lazy_base_computes_all_properties_of_a_step_in_one_call():
    atoms = watched(base=LazyEMT())
    dynamics = mtk(atoms)
    dynamics.run(5)
    for ask in (atoms.get_forces, atoms.get_potential_energy, atoms.get_stress):
        ask()
    assert atoms.calc.backbone.passes == 6


def test_flagged_importance_only_if_not_reliable(base):
    backbone = tap(base)
    probe = tiny_probe(backbone)
    always = ReliableCalculator(backbone, probe)
    frames = [rattled("CH3OH", seed=seed, amount=0.1) for seed in range(5)]
    reliability = [always.assess(f).reading("probe").risk for f in frames]
    middle = float(np.median(reliability))
    policy = Policy([Threshold("probe", middle + 1e-5, 1.0)])
    always = ReliableCalculator(backbone, probe, policy=policy, flags=False)
    flagged = ReliableCalculator(
        backbone, probe, policy=policy, importance="flagged", flags=False
    )
    explained = []
    for frame in frames:
        full, thin = always.assess(frame), flagged.assess(frame)
        # another kernel gives the importance: the risk agrees to float32 round-off
        close(thin.reading("probe").risk, full.reading("probe").risk, of=0.5)
        assert thin.level == full.level
        for key in ("energy", "forces"):
            np.testing.assert_array_equal(flagged.results[key], always.results[key])
        explained.append("probe_importance" in flagged.results)
        if explained[-1]:
            ours, theirs = (c.results["probe_importance"] for c in (flagged, always))
            np.testing.assert_array_equal(ours, theirs)
        assert explained[-1] == (full.level is not Level.RELIABLE)
    assert sorted(explained) == [False] * 3 + [True] * 2
    passes = backbone.passes
    flagged.assess(rattled(seed=77))
    assert backbone.passes == passes + 1  # explaining runs the probe, not the model


class Infinite(EMT):
    """Gives finite forces, which signals read, and on request an infinite energy."""

    broken = False

    def calculate(self, atoms, properties, system_changes):
        super().calculate(atoms, properties, system_changes)
        if self.broken:
            self.results["energy"] = np.inf


def test_infinite_energy_is_unreliable_with_any_signal():
    atoms = watched(base=Infinite())
    assert atoms.calc.assess(atoms).level is Level.RELIABLE
    atoms.calc.backbone.calculator.broken = True
    atoms.rattle(1e-3, seed=0)
    assert np.isfinite(atoms.get_forces()).all()
    assessment = atoms.calc.assess(atoms)
    assert assessment.level is Level.UNRELIABLE
    assert "NaN or infinite" in str(assessment)
    assert np.isnan(atoms.calc.results["weights"]).all()
    assert assessment.worst_atoms() == []


def test_nan_is_unreliable_also_if_no_signal_is_due():
    atoms = watched(base=Infinite())
    signal = atoms.calc.signals[0]
    signal.interval = 2
    assert atoms.calc.assess(atoms).level is Level.RELIABLE
    atoms.calc.backbone.calculator.broken = True
    atoms.rattle(1e-3, seed=0)
    rested = atoms.calc.assess(atoms)
    assert [reading.signal for reading in rested.readings] == ["sanity", "flags"]
    assert rested.level is Level.UNRELIABLE
    assert "NaN or infinite" in str(rested)
    assert atoms.calc.results["reliability_level"] == 2


def test_a_broken_geometry_is_refused_before_the_pass():
    atoms = watched()
    atoms.calc.assess(atoms)
    passes = atoms.calc.backbone.passes
    atoms.positions[1, 2] = np.nan
    with pytest.raises(BackboneError, match=r"positions must be finite.* \[1\]"):
        atoms.calc.assess(atoms)
    assert atoms.calc.backbone.passes == passes
    assert atoms.calc.results == {}


# ------------------------------------------------------------- when to evaluate


def charged_mace():
    """A MACE calculator with given keys of charge and spin."""
    return mace_calculator(info_keys={"total_charge": "charge", "total_spin": "spin"})


def test_charge_and_spin_invalidate_and_other_info_does_not():
    backbone = tap(charged_mace())
    atoms = rattled()
    atoms.info.update(charge=0, spin=1)
    atoms.calc = ReliableCalculator(backbone, tiny_probe(backbone))
    atoms.get_forces()
    assert backbone.passes == 1
    atoms.info["note"] = "unrelated"
    atoms.info["probe_reliability"] = 0.5
    atoms.set_tags(range(len(atoms)))
    atoms.get_forces()
    atoms.calc.assess(atoms)
    assert backbone.passes == 1
    for key, value in (("charge", 1), ("spin", 3)):
        before = atoms.calc.assessment
        atoms.info[key] = value
        assert atoms.calc.assess(atoms) is not before
    assert backbone.passes == 3
    del atoms.info["spin"]
    atoms.get_potential_energy()
    assert backbone.passes == 4


def test_all_of_info_counts_if_inputs_are_unknown():
    atoms = watched()
    atoms.get_forces()
    atoms.info["charge"] = np.array([1.0, 2.0])
    atoms.get_forces()
    atoms.info["charge"][1] = 3.0  # in place
    atoms.get_forces()
    assert atoms.calc.backbone.passes == 3


def test_assess_is_for_the_given_geometry(base):
    """Also if base and backbone were used on another geometry in between."""
    backbone = tap(base)
    probe = tiny_probe(backbone)
    one = ReliableCalculator(backbone, probe)
    two = ReliableCalculator(base, probe)
    frames = [rattled(seed=seed, amount=0.1) for seed in range(3)]
    fresh = [ReliableCalculator(mace_calculator(), probe).assess(f) for f in frames]
    truth = [assessment.reading("probe").risk for assessment in fresh]
    assert len(set(truth)) == 3

    def risk(calculator, index):
        return calculator.assess(frames[index]).reading("probe").risk

    assert risk(one, 0) == truth[0]
    assert risk(two, 1) == truth[1]
    base.get_property("energy", frames[2])
    passes = backbone.passes
    assert risk(one, 0) == truth[0]  # still cached, and still right
    assert backbone.passes == passes
    assert risk(one, 1) == truth[1]  # the base's geometry before its last one
    assert risk(one, 2) == truth[2]  # and this one is in its own cache
    assert risk(two, 0) == truth[0]
    frames[0].positions[0] += 0.01  # moved in place
    assert risk(one, 0) != truth[0]
    one.reset()
    assert one.assessment is None
    assert risk(one, 1) == truth[1]


def test_a_failed_evaluation_leaves_no_verdict_behind(base):
    backbone = tap(base)
    calc = ReliableCalculator(backbone, tiny_probe(backbone))
    atoms = rattled()
    calc.assess(atoms)
    iron = atoms.copy()
    iron.symbols[0] = "Fe"
    for _ in range(2):
        with pytest.raises(BackboneError, match=r"got \['Fe'\]"):
            calc.assess(iron)
        assert calc.assessment is None
        assert calc.results == {}
    calc.assess(atoms)


# ------------------------------------------------------------------ ASE's own tools


def test_export_and_todict(base, wrapped):
    atoms = salt()
    atoms.calc = wrapped
    properties = atoms.get_properties(["energy", "forces", "stress"])
    bare = salt()
    bare.calc = base
    np.testing.assert_array_equal(properties["stress"], bare.get_stress())
    assert "probe_reliability" not in wrapped.export_properties()
    described = json.loads(json.dumps(wrapped.todict()))
    assert described["signals"] == ["probe", "max_force", "sanity", "flags"]
    assert described["backbone"] == wrapped.backbone.fingerprint
    json.dumps(wrapped.describe())
    with pytest.raises(PropertyNotImplementedError):
        wrapped.get_property("magmom", atoms)
    assert "probe_reliability" not in wrapped.implemented_properties


@pytest.mark.parametrize("suffix", ["traj", "xyz"])
def test_trajectories_keep_energy_and_forces(tmp_path, wrapped, suffix):
    path = tmp_path / f"run.{suffix}"
    atoms = start(salt())
    atoms.calc = wrapped
    with VelocityVerlet(atoms, units.fs) as dynamics:
        if suffix == "traj":
            writer = dynamics.closelater(Trajectory(path, "w", atoms))
            dynamics.attach(writer)
        else:
            dynamics.attach(lambda: atoms.write(path, append=True))
        expected = path_of(atoms, dynamics, 3)
    frames = read(path, ":")
    assert len(frames) == 4
    for frame, (*_, forces, energy) in zip(frames, expected, strict=True):
        assert frame.get_potential_energy() == pytest.approx(float(energy), abs=1e-8)
        np.testing.assert_allclose(frame.get_forces(), forces, atol=1e-8)


def test_sums_keep_ases_results_and_never_add_readings(base, wrapped):
    atoms = rattled()
    total = SumCalculator([wrapped, wrapped])
    assert total.get_property("energy", atoms) == 2 * base.get_property("energy", atoms)
    assert set(total.implemented_properties) <= set(base.implemented_properties)
    assert not {"probe_reliability", "reliability_level"} & set(total.results)


def test_class_attributes_of_the_base_do_not_change():
    before = list(EMT.implemented_properties)
    calc = watched().calc
    calc.implemented_properties.append("mine")
    assert EMT.implemented_properties == before
    assert calc.backbone.calculator.implemented_properties == before


# -------------------------------------------------------------- refused before step 0


def test_neither_probe_nor_signals_names_the_choices(base):
    with pytest.raises(ValueError, match="neither") as caught:
        ReliableCalculator(base, probe=None)
    for choice in ("probe=", "uqcalc.fit", "MaxForce", "ForceSpread", "policy"):
        assert choice in str(caught.value)


def test_missing_quantity_of_a_signal_names_signal_and_backbone(base):
    policy = Policy([Threshold("force_spread", 0.1, 0.2)])
    with pytest.raises(
        ValueError,
        match=r"'force_spread' needs \['committee_forces'\]; mace provides \[",
    ):
        ReliableCalculator(base, signals=[ForceSpread()], policy=policy)


def test_a_policy_must_judge_what_runs(base):
    words = r"\['probe'\] and signals \['max_force', 'sanity', 'flags'\]"
    with pytest.raises(ValueError, match=words):
        ReliableCalculator(
            base,
            signals=[MaxForce()],
            policy=Policy([Threshold("max_force", 1, 2), Threshold("probe", 0.1, 0.2)]),
        )
    with pytest.raises(ValueError, match=r"no probe .* \['max_force'\]"):
        ReliableCalculator(base, signals=[MaxForce()])


def test_two_signals_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"\['scripted', 'scripted', "):
        ReliableCalculator(
            ToyBackbone(EMT()), signals=[Scripted(), Scripted()], policy=POLICY
        )


def test_importance_is_always_or_flagged(base):
    with pytest.raises(ValueError, match="'always' or 'flagged', got 'never'"):
        ReliableCalculator(base, signals=[MaxForce()], importance="never")


def test_cutoffs_of_the_probe_are_the_policy_by_default(base):
    backbone = tap(base)
    probe = tiny_probe(backbone, suspect=0.9, unreliable=0.3)
    [threshold] = ReliableCalculator(backbone, probe).policy.thresholds
    assert threshold.signal == "probe"
    assert threshold.suspect == pytest.approx(0.1)
    assert threshold.unreliable == pytest.approx(0.7)


def test_verdict_follows_the_scripted_risk():
    atoms = watched([GOOD, SUSPECT, BAD])
    levels = []
    for seed in range(3):
        atoms.positions = copper(seed).positions
        levels.append(atoms.calc.assess(atoms).level)
        assert atoms.calc.results["reliability_level"] == levels[-1]
    assert levels == [Level.RELIABLE, Level.SUSPECT, Level.UNRELIABLE]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signals": [MaxForce]}, "signals must be signal objects"),
        ({"signals": [MaxForce()], "policy": [1]}, "policy must be a Policy, got list"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(base, arguments, message):
    with pytest.raises(TypeError, match=message):
        ReliableCalculator(base, **arguments)


def test_a_wrapped_calculator_is_not_wrapped_again(base):
    policy = Policy([Threshold("max_force", 1, 2)])
    once = ReliableCalculator(base, signals=[MaxForce()], policy=policy)
    with pytest.raises(BackboneError, match="must not be wrapped already"):
        ReliableCalculator(once, signals=[MaxForce()], policy=policy)


def test_the_worst_atoms_have_the_lowest_reliability_not_the_most_attention():
    results = {
        "probe_reliabilities": np.array([0.9, 0.2, np.nan, 0.5]),
        "probe_importance": np.array([0.7, 0.1, 0.1, 0.1]),
    }
    reading = Reading("probe", 0.3, results=results, per_atom_key="probe_importance")
    assert Assessment((reading,), Verdict(Level.SUSPECT)).worst_atoms(3) == [2, 1, 3]
    del results["probe_reliabilities"]
    assert Assessment((reading,), Verdict(Level.SUSPECT)).worst_atoms(1) == [0]


def test_a_probe_of_another_backbone_is_refused():
    with pytest.raises(ProbeError, match="must belong to this backbone"):
        ReliableCalculator(mace_calculator(1), tiny_probe(tap(mace_calculator(0))))
