"""Special properties of CHGNet: the energy from its features."""

from __future__ import annotations

import pytest
import torch
from backbones.toys import chgnet
from builders import salt
from closeness import NETWORK, close

from uqcalc import tap
from uqcalc.errors import BackboneError
from uqcalc.targets import voigt_stress


pytest.importorskip("chgnet")


def test_features_rebuild_the_energy():
    """The readout, applied by hand to the tapped features, gives the energy."""
    calculator = chgnet()
    atoms = salt()
    got = tap(calculator)(atoms, ["energy", "forces"])
    with torch.no_grad():
        per_atom = calculator.model.mlp(got.features).mean()
    composition = torch.zeros(1, 94)
    composition.index_add_(
        1, torch.tensor(atoms.numbers) - 1, torch.full((1, len(atoms)), 1 / len(atoms))
    )
    reference = calculator.model.composition_model.fc(composition)
    rebuilt = len(atoms) * float(per_atom + reference)
    close(rebuilt, got.energy, NETWORK, of=len(atoms))  # 1 eV an atom


def test_a_batch_gives_the_stress_of_the_calculator():
    backbone = tap(chgnet())
    frames = [salt(seed=1), salt(seed=2)]
    wanted = ["energy", "forces", "stress"]
    many = backbone.predict_many(frames, wanted)
    assert backbone.passes == 1
    for frame, found in zip(frames, many, strict=True):
        alone = backbone(frame, wanted).results["stress"]
        close(found.results["stress"], alone, NETWORK)
    assert "stress" not in backbone.predict_many(frames)[0].results


def test_a_left_handed_cell_whose_stress_has_the_wrong_sign_is_refused():
    calculator, atoms = chgnet(), salt()
    right = voigt_stress(calculator.get_stress(atoms))
    exchanged = atoms.copy()
    exchanged.set_cell(atoms.cell[[1, 0, 2]])
    # if this fails, CHGNet was corrected, and the refusal can be removed
    close(voigt_stress(calculator.get_stress(exchanged)), -right, NETWORK, of=1.0)
    backbone = tap(calculator)
    for evaluate in (
        lambda: backbone(exchanged),
        lambda: backbone.predict_many([atoms, exchanged]),
    ):
        with pytest.raises(BackboneError, match=r"right-handed .* exchange two"):
            evaluate()
    exchanged.set_cell(exchanged.cell[[1, 0, 2]])  # as the message says
    again = backbone(exchanged, ["energy", "forces", "stress"]).results["stress"]
    close(voigt_stress(again), right, NETWORK, of=1.0)


def test_batches_stay_small_enough_for_any_memory(monkeypatch):
    """A batch of 512 atoms in dense cells needed 13 GB."""
    backbone = tap(chgnet())
    frames = [salt(seed=seed) for seed in range(3)]
    together = backbone.predict_many(frames)
    monkeypatch.setattr(backbone, "most_batch_atoms", 2 * len(frames[0]))
    apart = backbone.predict_many(frames)
    assert backbone.passes == 1 + 2
    for one, other in zip(together, apart, strict=True):
        close(one.forces, other.forces, NETWORK)
        close(one.features, other.features, NETWORK)
