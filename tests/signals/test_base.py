"""Readings come to the host in one transfer."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from builders import mace_calculator, rattled, tiny_probe

from uqcalc import MaxForce, ReliableCalculator, tap
from uqcalc.signals.base import TensorReading, to_host


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
