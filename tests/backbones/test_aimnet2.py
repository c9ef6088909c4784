"""AIMNet2 with random weights: charges, charge and spin, batches, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.mixing import SumCalculator
from backbones.toys import Springs
from builders import rattled, tiny_probe
from closeness import FLOAT64, NETWORK, close

from uqcalc import Labels, Policy, Recipe, ReliableCalculator, Threshold, fit, tap
from uqcalc.backbones.aimnet2 import AIMNet2Backbone, _rows
from uqcalc.errors import BackboneError, ProbeError
from uqcalc.probe.network import ProbeNetwork, Shape
from uqcalc.probe.probe import Probe
from uqcalc.signals.label_free import MaxForce
from uqcalc.testing import check_backbone, contract_frames


aimnet = pytest.importorskip("aimnet")
pytest.importorskip("aimnet.train.export_model")  # aimnet[train]

SPECIES = (1, 6, 7, 8, 11, 17)
WANTED = ["energy", "forces"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("aimnet2"), {z: -10.0 * z for z in SPECIES})


def exported(folder, atomic_energies):
    """A model file made by the package's own exporter."""
    from aimnet.config import build_module
    from aimnet.train.export_model import export_model

    design = Path(aimnet.__file__).parent / "models" / "aimnet2_dftd3_wb97m.yaml"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(build_module(str(design)).state_dict(), folder / "weights.pt")
    shifts = "".join(f"{z}: {energy}\n" for z, energy in atomic_energies.items())
    (folder / "shifts.sae").write_text(shifts)
    export_model.callback(
        weights=str(folder / "weights.pt"),
        output=str(folder / "model.pt"),
        model=str(design),
        sae=str(folder / "shifts.sae"),
        needs_coulomb=None,
        needs_dispersion=None,
    )
    return folder / "model.pt"


@pytest.fixture(scope="module")
def make(artifact):
    from aimnet.calculators import AIMNet2ASE, AIMNet2Calculator

    def calculator(**options):
        return AIMNet2ASE(AIMNet2Calculator(str(artifact), device="cpu"), **options)

    return calculator


@pytest.fixture(scope="module")
def backbone(make):
    return AIMNet2Backbone(make())


@pytest.fixture
def judged(make):
    """A ReliableCalculator; one per test, for their counts of passes."""
    return ReliableCalculator(
        make(),
        signals=[MaxForce()],
        policy=Policy([Threshold("max_force", suspect=50.0, unreliable=100.0)]),
    )


def ion(charge=1, name="CH3OH"):
    atoms = rattled(name)
    atoms.info["charge"] = charge
    return atoms


FRAMES = contract_frames() | {"ion": ion()}


@pytest.mark.parametrize("name", FRAMES)
def test_contract(make, name):
    """Energies are sums in float64 of networks in float32: noise of 1e-7 eV.

    Frame by frame: a bare calculator that is called outright keeps stress and charge
    of a frame for those after it, which have none of their own.
    """

    def used():
        # aimnet keeps a weak reference to what it has validated: it can be pickled
        # before its first use, and not after, with us and without
        calculator = make()
        # (and aimnet before 0.2.6 keeps too little room for it after a smaller one)
        calculator.calculate(FRAMES[name].copy(), WANTED)
        return calculator

    check_backbone(used, {name: FRAMES[name]}, force_atol=2e-4)


def test_molecule_after_a_crystal_has_no_stress(make):
    ours = AIMNet2Backbone(make())
    assert "stress" in ours(FRAMES["crystal"], [*WANTED, "stress"]).results
    assert "stress" not in ours(FRAMES["molecule"], WANTED).results


def test_crystal_after_a_molecule_has_all_its_neighbours(make):
    first, second = AIMNet2Backbone(make()), AIMNet2Backbone(make())
    second(rattled("H2O"), WANTED)
    expected, got = first(FRAMES["crystal"], WANTED), second(FRAMES["crystal"], WANTED)
    close(got.features, expected.features, NETWORK)
    assert got.energy == pytest.approx(expected.energy, rel=1e-7)


def test_is_found_and_says_what_it_is(make, backbone):
    found = tap(make())
    assert isinstance(found, AIMNet2Backbone)
    assert found.fingerprint == backbone.fingerprint
    assert found.feature_dim == 256
    assert found.elements == frozenset(SPECIES)
    assert {"charges", "stress", "conservative_forces"} <= found.provides


def test_in_a_sum(make):
    atoms = rattled()
    ours = tap(SumCalculator([make(), Springs()]))
    alone = tap(make())(atoms, WANTED)
    got = ours(atoms, WANTED)
    assert got.energy == alone.energy
    whole = alone.energy + Springs().get_potential_energy(atoms)
    close(got.results["energy"], whole, FLOAT64)
    assert torch.equal(got.features, alone.features)
    (first, _) = ours.predict_many([atoms, rattled("H2O")])
    assert first.results["energy"] == got.results["energy"]


def test_features_are_what_aimnet_calls_aim(make, backbone):
    """Held against the package's own way to ask for more output."""
    base = make().base_calc
    base.keys_out = [*base.keys_out, "aim"]
    base.atom_feature_keys = [*base.atom_feature_keys, "aim"]
    atoms = rattled()
    coordinates = torch.tensor(atoms.positions, dtype=torch.float32)
    output = base({"coord": coordinates, "numbers": atoms.numbers, "charge": 0.0})
    got = backbone(atoms, WANTED)
    close(got.features, output["aim"], NETWORK)
    close(got.charges, output["charges"], NETWORK)


class TestCharge:
    @pytest.mark.parametrize("charge", [-1, 0, 1])
    def test_atomic_charges_sum_to_it_and_are_the_users(self, backbone, charge):
        got = backbone(ion(charge), WANTED)
        # to 1e-3: the model's own normalisation has a small number in the divisor
        assert float(got.charges.sum()) == pytest.approx(charge, abs=1e-3)
        assert np.array_equal(got.charges.numpy(), got.results["charges"])
        assert got.charges.grad_fn is None

    def test_in_info_makes_it_another_structure(self, judged):
        atoms = rattled()
        atoms.calc = judged
        neutral = atoms.get_potential_energy()
        atoms.info["charge"] = 1
        assert abs(atoms.get_potential_energy() - neutral) > 0.1
        assert judged.backbone.passes == 2
        assert judged.results["charges"].sum() == pytest.approx(1.0, abs=1e-3)
        atoms.info["note"] = "step 12"
        atoms.get_forces()
        assert judged.backbone.passes == 2

    def test_of_one_structure_does_not_stick_to_the_next(self, make):
        """It does in the bare calculator, whose answers then depend on the order."""
        bare, ours = make(), AIMNet2Backbone(make())
        atoms = rattled()
        bare.calculate(atoms, WANTED)
        neutral = bare.results["energy"]
        bare.calculate(ion(), WANTED)
        bare.calculate(atoms, WANTED)
        assert abs(bare.results["energy"] - neutral) > 0.1
        ours(ion(), WANTED)
        assert ours(atoms, WANTED).energy == neutral

    def test_of_the_calculator_counts_where_info_is_silent(self, make, backbone):
        charged = AIMNet2Backbone(make(charge=1))
        assert charged(rattled(), WANTED).energy == backbone(ion(), WANTED).energy
        assert charged.extra_state(rattled()) == backbone.extra_state(ion())
        charged.calculator.set_charge(-1)
        assert charged.extra_state(rattled()) == backbone.extra_state(ion(-1))


class TestSpin:
    def test_is_no_part_of_a_closed_shell_model(self, backbone):
        atoms = rattled()
        before = backbone.extra_state(atoms)
        atoms.info["spin"] = 3
        assert backbone.extra_state(atoms) == before

    def test_counts_where_the_model_reads_it(self, make, monkeypatch):
        ours = AIMNet2Backbone(make())
        base = type(ours.calculator.base_calc)
        monkeypatch.setattr(base, "is_nse", property(lambda _: True))
        atoms = rattled()
        before = ours.extra_state(atoms)
        atoms.info["spin"] = 3
        assert ours.extra_state(atoms)["mult"] == 3 != before["mult"]
        atoms.info["mult"] = 2  # comes first in AIMNet2ASE, too
        assert ours.extra_state(atoms)["mult"] == 2


class TestOnePass:
    def test_for_everything_a_user_reads(self, judged):
        frame = FRAMES["crystal"].copy()
        frame.calc = judged
        frame.get_forces()
        frame.get_potential_energy()
        frame.get_stress()
        frame.get_charges()
        assert judged.backbone.passes == 1

    def test_with_a_probe(self, make, backbone):
        atoms = rattled()
        atoms.calc = ReliableCalculator(make(), probe=tiny_probe(backbone))
        atoms.get_forces()
        assert 0.0 <= atoms.calc.results["probe_reliability"] <= 1.0
        assert atoms.calc.backbone.passes == 1

    def test_of_a_batch_is_one_for_all(self, make):
        ours = AIMNet2Backbone(make())
        frames = [rattled(), ion(-1), rattled("H2O"), ion(1, "C6H6")]
        many = ours.predict_many(frames)
        assert ours.passes == 1
        for got, frame in zip(many, frames, strict=True):
            alone = ours(frame, WANTED)
            # what the network and Coulomb's law add up to, without the atoms' own
            close(got.energy, alone.energy, NETWORK, of=len(frame))  # 1 eV an atom
            close(got.forces, alone.forces, NETWORK, of=1.0)  # eV/Å, and it cancels
            close(got.charges, alone.charges, NETWORK)
            close(got.features, alone.features, NETWORK)


class TestFingerprint:
    def test_is_of_weights_and_dispersion(self, make):
        calculator = make()
        base = calculator.base_calc
        names = {"as made": AIMNet2Backbone(calculator).fingerprint}
        tensors = {
            "one weight": next(base.model.parameters()),
            "energy of an element": base.model.outputs.atomic_shift.shifts.weight,
        }
        for what, tensor in tensors.items():
            with torch.no_grad():
                tensor.view(-1)[:2] += 1e-3
                names[what] = AIMNet2Backbone(calculator).fingerprint
                tensor.view(-1)[:2] -= 1e-3
        base.external_dftd3.s8 += 0.1
        names["dispersion"] = AIMNet2Backbone(calculator).fingerprint
        base.external_dftd3 = None
        names["no dispersion"] = AIMNet2Backbone(calculator).fingerprint
        assert len(set(names.values())) == len(names), names

    def test_outlives_a_periodic_pass(self, make):
        """Coulomb is then summed in another way, for this evaluation."""
        calculator = make()
        ours = AIMNet2Backbone(calculator)
        ours(FRAMES["crystal"], WANTED)
        assert AIMNet2Backbone(calculator).fingerprint == ours.fingerprint


class TestLeavesNothingBehind:
    def test_on_the_calculator_or_the_process(self, make):
        calculator = make()
        # releases of aimnet keep something of a pass; of an ion aimnet 0.2.0 its charge
        calculator.calculate(rattled(), WANTED)
        before = {**vars(calculator.base_calc)}.keys()
        dtype = torch.get_default_dtype()
        AIMNet2Backbone(calculator)(ion(), WANTED)
        assert vars(calculator.base_calc).keys() == before
        assert (calculator.charge, calculator.mult) == (0, 1)
        assert torch.get_default_dtype() == dtype
        copied = copy.deepcopy(calculator)
        assert AIMNet2Backbone(copied)(rattled(), WANTED).features.shape == (6, 256)

    def test_and_puts_back_what_another_had_put_there(self, make):
        calculator, seen = make(), []
        original = calculator.base_calc.process_output

        def theirs(data):
            seen.append(data)
            return original(data)

        calculator.base_calc.process_output = theirs
        AIMNet2Backbone(calculator)(rattled(), WANTED)
        assert calculator.base_calc.process_output is theirs
        assert len(seen) == 1


class TestRefuses:
    def test_replayed_graphs(self, make):
        calculator = make()
        calculator.base_calc._cuda_graph = object()  # as cuda_graph=True on a GPU
        with pytest.raises(BackboneError, match="must have cuda_graph=False"):
            tap(calculator)

    def test_other_networks(self, make):
        calculator = make()
        calculator.base_calc.model = torch.nn.Linear(2, 2)
        with pytest.raises(BackboneError, match=r"an AIMNet2 network.*got Linear"):
            tap(calculator)

    def test_elements_it_was_not_trained_on(self, make, backbone):
        silane = rattled("SiH4")
        with pytest.raises(BackboneError, match=r"got \['Si'\]"):
            backbone(silane, WANTED)
        lenient = AIMNet2Backbone(make(validate_species=False))
        assert lenient.elements is None
        assert lenient(silane, WANTED).features.shape == (5, 256)


def test_small_molecules_on_a_gpu_come_unpadded_with_a_leading_axis():
    """The layout AIMNet2 takes there, made to order: it takes no GPU to be read."""
    dense = {
        "coord": torch.zeros(1, 6, 3),
        "nbmat": torch.zeros(6, 5),
        "aim": torch.randn(1, 6, 256),
        "charges": torch.randn(1, 6),
    }
    assert torch.equal(_rows(dense, "aim"), dense["aim"][0])
    assert torch.equal(_rows(dense, "charges"), dense["charges"][0])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = ProbeNetwork(Shape(256, charges=True)).state_dict()
    path = tmp_path_factory.mktemp("released") / "best.pt"
    torch.save({"model_state_dict": state, "error_bins": [0.0, 0.07]}, path)
    return path


@pytest.fixture(scope="module")
def bare(artifact, tmp_path_factory):
    """Without dispersion: with atomic energies, and as before the export."""
    from aimnet.calculators import AIMNet2ASE, AIMNet2Calculator

    zeros = dict.fromkeys(SPECIES, 0.0)
    before = exported(tmp_path_factory.mktemp("before_export"), zeros)
    return [
        AIMNet2ASE(AIMNet2Calculator(str(path), device="cpu", needs_dispersion=False))
        for path in (artifact, before)
    ]


class TestPublishedProbes:
    """Their released training runs the network before its export."""

    def test_dispersion_is_refused(self, make, checkpoint):
        with pytest.raises(ProbeError, match="needs_dispersion=False"):
            Probe.from_official(checkpoint, make())
        with pytest.raises(ProbeError, match="needs_dispersion=False"):
            fit([rattled()], make(), Labels("energy"), Recipe.published())

    def test_atomic_energies_of_the_training_give_its_probability(
        self, bare, checkpoint
    ):
        exported, before = bare
        theirs = {z: -10.0 * z for z in SPECIES}
        zeros = dict.fromkeys(SPECIES, 0.0)
        ours = Probe.from_official(checkpoint, exported, atomic_energies=theirs)
        released = Probe.from_official(checkpoint, before, atomic_energies=zeros)
        for name in ("CH3OH", "H2O", "CH3NO2"):
            one, other = (tap(c)(rattled(name), WANTED) for c in bare)
            assert one.energy < other.energy - 50
            torch.testing.assert_close(
                ours([one])[0], released([other])[0], rtol=1e-4, atol=1e-6
            )

    def test_they_are_taken_from_the_model_where_nobody_gives_them(
        self, bare, checkpoint
    ):
        backbone = AIMNet2Backbone(bare[0])
        probe = Probe.from_official(checkpoint, bare[0])
        weights = bare[0].base_calc.model.outputs.atomic_shift.shifts.weight
        shifts = {str(z): weights[z].item() for z in SPECIES}
        assert probe.card.atom_energies == pytest.approx(shifts)
        assert probe.card.elements == list(SPECIES)
        prediction = backbone(rattled(), WANTED)
        scalars = probe.inputs([prediction])[2]
        rest = prediction.energy - sum(shifts[str(z)] for z in prediction.numbers)
        assert scalars.flatten().tolist() == pytest.approx([rest, 6.0], rel=1e-5)
        assert "minus atomic energies of H C N O" in probe.card.description
