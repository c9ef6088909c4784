"""The verdict about chosen atoms: adsorbates, defects, QM zones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule
from builders import mace_calculator, rattled, tiny_probe
from closeness import close

from uqcalc import Policy, ReliableCalculator, annotated_copy, read_assessment, tap
from uqcalc.defaults import shipped_probe
from uqcalc.errors import ProbeError
from uqcalc.models.bundled import bare_calculator
from uqcalc.signals.base import to_host
from uqcalc.signals.probe import ProbeSignal
from uqcalc.signals.region import Region


@pytest.fixture(scope="module")
def backbone():
    return tap(bare_calculator())


@pytest.fixture(scope="module")
def probe():
    return shipped_probe("default")


def broken():
    """Return ethanol with a broken O-H bond: O is atom 2, its H is atom 3."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.03, seed=0)
    atoms.positions[3] += [0.5, 0.5, 0.0]
    return atoms


def read(probe, prediction, atoms=None):
    [reading] = to_host([ProbeSignal(probe, atoms=atoms)(prediction)])
    return reading


def test_all_atoms_are_the_whole_structure(backbone, probe):
    prediction = backbone(broken(), ["energy", "forces"])
    whole = read(probe, prediction)
    every = read(probe, prediction, np.ones(9, bool))
    close(every.risk, whole.risk, of=1.0)
    for key, value in whole.results.items():
        close(every.results[key], value, of=np.abs(value).max() + 1.0)
    for key in ("novelty", "worst_atom"):
        close(every.results[f"probe_region_{key}"], whole.results[f"probe_{key}"])
    close(
        every.results["probe_region_worst"], whole.results["probe_reliabilities"].min()
    )


def test_a_broken_bond_counts_where_it_is(backbone, probe):
    prediction = backbone(broken(), ["energy", "forces"])
    hydroxyl, methyl = read(probe, prediction, [2, 3]), read(probe, prediction, [1, 6])
    atoms = hydroxyl.results["probe_reliabilities"]
    assert hydroxyl.risk > methyl.risk
    for reading, chosen in ((hydroxyl, [2, 3]), (methyl, [1, 6])):
        close(reading.results["probe_region_worst"], atoms[chosen].min(), of=1.0)
        assert reading.limits.keys() == {
            "probe_region_novelty",
            "probe_region_worst_atom",
        }
    assert "over 2 atoms" in hydroxyl.meaning
    assert hydroxyl.results["probe_reliability"] == pytest.approx(
        methyl.results["probe_reliability"], abs=1e-6
    )


def test_a_copy_far_away_does_not_change_the_region(backbone, probe):
    one = broken()
    two = one.copy()
    two.positions += 40.0
    alone = read(probe, backbone(one, ["energy", "forces"]))
    pair = read(probe, backbone(one + two, ["energy", "forces"]), np.arange(9))
    assert pair.results["probe_region_reliability"] == pytest.approx(
        alone.results["probe_reliability"], abs=1e-3
    )
    assert pair.results["probe_region_novelty"] == pytest.approx(
        alone.results["probe_novelty"], rel=1e-3
    )


def test_fewer_atoms_than_the_scope_allows_have_p_of_the_worst(backbone, probe):
    scope = replace(probe.card.scope, smallest=3)
    strict = probe.with_card(scope=scope)
    reading = read(strict, backbone(broken(), ["energy", "forces"]), [2, 3])
    close(reading.risk, 1 - reading.results["probe_region_worst"], of=1.0)
    assert reading.meaning.startswith("smallest P(force error of an atom <= ")
    assert not reading.doubts


def test_size_limits_are_for_the_region(backbone, probe):
    scope = replace(probe.card.scope, largest=8)
    strict = probe.with_card(scope=scope)
    prediction = backbone(broken(), ["energy", "forces"])
    assert read(strict, prediction).doubts
    assert not read(strict, prediction, [0, 1, 2]).doubts
    assert "region of 9 atoms" in read(strict, prediction, range(9)).doubts[0]


def test_worst_atoms_are_chosen_ones_and_files_keep_them(backbone, probe):
    atoms = broken()
    atoms.calc = ReliableCalculator(backbone, probe, atoms=[1, 6, 7])
    assessment = atoms.calc.assess(atoms)
    worst = assessment.worst_atoms()
    assert sorted(worst) == [1, 6, 7]
    again = read_assessment(annotated_copy(atoms, assessment, atoms.calc.results))
    assert again.worst_atoms() == worst
    assert again.reading("probe").atoms == (1, 6, 7)
    assert atoms.calc.todict()["probe_atoms"] == [1, 6, 7]


def test_the_energy_per_atom_is_that_of_the_whole(backbone):
    prediction = backbone(broken(), ["energy", "forces"])
    energies = np.linspace(-1.0, -100.0, 119)
    part = Region([0, 3]).part(prediction, energies)
    for numbers, energy in (
        (prediction.numbers, prediction.energy),
        (part.numbers, part.energy),
    ):
        per_atom = (energy - energies[numbers].sum()) / len(numbers)
        rest = prediction.energy - energies[prediction.numbers].sum()
        close(per_atom, rest / len(prediction.numbers))
    assert torch.equal(part.features, prediction.features[[0, 3]])


def test_elements_without_labels_make_every_region_unknown():
    backbone = tap(mace_calculator())
    probe = tiny_probe(backbone, elements=[1, 6], bias=50.0)
    prediction = backbone(rattled(), ["energy", "forces"])
    carbon = read(probe, prediction, [0])
    assert np.isnan(carbon.risk)
    assert np.isnan(carbon.results["probe_region_reliability"])
    assert "O" in carbon.note


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        ([], "at least one atom, got none"),
        ([False] * 9, "at least one atom, got none"),
        ([-1], "at least 0"),
        ([2, 2], "distinct"),
        ([0.5], "list of indices or a boolean mask"),
        ([[0]], "list of indices or a boolean mask"),
    ],
)
def test_invalid_choices_of_atoms_are_refused(atoms, words):
    with pytest.raises(ValueError, match=words):
        Region(atoms)


@pytest.mark.parametrize(
    ("atoms", "words"),
    [([9], "below the number of atoms, which is 9, got 9"), ([True] * 8, "mask of 8")],
)
def test_a_structure_that_does_not_fit_is_refused(backbone, probe, atoms, words):
    calc = ReliableCalculator(backbone, probe, atoms=atoms)
    with pytest.raises(ValueError, match=words):
        calc.assess(broken())


def test_targets_and_guarantees_of_whole_structures_are_refused(backbone):
    mace = tap(mace_calculator())
    energy = tiny_probe(mace, target="energy")
    with pytest.raises(ProbeError, match="must have a target of forces, got"):
        ProbeSignal(energy, atoms=[0])
    with pytest.raises(ValueError, match="together with a probe"):
        ReliableCalculator(backbone, None, atoms=[0])
    promise = shipped_probe("chgnet").card.promise
    forces = tiny_probe(mace, promise=promise, boundary=0.2)
    ReliableCalculator(mace, forces, policy=Policy.from_guarantee(forces))
    with pytest.raises(ValueError, match="whole structures"):
        ReliableCalculator(
            mace, forces, policy=Policy.from_guarantee(forces), atoms=[0]
        )
    atoms = rattled()
    calc = ReliableCalculator(mace, forces, atoms=[0, 1])
    assert calc.assess(atoms).results()["probe_promised"] is False


def test_the_surroundings_are_the_atoms_within_six_angstrom(backbone):
    water = molecule("H2O")
    far = water.copy()
    far.positions += [0.0, 0.0, 30.0]
    pair = water + far
    prediction = backbone(pair, ["energy", "forces"])
    assert Region([0]).around(prediction).tolist() == [0, 1, 2]
    pair.set_cell([34.0, 34.0, 34.0])
    pair.set_pbc(True)  # the second molecule is 4 Å below the first
    prediction = backbone(pair, ["energy", "forces"])
    assert Region([0]).around(prediction).tolist() == list(range(6))
    every = Region(range(6)).around(prediction)
    assert every.tolist() == list(range(6))
