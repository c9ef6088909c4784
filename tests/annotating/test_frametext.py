"""Entries that ASE writes but does not read back unchanged are not in the file."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read
from hypothesis import Phase, given, settings, strategies as st

from uqcalc.annotating.copies import left_out_of
from uqcalc.annotating.frames import append_frame
from uqcalc.annotating.frametext import frame_text


def ethanol():
    atoms = molecule("CH3CH2OH")
    forces = np.arange(27.0).reshape(9, 3)
    stress = np.arange(6.0)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.5, forces=forces, stress=stress)
    atoms.info["ok"] = 3
    atoms.arrays["before"] = np.arange(9.0)
    return atoms


def written(atoms):
    """Return what is left out, and the frame as ASE's reader gives it."""
    found = frame_text(atoms)
    back = read(io.StringIO(found.text, newline=None), format="extxyz")
    assert back.info["ok"] == 3
    np.testing.assert_allclose(back.get_forces(), atoms.calc.results["forces"])
    np.testing.assert_allclose(back.get_stress(), atoms.calc.results["stress"])
    np.testing.assert_array_equal(back.arrays["before"], np.arange(9.0))
    np.testing.assert_array_equal(back.arrays["after"], np.arange(9.0))
    assert left_out_of(back) == found.left_out
    return found.left_out, back


TEXTS = ["0012", "T", "a\nb", "\r", 'it\'s "q"', "", "x\\", "_JSON {", "é\x85\u2028"]


@pytest.mark.parametrize(
    "value",
    [
        *TEXTS, None, True, math.nan, -math.inf, 10**400, {"a": [1, "x y"]},
        ["a b", "c"],
        np.eye(3), np.zeros((2, 3, 3)), np.zeros(0), np.float32(0.1),
        [True, False],
    ],
)  # fmt: skip
def test_values_of_info_come_back_as_they_were(value):
    atoms = ethanol()
    atoms.info["it"] = value
    atoms.arrays["after"] = np.arange(9.0)
    left_out, back = written(atoms)
    assert left_out == ()
    if isinstance(value, (str, dict)) or value is None:
        assert back.info["it"] == value
    elif isinstance(value, float):
        np.testing.assert_equal(back.info["it"], value)
    elif not isinstance(value, list):
        assert np.size(back.info["it"]) == np.size(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", 1), ("Lattice", "x"), ("Properties", "x"), ("pbc", 1), ("a=b", 1), (0, 1),
        (("a", "b"), 1), ("it", object()), ("it", 1j), ("it", b"x"), ("virial", 3),
        ("it", [[1], [1, 2]]),
        ("stress", [1, 2]), ("energy", 3.0),
    ],
)  # fmt: skip
def test_entries_of_info_that_cannot_be_held_are_named(key, value):
    atoms = ethanol()
    atoms.info[key] = value
    atoms.arrays["after"] = np.arange(9.0)
    left_out, _ = written(atoms)
    assert left_out == (f"info {key!r}",)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("mtt::cs_iso", np.ones(9)), ("a b", np.ones(9)), ("q'", np.ones(9)),
        ("s", np.array(["x y"] * 9)), ("s", np.array([""] * 9)),
        ("z", np.zeros((9, 0))),
        ("t", np.zeros((9, 3, 3))), ("Z", np.zeros(9, int)), ("species", np.ones(9)),
        ("c", np.ones(9, complex)), ("big", np.full(9, 2**40)), ("charge", np.ones(9)),
        ("move_mask", np.ones(9, bool)), ("none", np.array([None] * 9)),
        ("before0", np.ones((9, 2), complex)), ("forces", np.ones((9, 3))),
    ],
)  # fmt: skip
def test_unsupported_columns_are_named_and_others_are_kept(name, array):
    atoms = ethanol()
    atoms.arrays[name] = array
    atoms.arrays["after"] = np.arange(9.0)
    left_out, _ = written(atoms)
    assert left_out == (f"array {name!r}",)


@pytest.mark.parametrize(
    "array",
    [
        np.array(["ok"] * 9), np.arange(9, dtype=np.uint8), np.ones((9, 2), bool),
        np.full(9, np.nan), np.full((9, 1), 1e300),
    ],
)  # fmt: skip
def test_other_columns_are_kept(array):
    atoms = ethanol()
    atoms.arrays["it"] = array
    atoms.arrays["after"] = np.arange(9.0)
    left_out, back = written(atoms)
    assert left_out == ()
    np.testing.assert_array_equal(back.arrays["it"], np.squeeze(array))


def test_any_geometry_survives(tmp_path):
    """Numbers without a symbol, NaN positions, no atoms, one frame for each."""
    path = tmp_path / "all.xyz"
    strange = Atoms([1, 200], positions=[[0, 0, np.nan], [np.inf, 0, 0]], pbc=True)
    assert append_frame(path, strange) == ("atomic numbers that have no symbol",)
    bound = molecule("H2O")
    bound.set_constraint([FixAtoms([0]), FixBondLength(0, 1)])
    assert append_frame(path, bound) == ("constraint FixBondLengths",)
    assert append_frame(path, molecule("CH4")) == ()
    frames = read(path, ":")
    assert [len(frame) for frame in frames] == [2, 3, 5]
    assert frames[0].numbers.tolist() == [1, 0]
    assert frames[1].constraints[0].index.tolist() == [0]


VALUES = st.none() | st.integers() | st.floats() | st.text() | st.lists(st.text())


@settings(max_examples=25, deadline=None, phases=[Phase.generate])
@given(st.dictionaries(st.text(max_size=9), VALUES, max_size=3), st.text(max_size=5))
def test_any_entries_leave_a_file_that_can_be_read(info, name):
    atoms = ethanol()
    atoms.info.update(info)
    atoms.info["ok"] = 3
    if name not in {"numbers", "positions", "before", "after"}:
        atoms.arrays[name] = np.arange(9)
    atoms.arrays["after"] = np.arange(9.0)
    left_out, back = written(atoms)
    for key in atoms.info:
        if f"info {key!r}" not in left_out and len(repr(key)) < 60:
            assert key in back.info or key in back.calc.results
