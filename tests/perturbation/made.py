"""Perturbations with random weights, and tiny potentials that take them."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from ase.build import bulk
from backbones.orbs import orb_calculator, orb_model
from backbones.toys import ModuleCalculator, chgnet, mace_on_shared_models
from builders import rattled

import uqcalc
from uqcalc.perturbation.card import PerturbationCard
from uqcalc.perturbation.layers import find_layers
from uqcalc.perturbation.noise import Noise
from uqcalc.perturbation.perturbation import Perturbation


DIMENSION = 4


def made(backbone, size=0.05, noise="structure", layers=(), **entries):
    """Return a perturbation with random weights; with size 0 it changes nothing."""
    found = find_layers(backbone, layers)
    network = Noise(DIMENSION, [layer.width for layer in found])
    draws = torch.Generator().manual_seed(1)
    for weights in network.weights:
        weights.data = size * torch.randn(weights.shape, generator=draws)
    card = PerturbationCard(
        fingerprint=backbone.fingerprint,
        elements=[1, 6, 8, 11, 14, 17],
        layers=[layer.name for layer in found],
        widths=[layer.width for layer in found],
        dimension=DIMENSION,
        noise=noise,
        **entries,
    )
    return Perturbation(card, network)


def small_orb(kind):
    return orb_calculator(orb_model(kind, torch.float32))


def crystal(seed=0):
    atoms = bulk("Si")
    atoms.rattle(0.05, seed=seed)
    return atoms


def module_backbone():
    calculator = ModuleCalculator()
    return uqcalc.tap(calculator, module="model.readout", energy=calculator.forward)


# Kind -> package, backbone, structure, layers that take noise (none: the default).
KINDS = {
    "mace": ("mace", lambda: uqcalc.tap(mace_on_shared_models()), rattled, ()),
    "orb": ("orb_models", lambda: uqcalc.tap(small_orb("v3-direct")), rattled, ()),
    "orb-conservative": (
        "orb_models",
        lambda: uqcalc.tap(small_orb("v3-conservative")),
        rattled,
        (),
    ),
    "chgnet": ("chgnet", lambda: uqcalc.tap(chgnet()), crystal, ()),
    "module": ("torch", module_backbone, rattled, ("readout.0",)),
}


def opened(kind, size=0.05, **entries):
    """Return backbone, perturbation and structure of one row of the table."""
    package, make, frame, layers = KINDS[kind]
    pytest.importorskip(package)
    if package == "mace":
        import_module("builders").import_mace()
    backbone = make()
    return backbone, made(backbone, size, layers=layers, **entries), frame()
