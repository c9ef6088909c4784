"""SevenNet-0, whose weights come with the package; in a separate environment.

sevenn needs another e3nn than mace-torch, so nothing here may need MACE: run it with
``make test-sevennet``. Elsewhere it is skipped.
"""

from __future__ import annotations

import sys

import pytest
import torch
from ase.build import bulk
from backbones.sevennets import crystal, sevennet
from closeness import NETWORK, close

from uqcalc import tap
from uqcalc.testing import contract_frames


pytest.importorskip("sevenn.calculator")

FRAMES = contract_frames()
WANTED = ["energy", "forces", "stress"]


@pytest.fixture(scope="module")
def backbone():
    return tap(sevennet())


def test_vectors_of_each_channel_and_no_mace(backbone):
    got = backbone(FRAMES["molecule"], WANTED)
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


def test_model_is_left_as_it_was_after_a_batch_fails(monkeypatch):
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


def test_fingerprint_tells_models_and_methods_apart():
    names = {
        tap(sevennet()).fingerprint,
        tap(sevennet("7net-0_22May2024")).fingerprint,
        tap(sevennet("7net-mf-0", modal="PBE")).fingerprint,
        tap(sevennet("7net-mf-0", modal="R2SCAN")).fingerprint,
    }
    assert len(names) == 4
