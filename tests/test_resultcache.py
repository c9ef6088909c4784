"""Changes that make a cached answer invalid, and changes that do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled
from ase.md.verlet import VelocityVerlet
from ase.mep import DimerControl, MinModeAtoms, MinModeTranslate
from hypothesis import given, settings, strategies as st
from toys import POLICY, OfGeometry, ToyBackbone, copper, watched

from uqcalc import Monitor, ReliableCalculator
from uqcalc.backbones.prediction import fixed_atoms
from uqcalc.resultcache import frozen


def cyclic():
    inner = [1.0]
    inner.append(inner)
    return inner


class Thing:
    def __init__(self):
        self.value = [1, 2]


ODD = {
    "NaN": float("nan"),
    "array with NaN": np.array([1.0, np.nan]),
    "ragged": [np.zeros(2), np.zeros(3)],
    "ragged list": [[1, 2], [3]],
    "array of objects": np.array([np.zeros(2), None, "x"], dtype=object),
    "dictionary": {"a": {"b": float("nan")}, 1: [2]},
    "set": {1, "a"},
    "tensor": torch.tensor([1.0, float("nan")]),
    "scalar tensor": torch.tensor(3),
    "cyclic": cyclic(),
    "object": Thing(),
    "numpy scalar": np.float64("nan"),
    "complex": complex(float("nan"), 1),
    "text array": np.array(["a", ""]),
    "structured": np.zeros(2, dtype=[("a", int), ("b", float)]),
    "type": Thing,
}


def test_any_content_of_info_costs_one_pass_a_step():
    atoms = watched()
    atoms.info.update(ODD)
    dynamics = VelocityVerlet(atoms, 1.0)
    Monitor(dynamics)
    dynamics.run(5)
    assert atoms.calc.backbone.passes == 6


@pytest.mark.parametrize("name", ["initial_charges", "initial_magmoms"])
def test_nan_in_arrays_that_ase_compares_costs_no_pass(name):
    atoms = watched()
    atoms.set_array(name, np.array([np.nan, 0, 0, 0]))
    for _ in range(3):
        atoms.get_forces()
    assert atoms.calc.backbone.passes == 1
    atoms.arrays[name][1] = 1.0
    atoms.get_forces()
    assert atoms.calc.backbone.passes == 2


CHANGES = {
    "array with NaN": lambda v: v.__setitem__(0, 2.0),
    "ragged": lambda v: v[1].__setitem__(2, 1.0),
    "ragged list": lambda v: v[0].append(1),
    "array of objects": lambda v: v[0].__setitem__(0, 1.0),
    "dictionary": lambda v: v["a"].update(b=1.0),
    "set": lambda v: v.add(2),
    "tensor": lambda v: v.fill_(0),
    "object": lambda v: v.value.append(3),
    "structured": lambda v: v["a"].__setitem__(0, 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_deep_in_info_is_seen(name):
    import copy

    atoms = watched()
    atoms.info["odd"] = copy.deepcopy(ODD[name])
    atoms.get_forces()
    CHANGES[name](atoms.info["odd"])
    atoms.get_forces()
    assert atoms.calc.backbone.passes == 2


values = st.recursive(
    st.none() | st.integers() | st.floats() | st.text() | st.booleans(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_same_value_gives_the_same_key(value):
    assert frozen(value) == frozen(value)
    assert hash(frozen(value)) == hash(frozen(value))
    assert frozen([value]) != frozen([value, 0])


# ------------------------------------------------------------------ constraints


FULL = {
    "FixAtoms": [FixAtoms([1, 3])],
    "FixCartesian": [FixCartesian([1, 3])],
    "FixScaled": [FixScaled([1, 3])],
    "axes in parts": [
        FixCartesian([1, 3], (True, False, False)),
        FixCartesian([1, 3], (False, True, True)),
    ],
    "a line across a plane": [
        FixedLine([1, 3], (0, 0, 1)),
        FixedPlane([1, 3], (0, 0, 1)),
    ],
    "one each": [FixAtoms([1]), FixScaled([3])],
}
FREE = {
    "two axes": [FixCartesian([1], (True, True, False))],
    "two axes of the cell": [FixScaled([1], (True, False, True))],
    "line": [FixedLine([1], (1, 1, 0))],
    "none": [],
}


@pytest.mark.parametrize("name", FULL)
def test_atoms_that_cannot_move_are_fixed(name):
    """An independent route: atoms that move in ASE when all atoms are shifted."""
    atoms = copper()
    atoms.cell[1, 0], atoms.cell[2, 1] = 0.7, 0.4
    atoms.set_constraint(FULL[name])
    before = atoms.positions.copy()
    atoms.set_positions(before + np.array([0.1, 0.2, -0.3]))
    moved = np.abs(atoms.positions - before).max(axis=1) > 1e-9
    np.testing.assert_array_equal(fixed_atoms(atoms), ~moved)
    np.testing.assert_array_equal(fixed_atoms(atoms), [False, True, False, True])


@pytest.mark.parametrize("name", FREE)
def test_atoms_that_can_move_are_not(name):
    atoms = copper()
    atoms.set_constraint(FREE[name])
    assert fixed_atoms(atoms) is None


class OfFree:
    """A risk over the free atoms, as ForceDelta's."""

    name = "scripted"
    requires: frozenset[str] = frozenset()

    def __call__(self, prediction):
        from uqcalc.signals.base import TensorReading

        held = 0 if prediction.fixed is None else int(prediction.fixed.sum())
        return TensorReading(self.name, float(held))


@pytest.mark.parametrize("name", FULL)
def test_setting_and_removing_constraints_changes_the_verdict(name):
    atoms = watched(signal=OfFree())
    risks = []
    for constraints in (None, FULL[name], None):
        atoms.set_constraint(constraints)
        risks.append(atoms.calc.assess(atoms).readings[0].risk)
    assert risks == [0.0, 2.0, 0.0]
    assert atoms.calc.backbone.passes == 2  # the first answer was still cached


def test_another_policy_or_signal_gives_a_new_verdict():
    atoms = watched()
    first = atoms.calc.assess(atoms)
    atoms.calc.signals = [OfGeometry(lambda _: 1.0)]
    assert atoms.calc.assess(atoms) is not first
    assert atoms.calc.assess(atoms).level > first.level


# -------------------------------------------------------------------- calculate


def test_calculate_with_the_defaults_of_ase():
    atoms, bare = watched(), EMT()
    atoms.calc.calculate(atoms)
    bare.calculate(atoms)
    assert atoms.calc.results["energy"] == bare.results["energy"]
    passes = atoms.calc.backbone.passes
    assert atoms.get_potential_energy() == bare.results["energy"]  # of this geometry
    assert atoms.calc.assess(atoms) is atoms.calc.assessment
    assert atoms.calc.backbone.passes == passes
    atoms.calc.calculate()  # again, of the atoms it has
    assert atoms.calc.backbone.passes == passes + 1
    with pytest.raises(ValueError, match="atoms must be given for the first"):
        watched().calc.calculate()


class Counting(EMT):
    """Notes each geometry it evaluates."""

    def __init__(self):
        super().__init__()
        self.geometries = []

    def calculate(self, atoms=None, *args, **kwargs):
        super().calculate(atoms, *args, **kwargs)
        self.geometries.append(atoms.positions.tobytes() + atoms.cell.array.tobytes())


def test_a_dimer_costs_one_pass_a_geometry():
    base = Counting()
    atoms = copper()
    signal = OfGeometry(lambda _: 0.0)
    atoms.calc = ReliableCalculator(ToyBackbone(base), None, [signal], POLICY)
    settings_of = DimerControl(
        initial_eigenmode_method="displacement",
        displacement_method="vector",
        logfile=None,
        mask=[True, False, False, False],
    )
    with settings_of as control:
        dimer = MinModeAtoms(atoms, control)
        away = np.zeros((4, 3))
        away[0, 0] = 0.1
        dimer.displace(displacement_vector=away)
        with MinModeTranslate(dimer, logfile=None) as dynamics:
            monitor = Monitor(dynamics)
            dynamics.run(fmax=1e-3, steps=5)
    assert monitor.history.seen == 6
    assert len(base.geometries) == len(set(base.geometries))


def test_cached_answer_is_returned_again():
    atoms = watched(signal=OfGeometry(lambda positions: float(positions[0, 0])))
    there = atoms.positions.copy()
    first, forces = atoms.calc.assess(atoms), atoms.get_forces()
    atoms.rattle(0.1, seed=5)
    atoms.get_forces()
    atoms.positions[:] = there
    np.testing.assert_array_equal(atoms.get_forces(), forces)
    assert atoms.calc.assess(atoms) is first
    assert atoms.calc.backbone.passes == 2
    atoms.calc.reset()
    atoms.get_forces()
    assert atoms.calc.backbone.passes == 3
