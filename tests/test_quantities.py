"""Errors with a unit: as in the tables of ase; other texts are refused."""

import pytest
from ase import units

from uqcalc import Labels
from uqcalc.errors import LabelError
from uqcalc.quantities import parse_quantity


@pytest.mark.parametrize(
    ("text", "target", "value"),
    [
        ("1 kcal/mol", "energy", units.kcal / units.mol),
        ("1kcal/mol", "energy", 0.0433641),
        ("2 kJ/mol", "energy", 2 * 0.0103643),
        ("1 mHa", "energy", 0.0272114),
        ("1 Hartree", "energy", 27.2114),
        ("1 Ry", "energy", 13.6057),
        ("  .5e2 meV ", "energy", 0.05),
        ("50 meV/angstrom", "forces", 0.05),
        ("0.05 eV/Å", "forces", 0.05),
        ("0.05 eV/\N{ANGSTROM SIGN}", "forces", 0.05),
        ("50meV / A", "forces", 0.05),
        ("50 meV per Ang", "atom_forces", 0.05),
        ("1 kcal/mol/Å", "forces", 0.0433641),
        ("1 kcal/(mol Å)", "atom_forces", 0.0433641),
        ("0.001 hartree/bohr", "forces", 0.0514221),
        ("10 kJ/mol/nm", "forces", 0.0103643),
        ("1 meV/atom", "energy_per_atom", 0.001),
        ("1 kJ/mol/atom", "energy_per_atom", 0.0103643),
        ("0.5 GPa", "stress", 0.5 * units.GPa),
        ("5 kbar", "stress", 0.5 * units.GPa),
        ("500MPa", "stress", 0.5 * units.GPa),
        ("3 meV/Å^3", "stress", 0.003),
        ("3 meV / Å³", "stress", 0.003),
        ("0.003 eV/A**3", "stress", 0.003),
        ("1 Ha/bohr^3", "stress", 183.6315),
        ("0.25", "forces", 0.25),
        (0.25, "energy_per_atom", 0.25),
        (1, "energy", 1.0),
    ],
)
def test_units_are_those_of_ase(text, target, value):
    assert parse_quantity(text, target) == pytest.approx(value, rel=1e-5)
    labels = Labels(target, boundary=text)
    assert isinstance(labels.boundary, float)
    assert labels.boundary == parse_quantity(text, target)


@pytest.mark.parametrize(
    ("text", "target", "wanted", "got"),
    [
        ("1 kcal/mol", "forces", "a force", "an energy"),
        ("1 kcal/mol", "energy_per_atom", "an energy per atom", "an energy"),
        ("1 meV/atom", "energy", "an energy", "an energy per atom"),
        ("50 meV/Å", "energy", "an energy", "a force"),
        ("1 meV/atom", "atom_forces", "a force", "an energy per atom"),
        ("0.5 GPa", "forces", "a force", "a stress"),
        ("50 meV/Å", "stress", "a stress", "a force"),
    ],
)
def test_another_kind_is_refused_with_both_names(text, target, wanted, got):
    message = f"for the target '{target}' must be {wanted}, .*'{text}', which is {got}$"
    with pytest.raises(LabelError, match=message):
        Labels(target, boundary=text)


@pytest.mark.parametrize(
    "text",
    ["kcal/mol", "1 kcal", "1 MeV", "1 eV/mol", "1 eV/atom/Å", "1 furlong", "", "1 /Å"],
)
def test_texts_without_an_error_and_unit_are_refused(text):
    with pytest.raises(LabelError, match="tolerance must be a number with a unit"):
        parse_quantity(text, "energy", "tolerance")


@pytest.mark.parametrize("value", ["0 eV", "-1 kcal/mol", float("inf"), float("nan")])
def test_it_must_be_positive_and_finite(value):
    with pytest.raises(LabelError, match="boundary must be positive and finite"):
        parse_quantity(value, "energy")
