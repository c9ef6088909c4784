"""Scores of members: calibrated where the truth is one more member."""

from __future__ import annotations

import pytest
from ase.build import molecule
from backbones.toys import mace_on_shared_models
from builders import import_mace, rattled, salt
from perturbation.made import made

import uqcalc
from uqcalc import FunctionalSpread, Labels, evaluate_members
from uqcalc.errors import LabelError


import_mace()
NAMES = ["CH3OH", "CH4", "H2O", "CH3CH2OH"]


@pytest.fixture(scope="module")
def backbone():
    return uqcalc.tap(mace_on_shared_models())


@pytest.fixture(scope="module")
def spread(backbone):
    return FunctionalSpread(made(backbone), members=12)


@pytest.fixture(scope="module")
def frames(backbone, spread):
    """Return frames whose references are those of one more member each."""
    found = []
    for seed in range(40):
        atoms = rattled(NAMES[seed % 4], seed=seed)
        truth = spread.perturbation.sample(atoms, 1, backbone, seed=1000 + seed)
        atoms.info["REF_energy"] = truth.energies[0]
        atoms.arrays["REF_forces"] = truth.forces[0]
        found.append(atoms)
    return found


def test_a_calibrated_spread_has_the_size_of_the_error(backbone, spread, frames):
    energy, forces = evaluate_members(frames, spread.extend(backbone))
    assert (energy.quantity, forces.quantity) == ("energy", "forces")
    assert forces.values == 3 * sum(map(len, frames))
    assert forces.structures == len(frames)
    for found in (energy, forces):
        assert found.signal == "functional_spread"
        assert 0.5 < found.spread_skill < 2  # the 12 members are the same in all
        assert found.crps < found.mae
        assert found.crps_gaussian == pytest.approx(found.crps, rel=0.2)
    wrong = [frame.copy() for frame in frames]
    for frame in wrong:  # ten times the error
        plain = backbone(frame, ["forces"]).forces
        frame.arrays["REF_forces"] = plain + 10 * (frame.arrays["REF_forces"] - plain)
    worse = evaluate_members(wrong, spread.extend(backbone))[1]
    assert worse.spread_skill < 0.2
    assert worse.nll > forces.nll + 10


def test_the_zero_of_the_energy_may_be_fitted(backbone, spread, frames):
    moved = [frame.copy() for frame in frames]
    for frame in moved:
        frame.info["REF_energy"] += 50.0 * (frame.numbers == 1).sum()
    seen = spread.extend(backbone)
    bare, fitted = (
        evaluate_members(moved, seen, Labels("energy", offsets=offsets))[0]
        for offsets in (False, True)
    )
    assert bare.mae > 10
    assert fitted.mae < 0.1


def test_a_committee_is_scored_with_its_stress():
    committee = uqcalc.tap(mace_on_shared_models(0, 1))
    atoms = salt()
    results = committee(atoms, ["energy", "forces", "stress"]).results
    atoms.info |= {"REF_energy": results["energy"], "REF_stress": results["stress"]}
    atoms.arrays["REF_forces"] = results["forces"]
    found = evaluate_members([atoms], committee)
    assert [row.quantity for row in found] == ["energy", "forces", "stress"]
    assert {row.signal for row in found} == {"force_spread"}
    assert all(row.mae < 1e-12 < row.spread for row in found)


def test_labels_of_the_potential_itself_are_refused(backbone, spread, frames):
    own = [frame.copy() for frame in frames]
    for frame in own:
        frame.arrays["REF_forces"] = backbone(frame, ["forces"]).forces
    with pytest.raises(LabelError, match="forces of the potential itself"):
        evaluate_members(own, spread.extend(backbone))


def test_potentials_without_members_and_frames_without_labels_are_refused(
    backbone, spread
):
    with pytest.raises(LabelError, match="must give members"):
        evaluate_members([molecule("H2O")], backbone)
    with pytest.raises(LabelError, match="must have a reference"):
        evaluate_members([molecule("H2O")], spread.extend(backbone))
