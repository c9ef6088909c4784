"""UMA and eSEN of fairchem, with random weights; in a separate environment.

fairchem-core needs another e3nn than mace-torch: run it with ``make test-fairchem``.
Elsewhere it is skipped.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from builders import rattled, salt
from closeness import NETWORK, close

from uqcalc import (
    ForceDelta,
    MaxForce,
    Policy,
    ReliableCalculator,
    Threshold,
    open_model,
    tap,
)
from uqcalc.backbones.fingerprint import same_model
from uqcalc.errors import BackboneError, FileWarning, ModelError
from uqcalc.testing.instruments import counted_calls


pytest.importorskip("fairchem.core")
from backbones.fairchems import checkpoint, fairchem, same_rolls


WANTED = ["energy", "forces"]


@pytest.fixture(autouse=True)
def rolls(request):
    # torch.compile warns of hooks on all modules
    with nullcontext() if "compiled" in request.node.name else same_rolls():
        yield


def test_features_rebuild_the_energy():
    """The energy head, applied by hand to the tapped features, gives the energy."""
    backbone = tap(fairchem("esen"))
    atoms = salt()
    got = backbone(atoms, WANTED)
    head = backbone.network.output_heads["energy"].energy_block
    with torch.no_grad():
        energies = 1.5 * head(got.features).flatten()  # the scale of its checkpoint
    close(energies.sum(), got.energy, NETWORK, of=energies)
    assert "mace" not in sys.modules


def test_vectors_vanish_where_the_surroundings_have_a_centre():
    """In rock salt each atom sits at a centre of inversion."""
    backbone = tap(fairchem(base_precision_dtype="float64"))
    calm = backbone(bulk("NaCl", "rocksalt", a=5.64), WANTED).vectors.abs().max()
    stirred = backbone(salt(), WANTED).vectors.abs().max()
    assert calm < 1e-4 * stirred


class TestDirect:
    """Forces of a head, and -dE/dr on demand, in one pass."""

    def test_conservative_forces_are_derivatives(self):
        atoms, step = rattled(), 1e-4
        backbone = tap(fairchem("esen", base_precision_dtype="float64"))
        got = backbone(atoms, [*WANTED, "conservative_forces"])
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[1, 2] += sign * step
            energies.append(backbone(moved, WANTED).energy)
        expected = (energies[1] - energies[0]) / (2 * step)
        assert float(got.conservative_forces[1, 2]) == pytest.approx(expected, rel=1e-5)
        apart = got.direct_forces - got.conservative_forces.numpy()
        assert np.abs(apart).max() > 1e-4
        assert got.conservative_forces.sum(0).abs().max() < 1e-9

    def test_conservative_stress_is_a_derivative(self):
        atoms, step = salt(), 1e-5
        backbone = tap(fairchem("esen", base_precision_dtype="float64"))
        got = backbone(atoms, [*WANTED, *backbone.on_demand])
        for place, strain in enumerate(
            ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
        ):
            energies = []
            for sign in (1, -1):
                deformation = np.eye(3)
                deformation[strain] += sign * step / 2
                deformation[strain[::-1]] += sign * step / 2
                moved = atoms.copy()
                moved.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
                energies.append(backbone(moved, WANTED).energy)
            expected = (energies[0] - energies[1]) / (2 * step * atoms.get_volume())
            given = float(got.conservative_stress[place])
            assert given == pytest.approx(expected, rel=1e-4, abs=1e-10), place

    def test_runs_force_delta_and_stress_in_one_pass(self):
        atoms = salt()
        atoms.calc = ReliableCalculator(
            fairchem("esen"),
            signals=[ForceDelta(), MaxForce()],
            policy=Policy([Threshold("max_force", suspect=10.0, unreliable=20.0)]),
        )
        with counted_calls() as calls:
            atoms.get_forces()
            atoms.get_stress()
        assert calls["HydraModel"] == 1
        assert atoms.calc.results["force_delta"] > 0
        assert atoms.calc.results["stress_delta"] > 0

    def test_energy_models_of_a_task_have_no_conservative_head(self):
        assert (
            "conservative_forces" not in tap(fairchem("esen"))(salt(), WANTED).results
        )
        assert not tap(fairchem("esen")).conservative
        assert tap(fairchem()).conservative


def test_features_are_invariant_where_activations_are_not_on_a_grid():
    """On a grid, as in UMA, they are nearly invariant."""
    turned = rattled()
    turned.rotate(61.0, (1, 2, 3))
    apart = {}
    for layers in ("grid", "spectral"):
        calculator = fairchem(base_precision_dtype="float64", layers=layers)
        one, other = (tap(calculator)(f, WANTED).features for f in (rattled(), turned))
        apart[layers] = float((one - other).abs().max() / one.abs().max())
    assert apart["spectral"] < 1e-9
    assert 1e-9 < apart["grid"] < 1e-2


class TestExperts:
    """The tapped model is the one that runs, also after fairchem replaces it."""

    def test_a_merged_model_gives_the_same_features(self):
        merged, plain = tap(fairchem(merge_mole=True)), tap(fairchem())
        for frame in (salt(), salt(seed=3)):
            ours, theirs = merged(frame, WANTED), plain(frame, WANTED)
            close(ours.features, theirs.features, NETWORK)
            close(ours.energy, theirs.energy, NETWORK, of=len(frame))
        assert type(merged.network.backbone).__name__ == "eSCNMDBackbone"

    def test_another_composition_is_read_from_the_model_that_replaced_it(self):
        merged, plain = tap(fairchem(merge_mole=True)), tap(fairchem())
        merged(salt(), WANTED)
        first = merged.network
        for frame in (rattled(), salt()):
            ours, theirs = merged(frame, WANTED), plain(frame, WANTED)
            close(ours.features, theirs.features, NETWORK)
            close(ours.forces, theirs.forces, NETWORK, of=1.0)
        assert merged.network is not first
        assert merged.passes == 3

    def test_fingerprint_is_of_the_unmerged_model(self):
        calculator = fairchem(merge_mole=True)
        before = tap(calculator).fingerprint
        tap(calculator)(salt(), WANTED)
        after = tap(calculator).fingerprint
        assert same_model(before, after)
        assert before == tap(fairchem()).fingerprint
        assert not same_model(after, tap(fairchem(seed=1)).fingerprint)

    def test_batches_keep_the_merged_model(self):
        backbone = tap(fairchem(merge_mole=True))
        backbone.predict_many([salt(), salt(seed=1)])
        assert backbone.passes == 2
        assert backbone.model_calculator.predictor.inference_settings.merge_mole

    def test_tasks_have_different_fingerprints(self):
        names = {tap(fairchem(task_name=t)).fingerprint for t in ("omat", "omol")}
        assert len(names) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of torch's compiler
def test_a_compiled_model_gives_the_same():
    compiled = fairchem(compile=True, merge_mole=True)
    backbone, plain = tap(compiled), tap(fairchem())
    for frame in (salt(), salt(seed=3)):
        ours, theirs = backbone(frame, WANTED), plain(frame, WANTED)
        close(ours.features, theirs.features, NETWORK)
        close(ours.forces, theirs.forces, NETWORK, of=1.0)
    assert hasattr(compiled.predictor.model, "_orig_mod")


class TestChargeAndSpin:
    def test_defaults_are_written_to_a_copy(self):
        for name, spin in (("omol", 1), ("omat", 0)):
            atoms = rattled()
            bare = fairchem(task_name=name)
            got = tap(fairchem(task_name=name))(atoms, WANTED)
            assert atoms.info == rattled().info
            bare.calculate(atoms, WANTED, [])
            assert np.array_equal(got.forces, bare.results["forces"])
            assert (atoms.info["charge"], atoms.info["spin"]) == (0, spin)

    def test_numbers_of_other_types_count(self):
        backbone = tap(fairchem(task_name="omol"))
        charged = rattled()
        charged.info = {"charge": 1, "spin": 2}
        expected = backbone(charged, WANTED).energy
        assert expected != backbone(rattled(), WANTED).energy
        charged.info = {"charge": np.float64(1.0), "spin": np.int64(2)}
        assert backbone(charged, WANTED).energy == expected
        charged.info = {"charge": 0.5, "spin": 2}
        with pytest.raises(BackboneError, match=r"info\['charge'\] must be a whole"):
            backbone(charged, WANTED)


def test_a_lone_atom_has_no_pass():
    backbone = tap(fairchem(lone=False))
    with pytest.raises(BackboneError, match="at least two atoms or a periodic cell"):
        backbone(Atoms("O"), WANTED)
    assert backbone.passes == 0


class TestRefusals:
    def test_nitro(self):
        calculator = fairchem()
        calculator.predictor.inference_settings.nitro = True
        with pytest.raises(BackboneError, match='inference_settings="multigpu"'):
            tap(calculator)

    def test_other_processes(self):
        class Elsewhere:
            """Has no model, as a predictor with several workers."""

        calculator = fairchem()
        calculator.predictor = Elsewhere()
        with pytest.raises(BackboneError, match="Elsewhere; load it with workers=1"):
            tap(calculator)

    def test_other_architectures(self):
        calculator = fairchem()
        calculator.predictor.model.module.backbone = torch.nn.Identity()
        with pytest.raises(BackboneError, match=r"a UMA or an eSEN .* got Identity"):
            tap(calculator)

    def test_energies_alone(self):
        calculator = fairchem()
        calculator.implemented_properties = ["energy"]
        with pytest.raises(BackboneError, match=r"predict_untrained_forces=\{'omat'\}"):
            tap(calculator)


class TestNames:
    def test_checkpoint_opens_with_a_warning_about_trust(self):
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        path = checkpoint()
        with pytest.warns(FileWarning, match="can run code"):
            opened = open_model(f"uma:{path}:omat", device="cpu")
        assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
        ours = tap(opened)(salt(), WANTED)
        close(ours.forces, tap(fairchem())(salt(), WANTED).forces, NETWORK)
        with (
            pytest.warns(FileWarning),
            pytest.raises(ModelError, match=r"\['omat', 'omol'\], got ''; write uma:"),
        ):
            open_model(f"uma:{path}", device="cpu")

    def test_missing_weights_are_reported_with_licence_and_command(self, monkeypatch):
        from fairchem.core.calculate import pretrained_mlip

        def unreachable(*_, **__):
            raise FileNotFoundError("Cannot reach the hub")

        monkeypatch.setattr(pretrained_mlip, "get_predict_unit", unreachable)
        with pytest.raises(ModelError, match=r"facebook/UMA, .* run hf auth login"):
            open_model("uma:uma-s-1p1", device="cpu")
        with pytest.raises(ModelError, match=r"co/facebook/OMol25, make a token"):
            open_model("uma:esen-sm-direct-all-omol", device="cpu")
        with pytest.raises(ModelError, match=r"name of uma must be one of \['"):
            open_model("uma:uma-xxl", device="cpu")


def test_the_molecule_of_a_frame_without_a_cell():
    got = tap(fairchem(task_name="omol"))(molecule("H2O"), WANTED)
    assert got.features.shape == (3, 8)
