"""Special properties of TorchANI: two ways to its networks, charges, films."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from backbones.anis import ani_2x, ani_q, crystal, double, with_repulsion
from backbones.table import BACKBONES
from builders import rattled
from closeness import FLOAT64, close

from uqcalc import Policy, ReliableCalculator, Threshold, tap
from uqcalc.backbones.torchani import TorchANIBackbone
from uqcalc.errors import BackboneError
from uqcalc.signals.label_free import ForceSpread


pytest.importorskip("torchani")

WANTED = ["energy", "forces"]
ALL = [*WANTED, "stress"]


FRAMES = BACKBONES["torchani"].frames


@pytest.fixture(scope="module")
def backbone():
    return TorchANIBackbone(double(ani_2x()))


def test_batches_equal_single_evaluations_after_any_structure(backbone):
    assert "stress" in backbone(FRAMES["crystal"], ALL).results
    many = backbone.predict_many(list(FRAMES.values()), WANTED)
    for got, frame in zip(many, FRAMES.values(), strict=True):
        alone = TorchANIBackbone(double(ani_2x()))(frame, WANTED)
        assert got.energy == alone.energy
        assert got.results.keys() == {"energy", "forces"}


def test_other_classes_called_calculator_are_not_taken_for_it():
    with pytest.raises(BackboneError, match="must be one that can be tapped"):
        tap(Calculator())


@pytest.mark.parametrize("wanted", [WANTED, ALL], ids=["no stress", "stress"])
def test_features_are_the_aevs(backbone, wanted):
    """The model calls its networks in two ways: with stress, and without."""
    atoms = FRAMES["crystal"]
    model = backbone.calculator.model
    aevs = model.aev_computer(
        model.species_converter(torch.tensor(atoms.numbers)[None]),
        torch.tensor(atoms.positions)[None],
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
    )[0]
    got = backbone(atoms, wanted)
    close(got.features, aevs, FLOAT64)
    assert ("stress" in got.results) == ("stress" in wanted)


class TestEnsemble:
    """One pass must give the results of members that are evaluated separately."""

    @pytest.mark.parametrize("make", [lambda: ani_2x(members=3), with_repulsion])
    @pytest.mark.parametrize("frame", ["molecule", "atom", "crystal"])
    def test_one_pass_has_all_members(self, make, frame):
        model, atoms = make().double(), FRAMES[frame]
        wanted = ALL if atoms.pbc.all() else WANTED
        backbone = TorchANIBackbone(model.ase())
        got = backbone(atoms, [*wanted, "committee_forces", "committee_energies"])
        assert backbone.passes == 1
        for index in range(3):
            alone = TorchANIBackbone(model[index].ase())(atoms, wanted)
            assert got.committee_energies[index] == pytest.approx(
                alone.energy, rel=1e-9
            )
            size = np.abs(alone.forces).max()
            np.testing.assert_allclose(
                got.committee_forces[index], alone.forces, rtol=0, atol=1e-9 * size
            )
        plain = backbone(atoms, wanted)
        assert plain.committee_forces is None
        np.testing.assert_array_equal(plain.forces, got.forces)

    def test_its_spread_is_read_in_one_pass(self):
        atoms = rattled()
        limits = [Threshold("force_spread", suspect=50.0, unreliable=100.0)]
        atoms.calc = ReliableCalculator(
            double(ani_2x(members=3)), signals=[ForceSpread()], policy=Policy(limits)
        )
        atoms.get_forces()
        assert atoms.calc.results["force_spread"] > 0
        assert atoms.calc.backbone.passes == 1


class TestCharges:
    @pytest.mark.parametrize("wanted", [WANTED, ALL], ids=["no stress", "stress"])
    def test_are_the_models_with_stress_and_without(self, wanted):
        atoms = FRAMES["crystal"]
        calculator = double(ani_q())
        got = TorchANIBackbone(calculator)(atoms, wanted)
        reference = calculator.model(
            (torch.tensor(atoms.numbers)[None], torch.tensor(atoms.positions)[None]),
            torch.tensor(atoms.cell.array),
            torch.tensor(atoms.pbc),
        ).atomic_charges[0]
        close(got.charges, reference, FLOAT64)
        assert float(got.charges.abs().max()) > 1e-3
        close(got.charges.sum(), 0.0, FLOAT64, of=got.charges)
        assert got.charges.grad_fn is None

    def test_of_networks_that_give_energies_too(self):
        ours = TorchANIBackbone(double(ani_q(merged=True)))
        got = ours(rattled(), WANTED)
        assert got.charges.shape == (6,)
        assert got.features.shape == (6, 1008)
        assert ours.passes == 1


class TestFilm:
    """Periodic in two directions: right along the axes, otherwise refused."""

    def test_is_the_limit_of_more_and_more_vacuum(self, backbone):
        film = crystal(pbc=(True, True, False))
        far = film.copy()
        far.pbc = True
        far.cell[2, 2] = 30.0
        got, reference = backbone(film, WANTED), backbone(far, WANTED)
        close(got.energy, reference.energy, FLOAT64)
        close(got.forces, reference.forces, FLOAT64)
        outside = film.copy()
        outside.translate((3.0, -8.0, 7.0))
        close(backbone(outside, WANTED).energy, got.energy, FLOAT64)

    @pytest.mark.parametrize("axis", ["x", (1, 2, 3)])
    def test_is_refused_if_torchani_is_wrong(self, backbone, axis):
        film = crystal(pbc=(True, True, False))
        turned = film.copy()
        turned.rotate(61.0, axis, rotate_cell=True)
        bare = double(ani_2x())
        bare.calculate(turned, WANTED)
        assert abs(bare.results["energy"] - backbone(film, WANTED).energy) > 0.05
        with pytest.raises(BackboneError, match="must lie along x, y and z"):
            backbone(turned, WANTED)

    def test_without_a_third_vector_is_evaluated(self, backbone):
        film = crystal(pbc=(True, True, False))
        flat = film.copy()
        flat.cell[2] = 0.0
        expected = backbone(film, WANTED).energy
        close(backbone(flat, WANTED).energy, expected, FLOAT64)


class TestFingerprint:
    def test_survives_casts_and_fusing(self, backbone):
        assert TorchANIBackbone(ani_2x().ase()).fingerprint == backbone.fingerprint
        # fused networks run on a GPU only: they call NVTX
        fused = TorchANIBackbone(double(ani_2x().to_infer_model()))
        assert fused.fingerprint == backbone.fingerprint

    def test_tells_models_apart(self, backbone):
        model = ani_2x().double()
        names = {
            "as made": backbone.fingerprint,
            "seed": TorchANIBackbone(double(ani_2x(seed=1))).fingerprint,
            "members": TorchANIBackbone(double(ani_2x(members=3))).fingerprint,
            "charges": TorchANIBackbone(double(ani_q())).fingerprint,
        }
        tensors = {
            "one weight": next(model.neural_networks.parameters()),
            "self energy": model.energy_shifter.self_energies,
            "descriptor": model.aev_computer.radial.shifts,
        }
        for what, tensor in tensors.items():
            tensor.view(-1)[:1] += 1e-3
            names[what] = TorchANIBackbone(model.ase()).fingerprint
            tensor.view(-1)[:1] -= 1e-3
        model.set_active_members([0])
        names["a member switched off"] = TorchANIBackbone(model.ase()).fingerprint
        assert len(set(names.values())) == len(names), names


def test_leaves_no_hook_behind_and_copies_stay_possible():
    calculator = double(ani_q())
    dtype = torch.get_default_dtype()
    TorchANIBackbone(calculator)(FRAMES["crystal"], ALL)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks
        for module in calculator.model.modules()
    )
    assert torch.get_default_dtype() == dtype
    copied = TorchANIBackbone(copy.deepcopy(calculator))
    assert copied(rattled(), WANTED).features.shape == (6, 1008)


class TestRefuses:
    def test_scripted_models(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: TorchScript is deprecated
            scripted = ani_2x().ase(jit=True)
        with pytest.raises(BackboneError, match=r"must be eager.*jit=False"):
            tap(scripted)

    def test_stress_by_thirteen_passes(self):
        with pytest.raises(
            BackboneError, match="one pass of the model, got 'numerical'"
        ):
            tap(double(ani_2x(), stress_kind="numerical"))

    def test_nothing_to_evaluate(self, backbone):
        with pytest.raises(BackboneError, match="at least one atom"):
            backbone(Atoms(), WANTED)
