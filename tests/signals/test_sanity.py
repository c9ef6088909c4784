"""Plain sanity: closed-form distances, and faults made one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import primitive_neighbor_list
from builders import mace_calculator, rattled

from uqcalc import (
    Level,
    MaxForce,
    Policy,
    ReliableCalculator,
    Sanity,
    Threshold,
    annotate,
    read_assessment,
    tap,
)
from uqcalc.backbones.prediction import Prediction, geometry
from uqcalc.errors import BackboneError
from uqcalc.geometry.surroundings import surroundings
from uqcalc.testing import check_signal


TRUSTING = Policy([Threshold("max_force", 1e30, 1e30)])


def predicted(atoms, *, energy=-1.0, force=0.1, **more):
    """A prediction as a model could give it, with one force on the first atom."""
    forces = np.zeros((len(atoms), 3))
    forces[0, 0] = force
    results = {"energy": energy, "forces": forces}
    return Prediction(
        **geometry(atoms),
        results=results,
        energy=energy,
        forces=forces,
        features=torch.zeros(len(atoms), 1),
        **more,
    )


def read(atoms, signal=None, **options):
    return (signal or Sanity(5.0, frozenset()))(predicted(atoms, **options))


def is_sane(reading):
    return not (reading.doubts or reading.faults or reading.absurd)


def test_it_keeps_the_contract_of_a_signal():
    check_signal(Sanity(), predicted(molecule("CH3OH")))


def test_the_closest_contact_is_in_covalent_radii_and_crosses_the_cell():
    radius = covalent_radii[29]
    apart = Atoms("Cu2", [[0.1, 2, 2], [9.7, 2, 2]], cell=[10, 10, 10], pbc=True)
    reading = read(apart)
    expected = (10 - 9.6) / (2 * radius)  # through the face of the cell
    assert reading.results["sanity_contact"] == pytest.approx(expected, rel=1e-9)
    [why] = reading.faults
    assert "Cu0 and Cu1 are 0.4 Å apart" in why or "Cu1 and Cu0 are 0.4 Å apart" in why
    assert reading.risk == pytest.approx(0.30 / expected - 1, rel=1e-9)
    apart.pbc = False
    assert np.isnan(read(apart).results["sanity_contact"])


@pytest.mark.parametrize("most_pairs", [4096, 0])
def test_neighbours_are_those_of_a_list_of_all_pairs(monkeypatch, most_pairs):
    monkeypatch.setattr("uqcalc.geometry.surroundings._MOST_PAIRS", most_pairs)
    rng = np.random.default_rng(0)
    for _ in range(40):
        count = int(rng.integers(1, 20))
        cell = rng.normal(size=(3, 3)) * 2 + np.eye(3) * rng.uniform(3, 8)
        atoms = Atoms(
            rng.integers(1, 60, count),
            positions=rng.normal(size=(count, 3)) * 5,
            cell=cell,
            pbc=rng.random(3) < 0.6,
        )
        if abs(np.linalg.det(cell)) < 20:
            continue
        args = atoms.pbc, atoms.cell.array, atoms.positions, 5.0
        i, j, distances = primitive_neighbor_list("ijd", *args)
        nearest = np.full(count, np.inf)
        np.minimum.at(nearest, i, distances)
        radii = covalent_radii[atoms.numbers]
        pairs = distances / (radii[i] + radii[j])
        of_each = [np.sort(pairs[i == atom]) for atom in range(count)]
        second = min((c[1] for c in of_each if len(c) > 1), default=np.inf)
        found = surroundings(
            atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, 5.0
        )
        seen = np.isfinite(nearest)
        assert np.array_equal(np.isfinite(found.nearest), seen)
        np.testing.assert_allclose(found.nearest[seen], nearest[seen], rtol=1e-9)
        closest = min((c[0] for c in of_each if len(c)), default=np.inf)
        assert found.contacts.min() == pytest.approx(closest, rel=1e-9)
        if second < 1.3:  # the first search has no larger reach
            assert found.seconds.min() == pytest.approx(second, rel=1e-9)


@pytest.mark.parametrize(
    "atoms",
    [molecule("C6H6"), bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.64)],
)
def test_fused_atoms_are_faults_and_the_intact_structure_is_not(atoms):
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=0)
    assert is_sane(read(atoms))
    whole = covalent_radii[atoms.numbers[:2]].sum()
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.25 * whole, 0.0]
    assert read(atoms).faults
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.1 * whole, 0.0]
    assert read(atoms).absurd


def test_an_atom_crushed_from_two_sides_is_a_fault():
    metal = bulk("Al", cubic=True)
    metal.rattle(0.01, seed=0)
    metal.set_cell(0.28 * metal.cell, scale_atoms=True)
    reading = read(metal)  # 4.05 / sqrt(2) * 0.28 / (2 * 1.21) = 0.33
    assert reading.results["sanity_contact"] == pytest.approx(0.33, abs=0.02)
    [why] = reading.faults
    assert "two neighbours at less than 0.40" in why
    pair = Atoms("Al2", [[0, 0, 0], [0, 0, 0.33 * 2.42]])
    assert is_sane(read(pair))


def test_atoms_without_neighbours_within_the_cutoff():
    left = molecule("CH3OH")
    left.positions[5] += [0, 0, 30.0]
    reading = read(left)
    [why] = reading.doubts
    assert why.startswith("H5 has no neighbour within 5 Å")
    assert why.endswith("this atom was not judged")
    assert reading.results["sanity_unseen"] == 1
    alone = read(Atoms("N"))
    assert not alone.faults
    assert "the structure was not judged" in alone.doubts[0]
    assert read(bulk("W", a=14.0)).doubts
    assert is_sane(read(molecule("CH3OH"), Sanity(1.6)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"force": 2e3}, "the force on C0 is 2e+03 eV/Å > 1000 eV/Å"),
        ({"force": 2e4}, "the force on C0 is 2e+04 eV/Å > 10000 eV/Å"),
        ({"energy": -4.8e6 * 6}, "the energy is -4.8e+06 eV/atom < "),
        ({"energy": 6e4}, r"the energy is 1e+04 eV/atom > 1e+03 eV/atom"),
    ],
)
def test_impossible_energies_and_forces(options, words):
    reading = read(molecule("CH3OH"), **options)
    [why] = (*reading.faults, *reading.absurd)
    assert why.startswith(words)
    assert bool(reading.absurd) == (options.get("force") != 2e3)


# Dirac-Fock (doi:10.1006/adnd.1997.0751), rounded; that of U with Breit's term
@pytest.mark.parametrize(
    ("symbol", "hartree"),
    [
        ("H", -0.5),
        ("He", -2.862),
        ("C", -37.8),
        ("Ne", -128.7),
        ("Ar", -528.7),
        ("Kr", -2788.9),
        ("Xe", -7446.9),
        ("Hg", -19649.0),
        ("Rn", -23602.0),
        ("U", -28070.0),
    ],
)
def test_the_energies_of_all_electrons_are_within_the_limit(symbol, hartree):
    pair = Atoms(f"{symbol}2", [[0, 0, 0], [0, 0, 2.6]])
    assert not read(pair, energy=2 * 27.2114 * hartree).absurd
    # 100 eV are for bonds
    beyond = 2 * (1.2 * 27.2114 * hartree - 100.0)
    assert read(pair, energy=beyond).absurd


def test_too_large_structures_are_unreliable():
    far = molecule("CH3OH")
    far.set_cell([2e4, 10, 10])
    [why] = read(far).faults
    assert why == "the structure is 2e+04 Å > 10000 Å long"


@pytest.mark.parametrize(
    ("far", "doubts", "faults"), [(9e3, 0, 0), (2e4, 1, 0), (-2e5, 0, 1)]
)
def test_coordinates_too_large_for_single_precision(far, doubts, faults):
    """Along a periodic axis the extent of the structure does not change."""
    crystal = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    crystal.rattle(0.05, seed=1)
    crystal.positions[3, 2] += 5.64 * np.round(far / 5.64)
    found = read(crystal)
    assert (len(found.doubts), len(found.faults)) == (doubts, faults)
    for why in (*found.doubts, *found.faults):
        assert why.startswith("Cl3 has a coordinate of 2e+0")
        assert "wrap the atoms" in why
    assert not found.absurd
    features = torch.zeros(len(crystal), 1, dtype=torch.float64)
    double = Sanity()(replace(predicted(crystal), features=features))
    assert (*double.doubts, *double.faults) == ()


def test_forces_that_vanish_by_symmetry_are_a_doubt_and_small_ones_are_not():
    crystal = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    [why] = read(crystal, force=1e-6).doubts
    assert why.startswith("all forces vanish by symmetry")
    assert is_sane(read(crystal, force=2e-3))
    assert is_sane(read(crystal, Sanity(5.0, forces=False), force=1e-6))
    crystal.rattle(0.02, seed=0)  # relaxed: small, but not by symmetry
    assert is_sane(read(crystal, force=1e-6))


@pytest.mark.parametrize("value", [5, -1, np.nan, "x"])
def test_a_charge_that_is_not_read_is_a_doubt(value):
    ion = molecule("CH3OH")
    ion.info["charge"] = value
    [why] = read(ion).doubts
    assert why == f"info['charge'] is {value!r}, which this model does not use"
    if isinstance(value, int | float):  # as ASE reads it from extended XYZ
        ion.info["charge"] = np.array(value)[()]
        assert read(ion).doubts == (why,)
    assert is_sane(read(ion, Sanity(5.0, frozenset({"charge"}))))
    assert is_sane(read(ion, Sanity(5.0)))  # it is not known what the model reads


@pytest.mark.parametrize(
    ("charge", "spin", "possible"),
    [(0, 1, True), (0, 2, False), (1, 2, True), (1, 1, False), (0, 3, True)],
)
def test_a_multiplicity_has_the_parity_of_the_electrons(charge, spin, possible):
    ion = molecule("CH3OH")  # 18 electrons
    ion.info |= {"charge": np.int64(charge), "spin": spin}
    reading = read(ion, Sanity(5.0, frozenset({"charge", "spin"})))
    assert is_sane(reading) == possible
    if not possible:
        assert f"{18 - charge} electrons cannot have" in reading.doubts[0]
    assert read(
        Atoms("HH", [[0, 0, 0], [0, 0, 0.74]], info={"spin": 5}),
        Sanity(5.0, frozenset({"spin"})),
    ).doubts  # four electrons would have equal spins


def test_neutral_singlets_are_accepted_and_initial_charges_count():
    plain = molecule("CH3OH")
    plain.info |= {"charge": 0, "spin": 1, "multiplicity": np.int64(1), "mult": None}
    plain.set_initial_charges([0.1, -0.1, 0, 0, 0, 0])
    assert is_sane(read(plain))
    plain.set_initial_charges([1.0, 0, 0, 0, 0, 0])
    [why] = read(plain).doubts
    assert why.startswith("initial charges is 1 e")


@pytest.fixture(scope="module")
def calculator():
    backbone = tap(mace_calculator(0))
    return ReliableCalculator(backbone, None, [MaxForce()], TRUSTING)


def test_it_is_on_by_default_and_enters_a_policy_without_it(calculator):
    assert [signal.name for signal in calculator.signals] == [
        "max_force",
        "sanity",
        "flags",
    ]
    assert calculator.signals[1].cutoff == 4.0
    ion = rattled()
    assert calculator.assess(ion).level is Level.RELIABLE
    ion.info["charge"] = 1  # same geometry: the cache must compare it
    assert calculator.assess(ion).level is Level.SUSPECT
    ion.info.clear()
    ion.positions[5] += [0, 0, 30.0]
    assessment = calculator.assess(ion)
    assert assessment.level is Level.SUSPECT
    [frame] = annotate([ion], calculator)
    assert read_assessment(frame).verdict == assessment.verdict
    off = ReliableCalculator(
        calculator.backbone, None, [MaxForce()], TRUSTING, sanity=False
    )
    assert off.assess(ion).level is Level.RELIABLE


def changed(**changes):
    atoms = rattled(seed=7)
    for name, value in changes.items():
        if name == "info":
            atoms.info.update(value)
        else:
            atoms.set_array(name, value(atoms), dtype=None)
    return atoms


def first(value):
    return lambda atoms: np.array([value, *atoms.get_masses()[1:]])


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (
            Atoms([200, 1], [[0, 0, 0], [0, 0, 1]]),
            r"atomic numbers must be 1 to 118.*200",
        ),
        (
            Atoms("XH", [[0, 0, 0], [0, 0, 1]]),
            r"got \[0\] at atoms \[0\] .0 is a ghost",
        ),
        (changed(masses=first(-1.0)), r"masses must be positive, got \[-1.0\] u .* C0"),
        (changed(masses=first(np.nan)), "masses must be positive"),
        (changed(info={"charge": np.nan}), r"info\['charge'\] must be a whole number"),
        (changed(info={"charge": [0]}), r"info\['charge'\] must be .*, got \[0\]"),
        (changed(info={"charge": "x"}), r"info\['charge'\] must be .* got 'x'"),
        (changed(info={"charge": 99}), "at most 18 electrons, got 99"),
        (changed(info={"spin": -2}), r"info\['spin'\] must be a whole number from 0"),
    ],
)
def test_invalid_atoms_are_refused_before_the_pass(calculator, atoms, words):
    passes = calculator.backbone.passes
    with pytest.raises(BackboneError, match=words):
        calculator.assess(atoms)
    assert calculator.backbone.passes == passes


@pytest.mark.parametrize("name", ["features", "charges", "stress", "energies"])
def test_every_number_of_a_pass_is_checked(calculator, name):
    crystal = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    crystal.rattle(0.05, seed=0)
    sound = calculator.backbone(crystal, ["energy", "forces", "stress"])
    assert calculator.judge(sound).level is Level.RELIABLE
    if name in ("features", "charges"):
        value = torch.ones(8, 2, dtype=torch.float64)
        value[3, 1] = torch.nan
        broken = replace(sound, **{name: value})
    else:
        value = np.ones(6 if name == "stress" else 8)
        value[2] = np.inf
        broken = replace(sound, results=sound.results | {name: value})
    assessment = calculator.judge(broken)
    assert assessment.level is Level.UNRELIABLE
    assert (
        f"{name} has values that are NaN or infinite" in assessment.verdict.reasons[0]
    )
    # of a molecule some calculators give an infinite stress
    molecule_ = replace(broken, pbc=np.zeros(3, dtype=bool))
    level = calculator.judge(molecule_).level
    assert (level is Level.RELIABLE) == (name == "stress")


def crystals_of_the_elements():
    for number in range(1, 97):
        try:
            yield bulk(chemical_symbols[number])
        except (ValueError, KeyError, RuntimeError, NotImplementedError):
            continue  # no simple crystal is known for it


def test_crystals_are_bonded_and_expanded_ones_are_not():
    seen = 0
    for atoms in crystals_of_the_elements():
        seen += 1
        reading = read(atoms, Sanity(8.0))  # Cs: 5.2 Å from atom to atom
        said = [why for why in reading.doubts if "no two atoms are bonded" in why]
        assert not said, atoms
        if atoms.numbers[0] in {2, 10, 18, 36, 54, 86}:
            continue
        factor = 1.5 / reading.results["sanity_contact"]
        atoms.set_cell(factor * atoms.cell, scale_atoms=True)
        atoms = atoms * (2, 2, 2)
        atoms.rattle(0.03, seed=1)
        [why, *_] = read(
            atoms, Sanity(8.0)
        ).doubts  # not bonded, or not even within the cutoff
        assert "no two atoms are bonded" in why or "no atom has a neighbour" in why
    assert seen > 60


def test_far_molecules_are_bonded_within():
    pair = molecule("CH4")
    other = molecule("CH4")
    other.translate([4.5, 0, 0])
    assert is_sane(read(pair + other))


@pytest.mark.parametrize("turned", [False, True])
def test_images_of_an_open_direction_within_the_cutoff_are_doubted(turned):
    """The gap of a film is the height of the cell minus its thickness."""
    film = bulk("Cu", cubic=True) * (1, 1, 2)
    film.set_cell([[3.6, 0, 0], [1.0, 3.6, 0], [0.5, 0.7, 14.04]])
    thickness = np.ptp(film.positions[:, 2])
    film.pbc = (True, True, False)
    if turned:
        film.rotate(40, (1, 2, 3), rotate_cell=True)
    film.positions += film.cell[2] * 0.7  # partly outside the cell
    gap = 14.04 - thickness
    for cutoff, found in ((gap + 0.1, True), (gap - 0.1, False)):
        doubts = Sanity(cutoff, periodic=True)(predicted(film)).doubts
        assert any(
            f"directions (c) are {gap:.3g} Å apart" in why for why in doubts
        ) is (found)
        assert not any(
            "images" in why for why in Sanity(cutoff)(predicted(film)).doubts
        )
    film.pbc = True
    doubts = Sanity(gap + 0.1, periodic=True)(predicted(film)).doubts
    assert not any("images" in why for why in doubts)
