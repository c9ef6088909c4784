"""Small TorchSim models and systems; imported only if torch_sim is installed."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from builders import tiny_mace

from uqcalc.records import Reading


with warnings.catch_warnings(), contextlib.redirect_stdout(None):
    warnings.simplefilter("ignore")  # of mace, and of missing potentials
    import torch_sim as ts
    from torch_sim.models.mace import MaceModel


CPU = torch.device("cpu")


def bundled(dtype=torch.float64):
    """TorchSim's model around the potential that comes with the package."""
    from uqcalc.models.bundled import load_model

    return MaceModel(load_model().to(dtype), device=CPU, dtype=dtype)


def tiny(*, stress=False):
    """A random MACE for H, C, N, O, Na and Cl."""
    return MaceModel(
        tiny_mace(), device=CPU, dtype=torch.float64, compute_stress=stress
    )


def molecules(*names, amount=0.03):
    frames = [molecule(name) for name in names]
    for k, frame in enumerate(frames):
        frame.rattle(amount, seed=k)
    return frames


class Reach:
    """A signal whose risk is the largest distance of two atoms, in Å."""

    name = "reach"
    requires = frozenset({"forces"})

    def __call__(self, prediction):
        apart = prediction.positions[:, None] - prediction.positions[None]
        found = float(np.linalg.norm(apart, axis=-1).max())
        return Reading("reach", found, "Å", results={"reach": found})


def flying(distance, speed):
    """Two hydrogen atoms that move apart; ``speed`` in Å for each unit of time."""
    atoms = Atoms("H2", [[0, 0, 0], [distance, 0, 0]])
    momenta = [[-speed, 0, 0], [speed, 0, 0]] * np.full((2, 3), atoms.get_masses()[0])
    atoms.set_momenta(momenta)
    return atoms


class Spoiled(torch.nn.Module):
    """Gives NaN forces on the first atom of one system."""

    def __init__(self, model, system):
        super().__init__()
        self.model, self.system = model, system

    def forward(self, *args, **kwargs):
        output = self.model(*args, **kwargs)
        batch = args[0]["batch"]
        forces = output["forces"].clone()
        forces[(batch == self.system).nonzero()[:1]] = torch.nan
        return {**output, "forces": forces}

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


__all__ = [
    "CPU", "MaceModel", "Reach", "Spoiled", "bundled", "flying", "molecules", "tiny",
    "ts",
]  # fmt: skip
