"""Settings of the whole process do not change."""

from __future__ import annotations

import warnings

import pytest
import torch
from backbones.toys import ModuleCalculator, mace_on_shared_models
from builders import rattled, tiny_probe

from uqcalc import Probe, open_model, tap
from uqcalc.errors import BackboneError


def process():
    return (
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        list(warnings.filters),
    )


def test_loading_a_probe_does_not_change_random_numbers(tmp_path):
    backbone = tap(mace_on_shared_models())
    probe = tiny_probe(backbone)
    path = probe.save(tmp_path / "my.probe")
    before = process()
    loaded = Probe.load(path)
    assert process() == before
    prediction = backbone(rattled(), ["energy", "forces"])
    again, then = (p.reliability([prediction]) for p in (loaded, probe))
    assert torch.equal(again, then)


@pytest.mark.slow
def test_opening_the_bundled_model_changes_no_global_state():
    open_model("default", device="cpu")  # imported packages may add filters
    before = process()
    open_model("default", device="cpu")
    assert process() == before


def test_select_returns_the_features_of_an_output():
    whole = tap(ModuleCalculator(), module="model.readout")
    halved = tap(
        ModuleCalculator(), module="model.readout", select=lambda rows: rows[:, :2]
    )
    atoms = rattled()
    one, other = (b(atoms, ["energy", "forces"]).features for b in (whole, halved))
    assert torch.equal(other, one[:, :2])
    with pytest.raises(
        BackboneError, match="select= must be given together with module="
    ):
        tap(ModuleCalculator(), select=lambda rows: rows)
