"""Training of a perturbation: the score falls, the potential stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule

import uqcalc
from uqcalc.errors import LabelError, ModelError
from uqcalc.labels.labels import Labels
from uqcalc.perturbation.fitting import PerturbationSettings, perturb


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


def test_all_parameters_are_trained_and_kept_in_the_file(potential, frames, tmp_path):
    short = PerturbationSettings(
        train="all", epochs=3, dimension=4, members=2, model_rate=1e-3
    )
    backbone = uqcalc.tap(potential)
    before = backbone(frames[0], ["energy", "forces"])
    stiffer = [frame.copy() for frame in frames]
    for frame in stiffer:  # an error that other parameters mend
        frame.arrays["REF_forces"] = 1.3 * backbone(frame, ["forces"]).forces
    perturbation = perturb(potential, stiffer, settings=short)
    assert np.array_equal(backbone(frames[0], ["forces"]).forces, before.forces)
    kept = type(perturbation).load(perturbation.save(tmp_path / "a.perturbation"))
    with kept.own_parameters(backbone):
        tuned = backbone(frames[0], ["energy", "forces"])
    assert not np.array_equal(tuned.forces, before.forces)
    assert np.array_equal(backbone(frames[0], ["forces"]).forces, before.forces)


def test_frames_without_labels_are_refused(potential, frames):
    bare = [frame.copy() for frame in frames]
    del bare[3].arrays["REF_forces"]
    with pytest.raises(LabelError, match=r"got none in 1 of 16 .*frame 3"):
        perturb(potential, bare, Labels())


def test_settings_are_checked():
    with pytest.raises(ModelError, match="train must be one of"):
        PerturbationSettings(train="some")
    with pytest.raises(ModelError, match="members must be at least 2"):
        PerturbationSettings(members=1)


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
