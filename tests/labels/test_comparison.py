"""Labels in another unit are recognised by their scale, and only those."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from ase import units
from closeness import FLOAT64, close
from probe.toys import random_prediction

from uqcalc import LabelWarning
from uqcalc.labels.comparison import relative_residuals, warn_of_units


def predictions(count=30):
    made = [random_prediction(3 + i % 4, 4, seed=i) for i in range(count)]
    return [replace(p, results={"energy": p.energy, "forces": p.forces}) for p in made]


def references(target, factor, noise=0.3):
    rng = np.random.default_rng(0)
    found = []
    for p in predictions():
        value = np.asarray(p.forces if target == "forces" else p.energy)
        scatter = value.std() or 1.0
        found.append(factor * (value + noise * scatter * rng.normal(size=value.shape)))
    return found


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("kcal/mol/Å", 23.0605),
        ("kJ/mol/Å", 96.4853),
        ("hartree/bohr", 0.0194469),
        ("meV/Å", 1000),
    ],
)
def test_forces_in_another_unit_are_named(unit, factor):
    with pytest.warns(LabelWarning, match=rf"which fits {unit} \(factor"):
        warn_of_units("forces", predictions(), references("forces", factor))


def test_energies_in_kcal_per_mol_with_another_zero_are_named():
    found = references("energy", units.mol / units.kcal, noise=0.05)
    zeros = {1: -315.0, 6: -23000.0, 7: -34000.0, 8: -47000.0}
    shifted = [
        value + sum(zeros.get(int(z), 0.0) for z in p.numbers)
        for value, p in zip(found, predictions(), strict=True)
    ]
    with pytest.warns(LabelWarning, match=r"which fits kcal/mol \(factor"):
        warn_of_units("energy", predictions(), shifted)


@pytest.mark.parametrize("target", ["forces", "energy"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 5.0])
def test_large_errors_without_a_unit_factor_give_no_warning(target, factor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_units(target, predictions(), references(target, factor))


@pytest.mark.parametrize(("factor", "unit"), [(-1.2, ""), (-23.0605, "kcal/mol/Å")])
def test_forces_of_the_opposite_sign_are_named(factor, unit):
    with pytest.warns(LabelWarning, match="of the opposite sign to") as caught:
        assert warn_of_units("forces", predictions(), references("forces", factor))
    assert len(caught) == 1
    assert ("convert them from" in str(caught[0].message)) is bool(unit)
    assert unit in str(caught[0].message)


def test_uncorrelated_labels_give_no_warning():
    rng = np.random.default_rng(1)
    unrelated = [23 * rng.normal(size=p.forces.shape) for p in predictions()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_units("forces", predictions(), unrelated)
        warn_of_units("forces", predictions()[:1], [np.zeros((3, 3))])


def strained(count=30):
    """Return predictions of cells of several volumes, with stresses of some GPa."""
    rng = np.random.default_rng(5)
    found = []
    for p in predictions(count):
        cell = np.eye(3) * rng.uniform(4, 8)
        stress = 0.05 * rng.normal(size=6)
        results = p.results | {"stress": stress}
        found.append(replace(p, cell=cell, pbc=np.full(3, True), results=results))
    return found


def stresses(factor, *, virial=False, noise=0.1):
    rng = np.random.default_rng(0)
    return [
        factor
        * (p.results["stress"] + noise * 0.05 * rng.normal(size=6))
        * (np.linalg.det(p.cell) if virial else 1.0)
        for p in strained()
    ]


@pytest.mark.parametrize(
    ("factor", "virial", "words"),
    [
        (-1.0, False, "seem to be of the opposite sign;"),
        (-2.0, False, "seem to be of the opposite sign;"),
        (1 / units.GPa, False, r"seem to be in GPa \(labels .* factor 160.2\)"),
        (10 / units.GPa, False, r"seem to be in kbar \("),
        (-10 / units.GPa, False, r"of the opposite sign and in kbar \("),
        (1.0, True, r"seem to be virials in eV \(stress times volume\);"),
        (-1.0, True, "of the opposite sign and virials in eV"),
    ],
)
def test_stresses_of_another_sign_unit_or_kind_are_named(factor, virial, words):
    with pytest.warns(LabelWarning, match=words):
        warn_of_units("stress", strained(), stresses(factor, virial=virial))


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 8.0])
def test_poor_stresses_give_no_warning(factor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_of_units("stress", strained(), stresses(factor, noise=0.5))


def test_a_relative_energy_is_measured_from_the_median_of_its_composition():
    numbers = [np.array(z) for z in ([8, 1, 1], [1, 8, 1], [1, 1, 8], [6, 8], [8, 1])]
    residuals = np.array([5.0, 5.3, 4.9, -2.0, np.nan])
    relative, alone = relative_residuals(numbers, residuals)
    close(relative[:4], [0.0, 0.3, -0.1, 0.0], FLOAT64)
    assert alone.tolist() == [False, False, False, True, True]
    moved = residuals + [100 * len(z) for z in numbers]  # another zero of energy
    close(relative_residuals(numbers, moved)[0][:4], relative[:4], 1e-9)


def test_forces_that_a_constraint_has_removed_are_named():
    held = references("forces", 1.0, noise=0.05)
    for forces in held[::5]:
        forces[0] = 0.0
    with pytest.warns(LabelWarning, match=r"zero on 6 atoms of 6 frames.*FixAtoms"):
        warn_of_units("forces", predictions(), held)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free = references("forces", 1.0, noise=0.05)
        free[0][0] = free[1][0] = 0.0  # two frames may agree by chance
        free[2][:, 0] = 0.0  # one component vanishes by symmetry
        warn_of_units("forces", predictions(), free)
