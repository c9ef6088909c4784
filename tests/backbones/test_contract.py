"""Every backbone is held to the one contract; a row of the table is a backbone."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.mixing import SumCalculator
from backbones.toys import (
    ModuleCalculator,
    Springs,
    around,
    mace_on_shared_models,
    scripted_model,
)
from builders import mace_calculator
from closeness import FLOAT64, NETWORK, close

from uqcalc import tap
from uqcalc.testing import check_backbone, contract_frames


ALL = contract_frames()
MOLECULES = {name: ALL[name] for name in ("molecule", "atom")}


def chgnet():
    from chgnet.model.dynamics import CHGNetCalculator

    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
        return CHGNetCalculator(use_device="cpu")


def crystals():
    frames = {"silicon": bulk("Si"), "salt": ALL["crystal"], "copper": bulk("Cu")}
    frames["silicon"].rattle(0.05, seed=1)
    return frames


def in_a_sum():
    return SumCalculator([mace_on_shared_models(), Springs()])


def float32_committee():
    return mace_on_shared_models(0, 1, dtype="float32")


BACKBONES = {
    "mace float64": (mace_calculator, ALL),
    "mace float32": (lambda: mace_on_shared_models(dtype="float32"), ALL),
    "mace scalars only": (lambda: mace_calculator(hidden="4x0e"), MOLECULES),
    "mace committee": (lambda: mace_on_shared_models(0, 1), ALL),
    "mace in a sum": (in_a_sum, ALL),
    "chgnet": (chgnet, crystals()),
    "module": (lambda: tap(ModuleCalculator(), module="model.readout"), MOLECULES),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_contract(name):
    make, frames = BACKBONES[name]
    check_backbone(make, frames)


def test_contract_torchscript():
    """Its last bits change while it optimises itself, with us and without."""
    check_backbone(lambda: around([scripted_model()]), ALL, exact=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: around([scripted_model()]),
        float32_committee,
        in_a_sum,
        chgnet,
    ],
    ids=["mace torchscript", "mace committee float32", "mace in a sum", "chgnet"],
)
def test_trajectory_is_bitwise_the_bare_calculators(make):
    """Steps small enough for neighbour lists and caches to be reused."""
    ours, bare = tap(make()), make()
    wanted = ["energy", "forces", "stress"]
    atoms = ALL["crystal"].copy()
    for step in range(8):
        atoms.rattle(0.01, seed=step)
        results = ours(atoms, wanted).results
        bare.calculate(atoms, wanted, ["positions"])
        if step < 4:
            continue  # TorchScript optimises itself in its first runs
        for key in wanted:
            assert np.array_equal(results[key], bare.results[key]), (step, key)


@pytest.mark.slow
def test_contract_cuequivariance():
    pytest.importorskip("cuequivariance_torch")
    check_backbone(lambda: mace_calculator(0, enable_cueq=True), ALL)


def test_features_are_what_mace_calls_its_last_layer():
    """Held against `get_descriptors`, which runs a pass of its own."""
    calculator = mace_on_shared_models()
    atoms = ALL["molecule"]
    ours = tap(calculator)(atoms, ["energy", "forces"]).features
    theirs = calculator.get_descriptors(atoms)[:, -8:]
    close(ours, theirs, FLOAT64)


def test_chgnet_features_rebuild_its_energy():
    """The readout, applied by hand to the tapped features, gives the energy."""
    calculator = chgnet()
    atoms = crystals()["salt"]
    got = tap(calculator)(atoms, ["energy", "forces"])
    with torch.no_grad():
        per_atom = calculator.model.mlp(got.features).mean()
    composition = torch.zeros(1, 94)
    composition[0, atoms.numbers - 1] += 1 / len(atoms)
    reference = calculator.model.composition_model.fc(composition)
    rebuilt = len(atoms) * float(per_atom + reference)
    close(rebuilt, got.energy, NETWORK, of=len(atoms))  # 1 eV an atom
