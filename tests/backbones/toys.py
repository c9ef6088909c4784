"""Calculators with known results, and cheap ones around a shared model."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from functools import cache

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from builders import tiny_mace

from uqcalc import ForceSpread, Policy, ReliableCalculator, Threshold, tap


@cache
def _model(seed, dtype):
    return tiny_mace(seed=seed, dtype=getattr(torch, dtype))


def mace_on_shared_models(*seeds, dtype="float64", **options):
    """A fresh MACECalculator on models that other tests use too: none may change."""
    models = [_model(seed, dtype) for seed in seeds or (0,)]
    return around(models, dtype, **options)


def around(models, dtype="float64", **options):
    from mace.calculators import MACECalculator

    return MACECalculator(models=models, default_dtype=dtype, **options)


@cache
def scripted_model(seed=0):
    from e3nn.util import jit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: TorchScript is deprecated
        return jit.compile(copy.deepcopy(_model(seed, "float64")))


def chgnet():
    from chgnet.model.dynamics import CHGNetCalculator

    with contextlib.redirect_stdout(io.StringIO()):  # it prints a message
        return CHGNetCalculator(use_device="cpu")


class Springs(Calculator):
    """Every atom tied to the centroid: E = k/2 sum_i |r_i - c|^2, without images."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, stiffness=0.3):
        super().__init__()
        self.stiffness = stiffness

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        arms = atoms.positions - atoms.positions.mean(axis=0)
        energy = 0.5 * self.stiffness * float(np.sum(arms**2))
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": -self.stiffness * arms,
        }
        if atoms.cell.rank == 3:
            virial = self.stiffness * arms.T @ arms / atoms.cell.volume
            self.results["stress"] = full_3x3_to_voigt_6_stress(virial)


class PairModel(torch.nn.Module):
    """Gaussians of distances, summed over neighbours, into a small MLP per atom."""

    def __init__(self, width=5, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.readout = torch.nn.Sequential(
                torch.nn.Linear(4, width), torch.nn.Tanh()
            ).double()
            self.last = torch.nn.Linear(width, 1).double()

    def forward(self, numbers, positions):
        apart = positions[:, None] - positions[None]
        eye = torch.eye(len(positions), dtype=positions.dtype)
        distances = ((apart**2).sum(-1) + eye).sqrt()
        centres = torch.linspace(0.5, 2.5, 4, dtype=positions.dtype)
        pairs = torch.exp(-((distances[..., None] - centres) ** 2))
        seen = (pairs * (numbers / 8.0)[None, :, None] * (1 - eye)[..., None]).sum(1)
        return self.last(self.readout(seen)).sum()


class ModuleCalculator(Calculator):
    """A calculator without a backbone class; for non-periodic structures."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, seed=0):
        super().__init__()
        self.model = PairModel(seed=seed)

    def forward(self, atoms: Atoms, positions: torch.Tensor) -> torch.Tensor:
        return self.model(torch.as_tensor(atoms.numbers), positions)

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        positions = torch.tensor(atoms.positions, requires_grad=True)
        energy = self.forward(atoms, positions)
        (gradient,) = torch.autograd.grad(energy, positions)
        self.results = {"energy": energy.item(), "forces": -gradient.numpy()}


def tapped_module(seed=0, calculator=ModuleCalculator):
    return tap(calculator(seed), module="model.readout")


def reads_spread(backbone):
    policy = Policy([Threshold("force_spread", suspect=50.0, unreliable=90.0)])
    return ReliableCalculator(backbone, signals=[ForceSpread()], policy=policy)
