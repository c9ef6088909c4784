"""Special properties of AIMNet2: charge, spin, published probes, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbones.aimnets import ATOMIC_ENERGIES, SPECIES, aimnet2, export, ion
from builders import rattled
from closeness import NETWORK, close

from uqcalc import Labels, Policy, Recipe, ReliableCalculator, Threshold, fit, tap
from uqcalc.backbones.aimnet2 import AIMNet2Backbone, _rows
from uqcalc.errors import BackboneError, ProbeError
from uqcalc.probe.network import ProbeNetwork, Shape
from uqcalc.probe.probe import Probe
from uqcalc.signals.label_free import MaxForce


pytest.importorskip("aimnet.train.export_model")  # aimnet[train]

WANTED = ["energy", "forces"]


@pytest.fixture(scope="module")
def backbone():
    return AIMNet2Backbone(aimnet2())


@pytest.fixture
def judged():
    """A ReliableCalculator; one per test, for their counts of passes."""
    return ReliableCalculator(
        aimnet2(),
        signals=[MaxForce()],
        policy=Policy([Threshold("max_force", suspect=50.0, unreliable=100.0)]),
    )


def test_features_are_what_aimnet_calls_aim(backbone):
    """Compared with the package's own option for more output."""
    base = aimnet2().base_calc
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

    def test_of_one_structure_is_not_kept_for_the_next(self):
        """In the bare calculator it is kept, and results depend on the order."""
        bare, ours = aimnet2(), AIMNet2Backbone(aimnet2())
        atoms = rattled()
        bare.calculate(atoms, WANTED)
        neutral = bare.results["energy"]
        bare.calculate(ion(), WANTED)
        bare.calculate(atoms, WANTED)
        assert abs(bare.results["energy"] - neutral) > 0.1
        ours(ion(), WANTED)
        assert ours(atoms, WANTED).energy == neutral

    def test_of_the_calculator_counts_without_an_entry_in_info(self, backbone):
        charged = AIMNet2Backbone(aimnet2(charge=1))
        assert charged(rattled(), WANTED).energy == backbone(ion(), WANTED).energy
        assert charged.extra_state(rattled()) == backbone.extra_state(ion())
        charged.calculator.set_charge(-1)
        assert charged.extra_state(rattled()) == backbone.extra_state(ion(-1))


def test_spin_counts_where_the_model_reads_it(monkeypatch):
    ours = AIMNet2Backbone(aimnet2())
    base = type(ours.calculator.base_calc)
    monkeypatch.setattr(base, "is_nse", property(lambda _: True))
    atoms = rattled()
    before = ours.extra_state(atoms)
    atoms.info["spin"] = 3
    assert ours.extra_state(atoms)["mult"] == 3 != before["mult"]
    atoms.info["mult"] = 2  # AIMNet2ASE has the same priority
    assert ours.extra_state(atoms)["mult"] == 2


def test_fingerprint_is_of_weights_and_dispersion():
    calculator = aimnet2()
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


class TestLeavesNothingBehind:
    def test_on_the_calculator(self):
        calculator = aimnet2()
        # releases of aimnet keep data of a pass; aimnet 0.2.0 keeps the charge of an
        # ion
        calculator.calculate(rattled(), WANTED)
        before = {**vars(calculator.base_calc)}.keys()
        AIMNet2Backbone(calculator)(ion(), WANTED)
        assert vars(calculator.base_calc).keys() == before
        assert (calculator.charge, calculator.mult) == (0, 1)

    def test_restores_a_hook_of_another_package(self):
        calculator, seen = aimnet2(), []
        original = calculator.base_calc.process_output

        def theirs(data):
            seen.append(data)
            return original(data)

        calculator.base_calc.process_output = theirs
        AIMNet2Backbone(calculator)(rattled(), WANTED)
        assert calculator.base_calc.process_output is theirs
        assert len(seen) == 1


class TestRefuses:
    def test_replayed_graphs(self):
        calculator = aimnet2()
        calculator.base_calc._cuda_graph = object()  # as cuda_graph=True on a GPU
        with pytest.raises(BackboneError, match="must have cuda_graph=False"):
            tap(calculator)

    def test_other_networks(self):
        calculator = aimnet2()
        calculator.base_calc.model = torch.nn.Linear(2, 2)
        with pytest.raises(BackboneError, match=r"an AIMNet2 network.*got Linear"):
            tap(calculator)

    def test_no_element_where_the_calculator_does_not_check_them(self):
        silane = rattled("SiH4")
        lenient = AIMNet2Backbone(aimnet2(validate_species=False))
        assert lenient.elements is None
        assert lenient(silane, WANTED).features.shape == (5, 256)


def test_small_molecules_on_a_gpu_come_unpadded_with_a_leading_axis():
    """The layout of AIMNet2 there is generated: reading it needs no GPU."""
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
def bare(tmp_path_factory):
    """Without dispersion: with atomic energies, and as before the export."""
    zeros = dict.fromkeys(SPECIES, 0.0)
    before = export(tmp_path_factory.mktemp("before_export"), zeros)
    return [aimnet2(path=path, needs_dispersion=False) for path in (None, before)]


class TestPublishedProbes:
    """Their released training runs the network before its export."""

    def test_dispersion_is_refused(self, checkpoint):
        with pytest.raises(ProbeError, match="needs_dispersion=False"):
            Probe.from_official(checkpoint, aimnet2())
        with pytest.raises(ProbeError, match="needs_dispersion=False"):
            fit([rattled()], aimnet2(), Labels("energy"), Recipe.published())

    def test_atomic_energies_of_the_training_give_its_probability(
        self, bare, checkpoint
    ):
        exported, before = bare
        theirs = ATOMIC_ENERGIES
        zeros = dict.fromkeys(SPECIES, 0.0)
        ours = Probe.from_official(checkpoint, exported, atomic_energies=theirs)
        released = Probe.from_official(checkpoint, before, atomic_energies=zeros)
        for name in ("CH3OH", "H2O", "CH3NO2"):
            one, other = (tap(c)(rattled(name), WANTED) for c in bare)
            assert one.energy < other.energy - 50
            torch.testing.assert_close(
                ours([one])[0], released([other])[0], rtol=1e-4, atol=1e-6
            )

    def test_are_taken_from_the_model_by_default(self, bare, checkpoint):
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
