"""A small MatterSim (M3GNet) with random weights."""

from __future__ import annotations

import torch


UNITS = 12


def potential(seed=0, **size):
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet
    from mattersim.forcefield.potential import Potential

    small = {"num_blocks": 2, "units": UNITS, "device": "cpu"} | size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = M3Gnet(**small).eval()
    return Potential(model, device="cpu")


def mattersim(seed=0, **options):
    from mattersim.forcefield.potential import MatterSimCalculator

    return MatterSimCalculator(potential(seed), device="cpu", **options)
