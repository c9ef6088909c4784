"""SevenNet-0, whose weights come with the package; in an environment of its own.

sevenn needs another e3nn than mace-torch, so nothing here may need MACE: run it with
``make test-sevennet``. Elsewhere it is skipped.
"""

from __future__ import annotations

import copy
import sys
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from closeness import NETWORK, close

from uqcalc import MaxForce, Policy, ReliableCalculator, Threshold, tap
from uqcalc.errors import BackboneError
from uqcalc.testing import check_backbone, contract_frames


calculators = pytest.importorskip("sevenn.calculator")

FRAMES = contract_frames()
WANTED = ["energy", "forces", "stress"]


def loaded(model="7net-0", modal=None):
    with warnings.catch_warnings():
        # it may be slow without an accelerator for tensor products
        warnings.filterwarnings("ignore", message="No tensor product accelerator")
        return calculators.SevenNetCalculator(model, device="cpu", modal=modal)


@cache
def shared_model(name):
    """Load it once, which takes seconds: no test may change it."""
    return loaded(name, "PBE" if name == "7net-mf-0" else None).model


def sevennet(name="7net-0", modal=None):
    return loaded(shared_model(name), modal)


@pytest.fixture(scope="module")
def backbone():
    return tap(sevennet())


def crystal(element="Si", *, seed=0):
    atoms = bulk(element)
    atoms.rattle(0.05, seed=seed)
    return atoms


@pytest.mark.parametrize("name", FRAMES)
def test_contract(name):
    check_backbone(sevennet, {name: FRAMES[name]})


def test_contract_of_a_potential_of_several_methods():
    check_backbone(lambda: sevennet("7net-mf-0", modal="PBE"), {"Si": crystal()})


def test_contract_in_a_sum():
    """Another part in it: no native batch, and the model's own numbers apart."""
    check_backbone(
        lambda: SumCalculator([sevennet(), LennardJones(sigma=1.5, rc=4.0)]),
        {"salt": FRAMES["crystal"]},
    )


def test_what_it_provides(backbone):
    assert backbone.provides == {
        "features",
        "energy",
        "forces",
        "conservative_forces",
        "stress",
        "vectors",
    }
    got = backbone(FRAMES["molecule"], WANTED)
    assert got.features.shape == (6, 64)
    assert got.vectors.shape == (6, 64, 3)
    assert got.charges is None
    assert "mace" not in sys.modules


def test_features_rebuild_the_energy(backbone):
    """The readout, applied by hand to the tapped features, gives the energies."""
    model = backbone.model_calculator.model
    atoms = crystal()
    got = backbone(atoms, WANTED)
    with torch.no_grad():
        scaled = model.reduce_hidden_to_energy.linear(got.features).flatten()
        kinds = [backbone.model_calculator.type_map[z] for z in atoms.numbers]
        rescale = model.rescale_atomic_energy
        energies = scaled * rescale.scale[kinds] + rescale.shift[kinds]
    close(energies, got.results["energies"], NETWORK)
    close(energies.sum(), got.energy, NETWORK, of=energies)


def test_vectors_vanish_where_the_surroundings_have_a_centre(backbone):
    """In rock salt each atom sits at a centre of inversion."""
    perfect = bulk("NaCl", "rocksalt", a=5.64)
    calm = backbone(perfect, WANTED).vectors.abs().max()
    stirred = backbone(FRAMES["crystal"], WANTED).vectors.abs().max()
    assert calm < 1e-4 * stirred


def test_trajectory_is_bitwise_the_bare_calculators():
    ours, bare = tap(sevennet()), sevennet()
    atoms = FRAMES["crystal"].copy()
    for step in range(4):
        atoms.rattle(0.01, seed=step)
        results = ours(atoms, WANTED).results
        bare.calculate(atoms, WANTED, ["positions"])
        for key in WANTED:
            assert np.array_equal(results[key], bare.results[key]), (step, key)


def test_unknown_element_is_refused_before_any_pass():
    own = tap(sevennet())
    with pytest.raises(BackboneError, match=r"sevennet model, got \['Po'\]"):
        own(bulk("Po", "sc", a=3.3), WANTED)
    assert own.passes == 0


def test_geometry_alone_counts(backbone):
    atoms = crystal()
    atoms.info.update(charge=1, note="step 12")
    assert backbone.extra_state(atoms) == {}


class TestBatch:
    def test_many_frames_are_one_pass_and_the_model_is_left_as_it_was(self):
        own = tap(sevennet())
        frames = [crystal("Si"), FRAMES["molecule"], FRAMES["atom"], crystal("Cu")]
        together = own.predict_many(frames)
        assert own.passes == 1
        for many, frame in zip(together, frames, strict=True):
            one = own(frame, WANTED)
            close(many.energy, one.energy, NETWORK, of=len(frame))  # 1 eV an atom
            close(many.forces, one.forces, NETWORK, of=1.0)  # eV/Å, of others

    def test_model_is_left_as_it_was_after_a_failure(self, monkeypatch):
        own = tap(sevennet())
        model = own.model_calculator.model

        def fail(*args):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(model.force_output, "forward", fail)
            with pytest.raises(MemoryError):
                own.predict_many([crystal(), crystal(seed=1)])
        assert not model.is_batch_data
        assert not any(module._forward_hooks for module in model.modules())


class TestFingerprint:
    def test_tells_models_and_methods_apart(self):
        names = {
            tap(sevennet()).fingerprint,
            tap(sevennet("7net-0_22May2024")).fingerprint,
            tap(sevennet("7net-mf-0", modal="PBE")).fingerprint,
            tap(sevennet("7net-mf-0", modal="R2SCAN")).fingerprint,
        }
        assert len(names) == 4

    def test_is_of_the_weights(self):
        twin = copy.deepcopy(sevennet())
        before = tap(twin).fingerprint
        assert before == tap(loaded("7net-0")).fingerprint
        with torch.no_grad():
            next(twin.model.parameters()).view(-1)[0] += 1e-3
        assert tap(twin).fingerprint != before


def test_verdicts_in_one_pass_a_geometry():
    atoms = crystal()
    atoms.calc = ReliableCalculator(
        sevennet(),
        signals=[MaxForce()],
        policy=Policy([Threshold("max_force", suspect=10.0, unreliable=20.0)]),
    )
    for _ in range(3):
        atoms.get_forces()
        atoms.get_potential_energy()
        atoms.get_stress()
        atoms.rattle(0.01, seed=2)
    assert atoms.calc.backbone.passes == 3
