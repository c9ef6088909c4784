"""Orb in TorchSim: features and both forces from the tap of the ASE adapter."""

from __future__ import annotations

import pytest
import torch
from ase.build import bulk
from builders import tiny_probe
from closeness import close

from uqcalc import ForceDelta, Policy, ReliableCalculator, Threshold, tap


pytest.importorskip("torch_sim")
pytest.importorskip("orb_models.forcefield.inference.orb_torchsim")

import torch_sim as ts
from backbones.orbs import both_heads, orb_calculator, orb_made, orb_model
from torchsim.batches import CPU

from uqcalc.torchsim import ReliableModel


def crystals():
    frames = [bulk("Cu", cubic=True) * (1, 1, n) for n in (1, 2)]
    for k, frame in enumerate(frames):
        frame.rattle(0.1, seed=k)
    return frames


def wrapped(regressor, **options):
    from torch_sim.models.orb import OrbModel

    model, adapter = orb_made(regressor)
    inner = OrbModel(model, adapter, device="cpu", dtype=torch.float32)
    return ReliableModel(inner, **options)


@pytest.mark.parametrize("kind", ["direct", "conservative with direct heads"])
def test_features_and_force_delta_are_those_of_the_calculator(kind):
    make = both_heads if kind != "direct" else orb_model
    regressor = make(dtype=torch.float32)
    calc = orb_calculator(regressor)
    probe = tiny_probe(tap(calc), elements=[29])
    policy = Policy([Threshold("probe", 0.2, 0.5), Threshold("force_delta", 0.1, 1.0)])
    ours = wrapped(regressor, probe=probe, signals=[ForceDelta()], policy=policy)
    theirs = ReliableCalculator(calc, probe, [ForceDelta()], policy)
    frames = crystals()
    output = ours(ts.initialize_state(frames, CPU, torch.float32))
    for k, frame in enumerate(frames):
        found = theirs.assess(frame)
        for key in ("probe_reliability", "force_delta"):
            close(output[key][k], found.results()[key], 1e-4)
        own = output["force_deltas"].split([len(f) for f in frames])[k]
        close(own, found.results()["force_deltas"], 1e-3)
        assert int(output["reliability_level"][k]) == found.level
    assert not hasattr(regressor.__dict__, "predict")
