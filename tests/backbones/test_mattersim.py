"""MatterSim with random weights; in a separate environment.

mattersim needs another e3nn than mace-torch: run it with ``make test-fairchem``.
Elsewhere it is skipped.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from ase import units
from ase.build import fcc111
from builders import salt
from closeness import NETWORK, close

from uqcalc import open_model, tap
from uqcalc.errors import BackboneError, ModelError


pytest.importorskip("mattersim.forcefield.potential")
from backbones.mattersims import mattersim, potential


WANTED = ["energy", "forces", "stress"]


def test_features_rebuild_the_energy():
    backbone = tap(mattersim())
    got = backbone(salt(), WANTED)
    with torch.no_grad():
        energies = backbone.network.final(got.features).flatten()
    close(energies.sum(), got.energy, NETWORK, of=energies)
    assert "mace" not in sys.modules


def test_stress_counts_only_in_the_unit_of_ase():
    assert "stress" in tap(mattersim()).provides
    assert "stress" not in tap(mattersim(stress_weight=1.0)).provides
    assert "stress" not in tap(mattersim(compute_stress=False)).provides
    given = tap(mattersim())(salt(), WANTED).results["stress"]
    plain = mattersim(stress_weight=1.0)
    plain.calculate(salt(), WANTED, [])
    close(given, plain.results["stress"] * units.GPa, NETWORK)


def test_a_film_outside_its_cell_is_refused_and_inside_it_is_not():
    """MatterSim would move such atoms by a cell vector, which is another structure."""
    film = fcc111("Cu", (1, 1, 3), vacuum=6.0)
    backbone = tap(mattersim())
    inside = backbone(film, WANTED[:2]).energy
    film.positions[:, 2] -= 7.0
    with pytest.raises(BackboneError, match="must be inside the cell in its open dir"):
        backbone(film, WANTED)
    bare = mattersim()
    bare.calculate(film, WANTED, [])
    assert abs(bare.results["energy"] - inside) > 1e-4


def test_a_potential_of_another_kind_is_refused():
    calculator = mattersim()
    calculator.potential.model = torch.nn.Identity()
    with pytest.raises(BackboneError, match="must be an M3GNet of MatterSim 1, got Id"):
        tap(calculator)


def test_fingerprint_is_also_of_the_energies_of_atoms():
    before = tap(mattersim()).fingerprint
    calculator = mattersim()
    calculator.potential.model.normalizer.shift += 1.0
    assert tap(calculator).fingerprint != before


class TestNames:
    def test_a_checkpoint_opens(self, tmp_path):
        path = tmp_path / "tiny" / "my.pth"
        potential().save(str(path))
        opened = tap(open_model(f"mattersim:{path}", device="cpu"))
        ours, theirs = (b(salt(), WANTED) for b in (opened, tap(mattersim())))
        assert np.array_equal(ours.forces, theirs.forces)
        assert opened.fingerprint == tap(mattersim()).fingerprint

    def test_missing_weights_are_reported_with_the_command(self, monkeypatch):
        from mattersim.forcefield.potential import Potential

        asked = []

        def unreachable(file, **_):
            asked.append(file)
            raise ConnectionError("no network")

        monkeypatch.setattr(Potential, "from_checkpoint", unreachable)
        with pytest.raises(ModelError, match=r"curl -L .*v1.0.0-5M.pth http"):
            open_model("mattersim:5m", device="cpu")
        assert asked == ["mattersim-v1.0.0-5M.pth"]
        with pytest.raises(ModelError, match=r"mattersim must be one of \('1M'"):
            open_model("mattersim:9M", device="cpu")
        with pytest.raises(ModelError, match="dtype must be 'float32' for mattersim"):
            open_model("mattersim:1M", device="cpu", dtype="float64")
