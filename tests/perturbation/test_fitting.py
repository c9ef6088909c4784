"""Training of a perturbation: the score falls, the potential does not change."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule
from backbones.toys import ModuleCalculator
from builders import import_mace, salt
from perturbation.made import KINDS

import uqcalc
from uqcalc import FunctionalSpread, Policy, ReliableCalculator, Threshold
from uqcalc.errors import BackboneError, LabelError, LabelWarning, ModelError
from uqcalc.labels.groups import divide, group_names
from uqcalc.labels.labels import Labels
from uqcalc.perturbation.fitting import PerturbationSettings, perturb
from uqcalc.perturbation.perturbation import Perturbation
from uqcalc.statistics.crps import fair_crps


@pytest.fixture(scope="module")
def potential():
    return uqcalc.open_model("default")


@pytest.fixture(scope="module")
def frames(potential):
    """Return molecules whose labels differ from the potential by random forces."""
    rng = np.random.default_rng(0)
    backbone = uqcalc.tap(potential)
    found = []
    for index in range(16):
        atoms = molecule("CH4" if index % 2 else "H2O")
        atoms.rattle(0.05, seed=index)
        prediction = backbone(atoms, ["energy", "forces"])
        noise = 0.3 * rng.normal(size=(len(atoms), 3))
        atoms.arrays["REF_forces"] = prediction.forces + noise
        atoms.info["REF_energy"] = prediction.energy + 0.05 * rng.normal()
        found.append(atoms)
    return found


def test_score_falls_and_the_potential_stays(potential, frames):
    backbone = uqcalc.tap(potential)
    before = backbone(frames[0], ["energy", "forces"])
    short = PerturbationSettings(epochs=4, dimension=8, members=4, noise_rate=0.02)
    perturbation = perturb(potential, frames, settings=short)
    after = backbone(frames[0], ["energy", "forces"])
    assert after.energy == before.energy
    assert np.array_equal(after.forces, before.forces)
    assert backbone.fingerprint == perturbation.card.fingerprint
    report = perturbation.card.report
    assert report["score"] < report["score_at_start"]
    assert report["crps_forces_eV_per_A"] < report["mae_forces_eV_per_A"]
    assert not any(p.requires_grad for p in backbone.network.parameters())


def test_passes_stay_small_and_the_score_is_that_of_samples(frames, monkeypatch):
    """Sixteen members of a dense cell in one pass needed 13 GB."""
    backbone = uqcalc.tap(uqcalc.open_model("default"))
    plain, atoms = backbone.trainable, []

    def counted(some, *, copies=1, stress=False):
        atoms.append(copies * sum(map(len, some)))
        return plain(some, copies=copies, stress=stress)

    monkeypatch.setattr(backbone, "trainable", counted)
    monkeypatch.setattr(backbone, "most_batch_atoms", 12)
    short = PerturbationSettings(epochs=4, dimension=8, members=4, noise_rate=3e-3)
    found = perturb(backbone, frames, settings=short)
    assert max(atoms) <= 24
    names = group_names(frames, None)
    _, held = divide(names, (0.5, 0.5), short.seed)  # the share of so few groups
    assert found.card.training["held_out"] == len(held)
    samples = [found.sample(frames[i], 16, backbone, seed=short.seed) for i in held]
    x = np.concatenate([s.forces.reshape(16, -1) for s in samples], axis=1)
    y = np.concatenate([frames[i].arrays["REF_forces"].ravel() for i in held])
    score = found.card.report["crps_forces_eV_per_A"]
    assert fair_crps(x, y).mean() == pytest.approx(score, rel=1e-4)


def test_all_parameters_are_trained_and_kept_in_the_file(potential, frames, tmp_path):
    short = PerturbationSettings(
        train="all", epochs=3, dimension=4, members=2, model_rate=1e-3
    )
    backbone = uqcalc.tap(potential)
    before = backbone(frames[0], ["energy", "forces"])
    stiffer = [frame.copy() for frame in frames]
    for frame in stiffer:  # an error that other parameters correct
        frame.arrays["REF_forces"] = 1.3 * backbone(frame, ["forces"]).forces
    perturbation = perturb(potential, stiffer, settings=short)
    assert np.array_equal(backbone(frames[0], ["forces"]).forces, before.forces)
    kept = type(perturbation).load(perturbation.save(tmp_path / "a.perturbation"))
    with kept.own_parameters(backbone):
        tuned = backbone(frames[0], ["energy", "forces"])
    assert not np.array_equal(tuned.forces, before.forces)
    assert np.array_equal(backbone(frames[0], ["forces"]).forces, before.forces)


def test_members_that_do_not_differ_are_refused(potential, frames):
    """A spread of zero would mean that every force is exact."""
    wild = PerturbationSettings(epochs=1, dimension=4, members=2, noise_rate=100.0)
    with pytest.raises(ModelError, match="CRPS of held-out frames must fall"):
        perturb(potential, frames, settings=wild)


def test_labels_of_the_potential_itself_are_refused(potential, frames):
    own = [frame.copy() for frame in frames]
    for frame in own:
        frame.arrays["REF_forces"] = potential.get_property("forces", frame)
    with pytest.raises(LabelError, match="forces of the potential itself"):
        perturb(potential, own)


def test_frames_without_labels_are_refused(potential, frames):
    bare = [frame.copy() for frame in frames]
    del bare[3].arrays["REF_forces"]
    with pytest.raises(LabelError, match=r"got none in 1 of 16 .*frame 3"):
        perturb(potential, bare, Labels())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": "some"}, "train must be one of"),
        ({"noise": "bond"}, "noise must be one of"),
        ({"members": 1}, "members must be at least 2"),
        ({"noise_rate": float("nan")}, "noise_rate must be a number above 0"),
    ],
)
def test_settings_are_checked(change, words):
    with pytest.raises(ModelError, match=words):
        PerturbationSettings(**change)


def test_frames_that_cannot_be_evaluated_are_named(potential, frames):
    broken = [frame.copy() for frame in frames]
    broken[4].positions[0] = np.nan
    with pytest.raises(LabelError, match=r"frame 4 cannot be evaluated: positions"):
        perturb(potential, broken)
    broken[4] = frames[0].copy()
    broken[4].numbers[0] = 92
    with pytest.raises(LabelError, match=r"frame 4 cannot be evaluated: elements"):
        perturb(potential, broken)
    for wrong, words in (("labelled.xyz", "list of Atoms"), ([], "at least 2 groups")):
        with pytest.raises(LabelError, match=words):
            perturb(potential, wrong)


def test_energies_are_in_all_frames_or_in_none(potential, frames):
    some = [frame.copy() for frame in frames]
    del some[2].info["REF_energy"]
    with pytest.raises(LabelError, match="reference for energy"):
        perturb(potential, some)
    for frame in some:
        frame.info.pop("REF_energy", None)
    short = PerturbationSettings(epochs=1, dimension=2, members=2)
    report = perturb(potential, some, settings=short).card.report
    assert "mae_forces_eV_per_A" in report
    assert not any("energy" in name for name in report)


def rough(backbone, frames, *, stress=False):
    """Add labels that differ from the potential by random numbers."""
    rng = np.random.default_rng(1)
    for frame in frames:
        wanted = ["energy", "forces", *(["stress"] if stress else [])]
        found = backbone(frame, wanted).results
        frame.info["REF_energy"] = found["energy"] + 0.3 * rng.normal()
        noise = rng.normal(0, 0.3, (len(frame), 3))
        frame.arrays["REF_forces"] = found["forces"] + noise
        if stress:
            frame.info["REF_stress"] = found["stress"] + 0.01 * rng.normal(size=6)
    return frames


@pytest.mark.parametrize(
    ("kind", "noise"),
    [
        ("orb", "structure"),
        ("orb", "atom"),
        ("orb-conservative", "structure"),
        pytest.param("chgnet", "structure", marks=pytest.mark.slow),
        ("module", "structure"),
        ("module", "atom"),
    ],
)
def test_other_potentials_are_trained(kind, noise):
    pytest.importorskip(KINDS[kind][0])
    backbone, frame, layers = KINDS[kind][1](), KINDS[kind][2], KINDS[kind][3]
    frames = rough(backbone, [frame(seed=seed) for seed in range(10)])
    plain = backbone(frames[0], ["energy", "forces"])
    short = PerturbationSettings(
        noise=noise, epochs=3, batch=2, members=3, dimension=8, noise_rate=1e-3
    )
    perturbation = perturb(backbone, frames, layers=layers, settings=short)
    report = perturbation.card.report
    assert report["score"] < report["score_at_start"]
    after = backbone(frames[0], ["energy", "forces"])
    assert np.array_equal(after.forces, plain.forces)
    assert after.energy == plain.energy
    members = perturbation.sample(frames[0], 4, backbone)
    assert np.isfinite(members.forces).all()
    assert members.forces.std(axis=0).max() > 0


def test_all_parameters_of_an_orb_are_trained(tmp_path):
    pytest.importorskip("orb_models")
    backbone = KINDS["orb"][1]()
    frames = rough(backbone, [KINDS["orb"][2](seed=seed) for seed in range(12)])
    for frame in frames:
        frame.arrays["REF_forces"] = 1.5 * backbone(frame, ["forces"]).forces
        del frame.info["REF_energy"]
    short = PerturbationSettings(
        train="all", epochs=4, batch=2, members=3, model_rate=1e-3
    )
    perturbation = perturb(backbone, frames, settings=short)
    assert not any(p.requires_grad for p in backbone.network.parameters())
    kept = Perturbation.load(perturbation.save(tmp_path / "o.perturbation"))
    one, other = (p.sample(frames[0], 8, backbone) for p in (perturbation, kept))
    assert np.array_equal(one.forces, other.forces)
    truth = frames[0].arrays["REF_forces"]
    plain = backbone(frames[0], ["forces"]).forces
    errors = [np.abs(f - truth).mean() for f in (plain, one.forces.mean(axis=0))]
    assert errors[1] < errors[0]


def test_stress_is_trained_and_read_by_default():
    import_mace()
    backbone = KINDS["mace"][1]()
    frames = rough(backbone, [salt(seed=i) for i in range(6)], stress=True)
    short = PerturbationSettings(epochs=2, dimension=4, members=2, noise_rate=0.02)
    perturbation = perturb(backbone, frames, settings=short)
    assert perturbation.card.training["stress"]
    report = perturbation.card.report
    assert report["crps_stress_eV_per_A3"] > 0
    signal = FunctionalSpread(perturbation, members=2)
    assert "functional_stress_spread" in signal.judged
    policy = Policy([Threshold("functional_spread", 1, 2)])
    calc = ReliableCalculator(backbone, None, [signal], policy)
    calc.assess(frames[0])
    assert calc.results["functional_stress_spread"] > 0


@pytest.mark.slow
def test_energies_of_another_zero_are_warned_of_and_fitted(potential, frames):
    moved = [frame.copy() for frame in 3 * frames]
    for frame in moved:  # another level of theory
        frame.info["REF_energy"] -= 500.0 * (frame.numbers > 1).sum() + 13.6
    short = PerturbationSettings(epochs=1, dimension=2, members=2)
    with pytest.warns(LabelWarning, match="seem to have another"):
        perturb(potential, moved, settings=short)
    labels = Labels("energy", offsets=True)
    report = perturb(potential, moved, labels, settings=short).card.report
    assert report["mae_energy_eV_per_atom"] < 0.1


def test_a_module_without_its_energy_is_refused(frames):
    backbone = uqcalc.tap(ModuleCalculator(), module="model.readout")
    with pytest.raises(BackboneError, match="energy="):
        perturb(backbone, frames, layers=["readout.0"])
