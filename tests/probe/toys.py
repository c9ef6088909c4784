"""A backbone with known features, and a dense copy of the network."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from torch.nn.functional import gelu, layer_norm, linear

from uqcalc.backbones.base import Backbone, Capture, Prediction


class Cohesion(Calculator):
    """E = sum over pairs of exp(-d), without images."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        apart = atoms.positions[:, None] - atoms.positions[None]
        distances = np.linalg.norm(apart, axis=-1) + 1e-12
        decay = np.exp(-distances) * (1 - np.eye(len(atoms)))
        forces = (decay / distances)[:, :, None] * apart
        self.results = {"energy": 0.5 * decay.sum(), "forces": forces.sum(axis=1)}


class ToyBackbone(Backbone):
    """Radial features of chosen width; ``charges`` adds made-up atomic charges."""

    name = "toy"

    def __init__(self, width=6, *, charges=False, elements=None, identity="toy:0"):
        calculator = Cohesion()
        super().__init__(
            calculator,
            calculator,
            feature_dim=width,
            fingerprint=identity,
            elements=elements,
        )
        if charges:
            self.provides |= {"charges"}

    @contextmanager
    def armed(self):
        captured = Capture([], [])
        yield captured
        atoms = self.calculator.atoms
        apart = atoms.get_all_distances()[:, :, None]
        centres = np.linspace(0.8, 3.0, self.feature_dim)
        rows = (np.exp(-((apart - centres) ** 2)) * atoms.numbers[:, None]).sum(axis=1)
        captured.features.append(torch.from_numpy(rows / 5))
        if "charges" in self.provides:
            middle = atoms.numbers.mean()
            captured.charges.append(torch.from_numpy((atoms.numbers - middle) / 10))


def random_prediction(atoms, width, *, seed=0, charges=False):
    rng = np.random.default_rng(seed)
    return Prediction(
        numbers=rng.choice([1, 6, 8], atoms),
        positions=rng.normal(size=(atoms, 3)),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
        results={},
        energy=float(rng.normal(-5 * atoms)),
        forces=rng.normal(size=(atoms, 3)),
        features=torch.from_numpy(rng.normal(size=(atoms, width))).float(),
        charges=torch.from_numpy(rng.normal(size=atoms)).float() if charges else None,
    )


def dense_network(state, features, scalars, charges=None, heads=32):
    """Return (logits, importance) of one structure, with attention written out.

    It follows from the layer table of arXiv:2605.00640 and a state dict, without
    uqcalc.
    """

    def lin(name, x):
        return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return layer_norm(
            x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"]
        )

    z = gelu(norm("atom_encoder.1", lin("atom_encoder.0", features)))
    z = gelu(norm("atom_encoder.5", lin("atom_encoder.4", z)))
    z = norm("atom_encoder.9", lin("atom_encoder.8", z))
    if charges is not None:
        z = z + gelu(norm("charge_proj.1", lin("charge_proj.0", charges[:, None])))
    width = z.shape[1]
    each = width // heads
    query, key, value = lin("mol_attention.qkv", z).split(width, dim=1)
    mixed = torch.empty_like(z)
    received = torch.zeros(len(z), dtype=z.dtype)
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        weights = (query[:, part] @ key[:, part].T / each**0.5).softmax(dim=1)
        mixed[:, part] = weights @ value[:, part]
        received += weights.sum(dim=0)
    z = norm("mol_attention_norm", lin("mol_attention.out_proj", mixed) + z)
    pooled = torch.cat([z.mean(dim=0), z.max(dim=0).values, scalars])
    x = gelu(norm("classifier.0", lin("proj", pooled)))
    x = gelu(norm("classifier.4", lin("classifier.3", x)))
    x = gelu(norm("classifier.8", lin("classifier.7", x)))
    return lin("classifier.11", x), received / received.sum()
