"""A small MatterSim (M3GNet) with random weights."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
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


@contextmanager
def without_network():
    """A copy of a calculator reads the released weights again, or fetches them."""

    def refused(*_, **__):
        raise ConnectionError("no network in tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mattersim.forcefield.potential.download_checkpoint", refused)
        yield


def mattersim(seed=0, **options):
    from mattersim.forcefield.potential import MatterSimCalculator

    return MatterSimCalculator(potential(seed), device="cpu", **options)
