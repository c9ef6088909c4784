"""Labels in another unit are recognised by their scale, and only those."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from ase import units
from probe.toys import random_prediction

from uqcalc import LabelWarning
from uqcalc.labels.comparison import warn_of_units


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
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 5.0, -23.0605])
def test_wrong_but_not_by_a_unit_says_nothing(target, factor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_units(target, predictions(), references(target, factor))


def test_labels_unlike_the_predictions_say_nothing():
    rng = np.random.default_rng(1)
    unrelated = [23 * rng.normal(size=p.forces.shape) for p in predictions()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_units("forces", predictions(), unrelated)
        warn_of_units("forces", predictions()[:1], [np.zeros((3, 3))])
