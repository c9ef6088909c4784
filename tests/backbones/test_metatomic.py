"""Special properties of metatomic: outputs by name, both forces of one evaluation."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from backbones.table import boxed
from builders import rattled, salt
from closeness import NETWORK, close

from uqcalc import (
    EnergySpread,
    EnergyUncertainty,
    ForceDelta,
    MaxForce,
    Policy,
    ReliableCalculator,
    Threshold,
    tap,
)
from uqcalc.errors import BackboneError
from uqcalc.testing import check_backbone, check_signal


pytest.importorskip("metatomic.torch")
pytest.importorskip("metatomic_ase")
from backbones.metatomics import (
    ENERGY,
    ENSEMBLE,
    FEATURE,
    FORCE,
    UNCERTAINTY,
    Charged,
    metatomic,
    model,
)
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator


WANTED = ["energy", "forces"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("metatomic") / "toy.pt"
    model().save(path)
    return path


def evaluations(calculator):
    """Count the evaluations of the network itself."""
    counted = []
    network = calculator.model().module
    network.register_forward_hook(lambda *_: counted.append(1))
    return counted


def test_contract_of_an_exported_model(exported):
    check_backbone(lambda: MetatomicCalculator(exported), boxed(), exact=False)


def test_what_it_provides_without_direct_heads():
    assert tap(metatomic(ENERGY | FEATURE)).provides == {
        "features",
        "energy",
        "forces",
        "conservative_forces",
        "stress",
        "conservative_stress",
    }


class TestOneEvaluation:
    @pytest.mark.parametrize("atoms", [rattled(), salt()], ids=["molecule", "crystal"])
    def test_gives_both_forces_and_features(self, atoms):
        calculator = metatomic()
        counted = evaluations(calculator)
        backbone = tap(calculator)
        got = backbone(atoms, [*WANTED, *backbone.on_demand])
        assert len(counted) == 1
        named = {
            "feature": ModelOutput(sample_kind="atom"),
            "non_conservative_force": ModelOutput(unit="eV/A", sample_kind="atom"),
        }
        asked = metatomic(additional_outputs=named)
        asked.calculate(atoms, WANTED, [])
        theirs = asked.additional_outputs["feature"].block().values
        close(got.features, theirs.flip(0), NETWORK)
        theirs = asked.additional_outputs["non_conservative_force"].block().values
        close(got.direct_forces, theirs.squeeze(-1), NETWORK)
        close(got.conservative_forces, asked.results["forces"], NETWORK)

    def test_stress_is_in_the_order_of_ase(self):
        backbone = tap(metatomic())
        got = backbone(salt(), [*WANTED, *backbone.on_demand]).direct_stress
        bare = metatomic(non_conservative="stress")
        bare.calculate(salt(), ["stress"], [])
        close(got, bare.results["stress"], NETWORK)
        assert np.ptp(got.numpy()[3:]) > 0

    def test_stress_is_not_requested_without_a_cell(self):
        backbone = tap(metatomic())
        got = backbone(rattled(), [*WANTED, *backbone.on_demand])
        assert got.direct_stress is None
        assert got.conservative_stress is None

    def test_runs_force_delta_and_stress_in_one_pass(self):
        atoms = salt()
        calculator = metatomic()
        counted = evaluations(calculator)
        atoms.calc = ReliableCalculator(
            calculator,
            signals=[ForceDelta(), MaxForce()],
            policy=Policy([Threshold("max_force", suspect=10.0, unreliable=20.0)]),
        )
        for step in range(3):
            atoms.get_forces()
            atoms.get_potential_energy()
            atoms.get_stress()
            assert len(counted) == atoms.calc.backbone.passes == step + 1
            atoms.rattle(0.01, seed=step)
        assert atoms.calc.results["force_delta"] > 0
        assert atoms.calc.results["stress_delta"] > 0

    def test_force_delta_keeps_the_net_force_of_a_head_that_keeps_it(self):
        atoms = rattled()
        atoms.center(vacuum=4.0)
        got = tap(metatomic())(atoms, [*WANTED, "direct_forces"])
        apart = got.direct_forces.numpy() - got.conservative_forces
        assert np.abs(apart.sum(axis=0)).max() > 1e-3
        expected = np.sqrt(np.sum(apart**2) / (3 * len(atoms)))
        assert float(ForceDelta()(got).risk) == pytest.approx(expected, rel=1e-9)
        assert float(ForceDelta(projection=True)(got).risk) < (1 - 1e-4) * expected

    def test_heads_without_a_request_do_not_run(self):
        calculator = metatomic()
        head = calculator.model().module.force_head
        head.register_forward_hook(lambda *_: pytest.fail("ran"))
        got = tap(calculator)(rattled(), WANTED)
        assert got.direct_forces is None

    def test_many_frames_are_one_pass(self):
        backbone = tap(metatomic())
        frames = [salt(), rattled(), rattled("H2O")]
        backbone.predict_many(frames, [*WANTED, "direct_forces"])
        assert backbone.passes == 1


class TestUncertainty:
    """The model's own uncertainties are readings of the same evaluation."""

    def test_of_atoms_and_of_the_ensemble(self):
        atoms = salt()
        calculator = metatomic()
        counted = evaluations(calculator)
        limits = [Threshold("energy_uncertainty", 5.0, 9.0)]
        limits.append(Threshold("energy_spread", 5.0, 9.0))
        atoms.calc = ReliableCalculator(
            calculator,
            signals=[EnergyUncertainty(), EnergySpread()],
            policy=Policy(limits),
        )
        atoms.get_forces()
        assert len(counted) == 1
        features = tap(metatomic())(atoms, WANTED).features
        expected = torch.linalg.vector_norm(features, dim=1) / 100
        got = atoms.calc.results
        close(got["atomic_energy_uncertainties"], expected, NETWORK)
        assert got["atomic_energy_uncertainty_max"] == pytest.approx(
            float(expected.max())
        )
        weights = calculator.model().module.ensemble.weight.detach()
        members = (features.sum(0) @ weights.T).numpy()
        spread = np.std(members) / len(atoms)
        assert got["energy_spread"] == pytest.approx(spread, rel=1e-6)

    def test_is_not_computed_without_a_request(self):
        # with a threshold metatomic itself requests the uncertainties, for a warning
        calculator = metatomic(uncertainty_threshold=None)
        asked = []
        calculator.model().module.register_forward_pre_hook(
            lambda _, args, kwargs: asked.extend(kwargs.get("outputs", *args[1:2])),
            with_kwargs=True,
        )
        got = tap(calculator)(rattled(), [*WANTED, "committee_energies"])
        assert set(asked) == {"energy", "feature", "energy_ensemble"}
        assert got.committee_energies.shape == (4,)
        assert got.energy_uncertainties is None

    def test_names_that_metatrain_gives_to_variants(self):
        pbe = {"energy/PBE": ENERGY["energy"]}
        of = {
            "mtt::aux::energy/PBE_uncertainty": UNCERTAINTY["energy_uncertainty"],
            "mtt::aux::energy/PBE_ensemble": ENSEMBLE["energy_ensemble"],
        }
        named = metatomic(ENERGY | FEATURE | pbe | of, variants={"energy": "PBE"})
        backbone = tap(named)
        got = backbone(rattled(), [*WANTED, *backbone.on_demand])
        theirs = tap(metatomic())(rattled(), [*WANTED, "energy_uncertainties"])
        close(got.energy_uncertainties, theirs.energy_uncertainties, NETWORK)
        assert got.committee_energies.shape == (4,)
        plain = tap(metatomic(ENERGY | FEATURE | pbe | of))
        assert not {"energy_uncertainties", "committee_energies"} & plain.provides

    def test_of_the_whole_structure_is_not_an_uncertainty_of_atoms(self):
        whole = {"energy_uncertainty": ModelOutput(unit="eV", sample_kind="system")}
        assert (
            "energy_uncertainties"
            not in tap(metatomic(ENERGY | FEATURE | whole)).provides
        )

    def test_contract_of_the_signal(self):
        prediction = tap(metatomic())(rattled(), [*WANTED, "energy_uncertainties"])
        for reduce in ("max", "mean"):
            check_signal(EnergyUncertainty(reduce), prediction)
        with pytest.raises(ValueError, match="reduce must be 'mean' or 'max', got 'a'"):
            EnergyUncertainty("a")


class UPETCalculator(Calculator):
    """Holds a metatomic calculator as upet's class does."""

    def __init__(self, inner):
        super().__init__()
        self.calculator = inner
        self.implemented_properties = inner.implemented_properties

    def calculate(self, atoms, properties, system_changes):
        super().calculate(atoms, properties, system_changes)
        self.calculator.calculate(atoms, properties, system_changes)
        self.results = self.calculator.results


class TestUPET:
    def test_is_the_calculator_inside_it(self):
        given = UPETCalculator(metatomic())
        backbone = tap(given)
        assert backbone.calculator is given
        assert backbone.fingerprint == tap(metatomic()).fingerprint
        got = backbone(salt(), [*WANTED, *backbone.on_demand])
        theirs = tap(metatomic())(salt(), [*WANTED, *backbone.on_demand])
        close(got.forces, theirs.forces, NETWORK)
        close(got.direct_forces, theirs.direct_forces, NETWORK)
        backbone.predict_many([salt(), rattled()])
        assert backbone.passes == 2

    def test_contract(self):
        check_backbone(lambda: UPETCalculator(metatomic()), boxed())

    def test_averages_over_rotations_are_refused(self):
        with pytest.raises(BackboneError, match="leave rotational_average_order out"):
            tap(UPETCalculator(EMT()))


class TestDirectCalculator:
    def test_forces_are_direct_and_none_are_conservative(self):
        backbone = tap(metatomic(non_conservative=True))
        assert not backbone.conservative
        absent = {"conservative_forces", "conservative_stress"}
        assert not backbone.provides & absent
        assert not backbone.on_demand & {"direct_forces", "direct_stress"}
        got = backbone(salt(), WANTED)
        assert got.conservative_forces is None
        assert got.conservative_stress is None
        direct = got.direct_forces.numpy()
        close(got.forces, direct - direct.mean(0), NETWORK, of=direct)
        with pytest.raises(ValueError, match="'conservative_forces'"):
            ReliableCalculator(
                metatomic(non_conservative=True),
                signals=[ForceDelta()],
                policy=Policy([Threshold("force_delta", 1.0, 2.0)]),
            )

    def test_stress_may_be_direct_alone(self):
        backbone = tap(metatomic(non_conservative="stress"))
        assert backbone.conservative
        assert "conservative_stress" not in backbone.provides
        got = backbone(salt(), [*WANTED, "stress"])
        close(got.direct_stress, got.results["stress"], NETWORK)
        assert np.array_equal(got.conservative_forces, got.forces)


class TestNames:
    def test_of_older_models_end_in_an_s(self):
        old = {f"{name}s": given for name, given in (FEATURE | FORCE).items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warning of an old model
            older = model(ENERGY | old)
        got = tap(MetatomicCalculator(older))(rattled(), [*WANTED, "direct_forces"])
        new = tap(metatomic())(rattled(), [*WANTED, "direct_forces"])
        close(got.features, new.features, NETWORK)
        close(got.direct_forces, new.direct_forces, NETWORK)

    def test_of_variants(self):
        """Both forces are of one level of theory; features may be common to all."""
        outputs = {f"energy/{v}": ENERGY["energy"] for v in ("PBE", "SCAN")}
        force = {"non_conservative_force/PBE": FORCE["non_conservative_force"]}
        give = ENERGY | outputs | force | FEATURE
        pbe = tap(metatomic(give, variants={"energy": "PBE"}))
        scan = tap(metatomic(give, variants={"energy": "SCAN"}))
        plain = tap(metatomic(give))
        assert "direct_forces" in pbe.provides
        assert "direct_forces" not in scan.provides | plain.provides
        assert len({b.fingerprint for b in (pbe, scan, plain)}) == 3
        scan(rattled(), WANTED)


class TestUsersOwnOutputs:
    def test_stay_as_they_are(self):
        alone = {"feature": ModelOutput(sample_kind="atom")}
        calculator = metatomic(additional_outputs=alone)
        backbone = tap(calculator)
        backbone(rattled(), [*WANTED, *backbone.on_demand])
        assert set(calculator.additional_outputs) == {"feature"}
        plain = metatomic()
        tap(plain)(rattled(), WANTED)
        assert plain.additional_outputs == {}

    def test_contradictory_units_are_refused(self):
        otherwise = {
            "non_conservative_force": ModelOutput(unit="kJ/mol/nm", sample_kind="atom")
        }
        with pytest.raises(BackboneError, match="got unit='kJ/mol/nm'"):
            tap(metatomic(additional_outputs=otherwise))


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (ENERGY | FORCE, r"'feature' of each atom, got \['energy', 'non"),
        (FEATURE, "must have an energy"),
        (
            ENERGY | {"feature": ModelOutput(sample_kind="system")},
            "got 'feature' of each system",
        ),
    ],
)
def test_models_without_what_is_needed_are_refused(outputs, words):
    with pytest.raises(BackboneError, match=words):
        tap(metatomic(outputs))


class TestExtraState:
    @pytest.fixture
    def charged(self):
        return tap(MetatomicCalculator(model(kind=Charged)))

    @pytest.mark.parametrize("key", ["charge", "spin", "spin_multiplicity"])
    def test_is_what_the_model_reads(self, charged, key):
        atoms = rattled()
        before = charged.extra_state(atoms)
        atoms.info["note"] = "step 12"
        assert charged.extra_state(atoms) == before
        atoms.info[key] = 2
        assert charged.extra_state(atoms) != before

    def test_a_change_of_it_is_evaluated(self, charged):
        atoms = rattled()
        atoms.calc = ReliableCalculator(
            charged,
            signals=[MaxForce()],
            policy=Policy([Threshold("max_force", suspect=10.0, unreliable=20.0)]),
        )
        changes = (
            lambda: None,
            lambda: atoms.info.update(charge=1),
            lambda: atoms.set_momenta(np.ones((len(atoms), 3))),
            lambda: atoms.info.update(note=1),
        )
        passes = []
        for change in changes:
            change()
            atoms.get_forces()
            passes.append(charged.passes)
        assert passes == [1, 2, 3, 3]


class TestFingerprint:
    def test_is_of_the_weights(self, exported):
        names = {
            tap(metatomic()).fingerprint,
            tap(metatomic(non_conservative=True)).fingerprint,
            tap(MetatomicCalculator(exported)).fingerprint,
        }
        assert len(names) == 1
        assert tap(metatomic(seed=1)).fingerprint not in names

    def test_of_a_copy_is_the_same(self):
        calculator = MetatomicCalculator(model())
        before = tap(calculator).fingerprint
        with torch.no_grad():
            next(calculator.model().parameters()).view(-1)[0] += 1e-3
        assert tap(calculator).fingerprint != before
        assert tap(MetatomicCalculator(copy.deepcopy(model()))).fingerprint == before
