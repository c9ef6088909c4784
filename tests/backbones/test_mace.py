"""Special properties of MACE: fingerprints, committees, charge, compiled models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from backbones.toys import around, mace_on_shared_models, scripted_model
from builders import mace_calculator, rattled, tiny_mace
from closeness import FLOAT64, NETWORK, close

from uqcalc import ForceSpread, Policy, ReliableCalculator, Threshold
from uqcalc.backbones.fingerprint import same_model
from uqcalc.backbones.mace import MACEBackbone
from uqcalc.errors import BackboneError


WANTED = ["energy", "forces"]


def identity(model, dtype="float64", **options):
    return MACEBackbone(around([model], dtype, **options)).fingerprint


class TestFingerprint:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_survives_casts(self, seed):
        single = tiny_mace(seed=seed, dtype=torch.float32)
        double = copy.deepcopy(single).double()
        there_and_back = copy.deepcopy(double).float()
        names = {
            identity(single, "float32"),
            identity(double),
            identity(there_and_back, "float32"),
        }
        assert len(names) == 1
        native = tiny_mace(seed=seed, dtype=torch.float64)
        rounded = identity(copy.deepcopy(native).float(), "float32")
        assert rounded == identity(native)

    def test_survives_torchscript(self):
        assert identity(scripted_model()) == identity(tiny_mace())

    def test_survives_cuequivariance(self):
        pytest.importorskip("cuequivariance_torch")
        converted = MACEBackbone(mace_calculator(0, enable_cueq=True))
        assert same_model(converted.fingerprint, identity(tiny_mace()))
        assert not same_model(converted.fingerprint, identity(tiny_mace(seed=1)))

    def test_tells_models_apart(self):
        model = tiny_mace()
        original = identity(model)
        assert original == identity(tiny_mace())
        parameters = {
            "cutoff": model.r_max,
            "atomic energies": model.atomic_energies_fn.atomic_energies,
            "scale": model.scale_shift.scale,
            "shift": model.scale_shift.shift,
            "one weight": next(model.readouts.parameters()),
            "one contraction": next(
                value
                for name, value in model.named_parameters()
                if "symmetric_contractions" in name
            ),
        }
        names = {"original": original, "seed": identity(tiny_mace(seed=1))}
        for what, tensor in parameters.items():
            with torch.no_grad():
                tensor.view(-1)[:1] += 1e-3
                names[what] = identity(model)
                tensor.view(-1)[:1] -= 1e-3
        assert len(set(names.values())) == len(names), names

    def test_committee_is_not_its_first_member(self):
        committee = MACEBackbone(mace_on_shared_models(0, 1)).fingerprint
        assert committee != MACEBackbone(mace_on_shared_models(0)).fingerprint


class TestCommittee:
    def test_members_are_the_single_models(self):
        atoms = rattled()
        got = MACEBackbone(mace_on_shared_models(0, 1))(atoms, WANTED)
        singles = [
            MACEBackbone(mace_on_shared_models(s))(atoms, WANTED) for s in (0, 1)
        ]
        for member, single in zip(got.committee_forces, singles, strict=True):
            close(member, single.forces, FLOAT64)
        close(got.features, singles[0].features, FLOAT64)
        mean = np.mean([s.energy for s in singles])
        close(got.energy, mean, FLOAT64)

    def test_two_passes_a_geometry_and_a_spread_for_the_user(self):
        atoms = rattled()
        atoms.calc = ReliableCalculator(
            mace_on_shared_models(0, 1),
            signals=[ForceSpread()],
            policy=Policy([Threshold("force_spread", suspect=1.0, unreliable=2.0)]),
        )
        atoms.get_forces()
        atoms.get_potential_energy()
        assert atoms.calc.backbone.passes == 2
        deviation = atoms.calc.results["forces_comm"].std(axis=0)
        spread = np.sqrt(np.mean(deviation**2))
        close(atoms.calc.results["force_spread"], spread, FLOAT64)

    def test_energy_in_other_units_is_converted_in_batches_too(self):
        backbone = MACEBackbone(
            mace_on_shared_models(0, energy_units_to_eV=27.2, length_units_to_A=0.53)
        )
        frames = [rattled(), rattled("H2O")]
        for many, frame in zip(backbone.predict_many(frames), frames, strict=True):
            one = backbone(frame, WANTED)
            close(many.energy, one.energy, FLOAT64)
            close(many.forces, one.forces, FLOAT64)


def test_charge_follows_the_names_the_calculator_was_given():
    backbone = MACEBackbone(
        mace_on_shared_models(0, info_keys={"total_charge": "q"}, charges_key="Qs")
    )
    atoms = rattled()
    before = backbone.extra_state(atoms)
    atoms.info["charge"] = 1
    assert backbone.extra_state(atoms) == before
    atoms.info["q"] = 1
    assert backbone.extra_state(atoms) != before


def test_features_are_what_mace_calls_its_last_layer():
    """Compared with `get_descriptors`, which runs a separate pass."""
    calculator = mace_on_shared_models()
    atoms = rattled()
    ours = MACEBackbone(calculator)(atoms, WANTED).features
    theirs = calculator.get_descriptors(atoms)[:, -8:]
    close(ours, theirs, FLOAT64)


def test_model_without_an_energy_is_refused():
    dipoles = mace_on_shared_models()
    dipoles.model_type = "DipoleMACE"
    with pytest.raises(BackboneError, match="predicts an energy, got 'DipoleMACE'"):
        MACEBackbone(dipoles)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of torch's compiler about torch
def test_compiled_model_is_tapped_and_keeps_its_identity():
    """torch.compile pads: the extra rows must not reach the features."""
    eager = MACEBackbone(mace_on_shared_models(0, dtype="float32"))
    compiled = MACEBackbone(mace_calculator(0, dtype="float32", compile_mode="default"))
    assert compiled.fingerprint == eager.fingerprint
    atoms = rattled()
    for seed in (1, 2):
        atoms.rattle(0.02, seed=seed)
        ours, theirs = compiled(atoms, WANTED), eager(atoms, WANTED)
        close(ours.features, theirs.features, NETWORK)
        close(ours.forces, theirs.forces, NETWORK)
    assert compiled.passes == 2
