from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from builders import mace_calculator, rattled, tiny_probe
from closeness import FLOAT64, close
from toys import ToyBackbone, copper

from uqcalc import ForceSpread, MaxForce, ReliableCalculator, tap
from uqcalc.signals.base import TensorReading, to_host
from uqcalc.signals.probe import ProbeSignal


@pytest.fixture(scope="module")
def committee():
    return tap(mace_calculator(0, 1, 2))


@pytest.fixture
def transfers(monkeypatch):
    """Count device-to-host copies: every way of asking for one is a count."""
    count = []
    for name in ("cpu", "item", "tolist", "__float__"):
        plain = getattr(torch.Tensor, name)

        def counted(self, *args, _plain=plain, _name=name, **kwargs):
            count.append(_name)
            return _plain(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return count


def test_all_readings_come_to_the_host_in_one_transfer(transfers):
    per_atom = torch.arange(5, dtype=torch.float32) / 7
    vectors = torch.arange(15, dtype=torch.float64).reshape(5, 3) / 7
    readings = to_host(
        [
            TensorReading("a", torch.tensor(0.25), results={"x": per_atom}),
            TensorReading("host", 3.0, "eV", {"y": 1.0, "z": np.ones(5)}, "z", "why"),
            TensorReading("b", torch.tensor(torch.nan), results={"v": vectors}),
        ]
    )
    assert transfers == ["cpu"]
    a, host, b = readings
    assert (a.risk, host.risk, host.unit, host.note) == (0.25, 3.0, "eV", "why")
    assert np.isnan(b.risk)
    np.testing.assert_array_equal(a.results["x"], per_atom.double().numpy())
    np.testing.assert_array_equal(b.results["v"], vectors.numpy())
    np.testing.assert_array_equal(host.per_atom, np.ones(5))
    assert a.per_atom is None


def test_every_entry_of_a_reading_arrives_on_the_host():
    given = TensorReading(
        "a",
        torch.tensor(0.5),
        "eV",
        {"x": torch.tensor(2.0)},
        "x",
        "note",
        {"x": 1.0},
        {"x": 3.0},
        ("doubt",),
        ("fault",),
        ("absurd",),
        always=True,
        meaning="P",
    )
    [found] = to_host([given])
    entries = {e.name: getattr(found, e.name) for e in fields(TensorReading)}
    expected = {e.name: getattr(given, e.name) for e in fields(TensorReading)}
    assert entries == expected | {"risk": 0.5, "results": {"x": 2.0}}
    assert type(found.risk) is type(found.results["x"]) is float


def test_nothing_on_the_device_means_no_transfer(transfers):
    assert to_host([]) == ()
    assert to_host([TensorReading("a", 1.0)])[0].risk == 1.0
    assert transfers == []


def test_a_whole_step_adds_one_transfer_to_the_bare_calculator(transfers):
    atoms = rattled()
    base = mace_calculator()
    backbone = tap(base)
    calc = ReliableCalculator(backbone, tiny_probe(backbone), signals=[MaxForce()])
    transfers.clear()
    base.get_property("energy", atoms)
    bare = len(transfers)
    atoms.rattle(0.01, seed=1)
    calc.assess(atoms)
    assert len(transfers) - bare == bare + 1


def test_max_force_is_the_longest_force():
    atoms = copper()
    prediction = ToyBackbone(EMT())(atoms, ["energy", "forces"])
    atoms.calc = EMT()
    forces = atoms.get_forces()
    [reading] = to_host([MaxForce()(prediction)])
    longest = max(sum(x * x for x in row) ** 0.5 for row in forces.tolist())
    close(reading.risk, longest, FLOAT64)
    assert (reading.unit, reading.results["max_force"]) == ("eV/Å", reading.risk)


def test_force_spread_is_its_closed_form(committee):
    atoms = rattled()
    prediction = committee(atoms, ["energy", "forces"])
    singles = [mace_calculator(seed) for seed in (0, 1, 2)]
    forces = [single.get_property("forces", atoms) for single in singles]
    mean = sum(forces) / 3
    squares = sum(((f - mean) ** 2).sum(axis=1) for f in forces) / (3 * 3)
    [reading] = to_host([ForceSpread()(prediction)])
    close(reading.per_atom, np.sqrt(squares), FLOAT64, of=forces)
    close(reading.risk, np.sqrt(squares.mean()), FLOAT64, of=forces)
    assert reading.results["force_spread"] == reading.risk
    assert reading.unit == "eV/Å"


def test_equal_members_do_not_spread(committee):
    prediction = committee(rattled(), ["energy", "forces"])
    equal = np.stack([prediction.forces] * 4)
    [reading] = to_host([ForceSpread()(replace(prediction, committee_forces=equal))])
    assert reading.risk == 0
    assert not reading.per_atom.any()


def test_probe_signal_is_the_probe():
    atoms = rattled()
    backbone = tap(mace_calculator())
    probe = tiny_probe(backbone)
    prediction = backbone(atoms, ["energy", "forces"])
    reliability, importance = probe([prediction], importance=True)
    [full] = to_host([ProbeSignal(probe)(prediction)])
    [thin] = to_host([ProbeSignal(probe, importance=False)(prediction)])
    close(full.risk, 1 - float(reliability[0]), of=1.0)
    close(thin.risk, full.risk, of=1.0)  # another kernel
    close(full.results["probe_reliability"], 1 - full.risk, of=1.0)
    close(full.per_atom, importance)
    close(full.per_atom.sum(), 1.0)
    assert thin.per_atom is None


def test_elements_the_probe_has_not_seen_are_unreliable_by_name():
    backbone = tap(mace_calculator())
    probe = tiny_probe(backbone, elements=[1, 6], bias=50.0)
    atoms = rattled()
    calc = ReliableCalculator(backbone, probe)
    assessment = calc.assess(atoms)
    assert np.isnan(assessment.reading("probe").risk)
    assert assessment.level == 2
    assert "O" in assessment.verdict.reasons[0]
