"""Special properties of Orb: both forces of one pass, and no rotational symmetry."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from builders import rattled, salt
from closeness import FLOAT64, NETWORK, close

from uqcalc import (
    ForceDelta,
    MaxForce,
    Policy,
    ReliableCalculator,
    RotationAverage,
    Threshold,
    tap,
)
from uqcalc.errors import BackboneError
from uqcalc.testing import check_backbone, contract_frames
from uqcalc.testing.instruments import counted_calls


pytest.importorskip("orb_models")
from backbones.orbs import (
    NEW,
    SMALL,
    default_dtype,
    orb_calculator,
    orb_model,
    with_dispersion,
)


FRAMES = {name: contract_frames()[name] for name in ("molecule", "crystal", "atom")}
LIMITS = Policy([Threshold("force_delta", suspect=1.0, unreliable=2.0)])
BOTH = ["energy", "forces", "conservative_forces"]


@pytest.fixture
def _double():
    with default_dtype(torch.float64):
        yield


def test_contract_in_float32():
    frames = {name: FRAMES[name] for name in ("molecule", "crystal")}
    check_backbone(lambda: orb_calculator(orb_model(dtype=torch.float32)), frames)


class TestBothForces:
    @pytest.mark.usefixtures("_double")
    @pytest.mark.parametrize("atoms", [rattled(), salt()], ids=["molecule", "crystal"])
    def test_results_stay_and_one_pass_is_run(self, atoms):
        bare = orb_calculator()
        bare.calculate(atoms)
        with counted_calls() as calls:
            calc = ReliableCalculator(
                orb_calculator(), signals=[ForceDelta()], policy=LIMITS
            )
            calc.get_property("forces", atoms)
        assert calls["MoleculeGNS"] == 1
        for key, value in bare.results.items():
            close(calc.results[key], value, FLOAT64)

    def test_results_stay_in_float32_crystals(self):
        atoms = salt()
        bare = orb_calculator(orb_model(dtype=torch.float32))
        bare.calculate(atoms)
        got = tap(orb_calculator(orb_model(dtype=torch.float32)))(atoms, BOTH).results
        for key in ("forces", "stress"):
            close(got[key], bare.results[key], NETWORK)

    @pytest.mark.usefixtures("_double")
    def test_force_delta_is_the_root_mean_square_of_the_difference(self):
        atoms = salt()
        prediction = tap(orb_calculator())(atoms, BOTH)
        apart = (prediction.direct_forces - prediction.conservative_forces).numpy()
        apart -= apart.mean(axis=0)
        calc = ReliableCalculator(
            orb_calculator(), signals=[ForceDelta()], policy=LIMITS
        )
        calc.get_property("forces", atoms)
        expected = np.sqrt(np.sum(apart**2) / (3 * len(atoms)))
        close(calc.results["force_delta"], expected, FLOAT64)
        per_atom = calc.results["force_deltas"]
        close(np.sqrt(np.mean(per_atom**2)), expected, FLOAT64)
        assert calc.results["stress_delta"] > 0

    @pytest.mark.usefixtures("_double")
    def test_removed_parts_are_removed_from_both_forces(self):
        atoms = rattled()
        calculator = orb_calculator(orb_model(seed=9))  # the other ones do not change
        got = tap(calculator)(atoms, BOTH)
        assert got.projected == {"net_force", "net_torque"}
        assert tap(calculator).predict_many([atoms, atoms])[1].projected
        assert tap(calculator).differentiable(atoms).projected == got.projected
        assert RotationAverage(calculator, 2)(atoms, BOTH).projected == got.projected
        off = replace(got, direct_forces=got.direct_forces + 0.5)
        risks = [float(ForceDelta()(each).risk) for each in (got, off)]
        assert risks[1] == pytest.approx(risks[0], rel=1e-9)
        head = calculator.model.heads["forces"]
        head.remove_mean = head.remove_torque_for_nonpbc_systems = False
        assert tap(calculator)(atoms, BOTH).projected == frozenset()

    def test_no_backward_pass_without_a_request(self):
        calc = ReliableCalculator(
            orb_calculator(orb_model(dtype=torch.float32)),
            signals=[MaxForce()],
            policy=Policy([Threshold("max_force", 1.0, 2.0)]),
        )
        prediction = calc.backbone(rattled(), calc.wanted())
        assert prediction.conservative_forces is None
        assert prediction.direct_forces is not None

    def test_a_compiled_predict_is_left_as_it_was(self):
        model = orb_model(dtype=torch.float32)
        tap(orb_calculator(model))(rattled(), BOTH)
        assert "predict" not in vars(model)
        calculator = orb_calculator(model)
        tap(calculator)(rattled(), BOTH)
        copy.deepcopy(calculator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
def test_a_compiled_model_gives_both_forces_too():
    eager = orb_model(dtype=torch.float32)
    compiled = copy.deepcopy(eager)
    compiled.compile(mode="default", dynamic=True)
    for atoms in (salt(), rattled()):
        expected = tap(orb_calculator(eager))(atoms, BOTH)
        backbone = tap(orb_calculator(compiled))
        got = backbone(atoms, BOTH)
        assert backbone.passes == 1
        for name in ("features", "direct_forces", "conservative_forces"):
            one, other = getattr(got, name), getattr(expected, name)
            close(one, other, NETWORK)
        assert backbone.differentiable(atoms).conservative_forces.requires_grad


def test_a_sum_with_dispersion_is_tapped_at_its_regressor():
    atoms = rattled()
    model = orb_model(dtype=torch.float32)
    alone = tap(orb_calculator(model))(atoms, BOTH)
    whole = tap(orb_calculator(with_dispersion(model)))(atoms, BOTH)
    close(whole.results["energy"], alone.energy - 1.0, NETWORK, of=len(atoms))
    close(whole.features, alone.features, NETWORK)
    close(whole.conservative_forces, alone.conservative_forces, NETWORK)


def test_features_change_under_rotation_as_declared():
    backbone = tap(orb_calculator(orb_model(dtype=torch.float32)))
    atoms = rattled()
    before = backbone(atoms, BOTH).features
    atoms.rotate(61.0, (1, 2, 3))
    moved = (backbone(atoms, BOTH).features - before).abs().mean() / before.abs().mean()
    assert not backbone.invariant_features
    assert moved > 1e-3


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (Atoms("Si2", [[0, 0, 0], [2.3, 0, 0]], cell=[9] * 3, pbc=[1, 1, 0]), "pbc"),
        (Atoms("H", info={"charge": 1}), "charge and spin"),
    ],
)
def test_unsupported_structures_are_refused(atoms, words):
    with pytest.raises(BackboneError, match=words):
        tap(orb_calculator(orb_model(dtype=torch.float32)))(atoms, BOTH)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("atoms", [rattled(), salt()], ids=["molecule", "crystal"])
def test_the_differentiable_entry_is_the_tapped_pass(atoms):
    backbone = tap(orb_calculator())
    tapped = backbone(atoms, BOTH)
    graph = backbone.differentiable(atoms)
    close(graph.energy, tapped.energy, FLOAT64)
    for name in ("direct_forces", "conservative_forces", "features"):
        close(getattr(graph, name), getattr(tapped, name), FLOAT64)


@pytest.mark.usefixtures("_double")
@pytest.mark.skipif(not NEW, reason="OrbMol v2 came with orb-models 0.7")
def test_a_model_with_a_coulomb_term_is_tapped_and_not_differentiated():
    """Its energy also reads charges: a pass of heads would omit these."""
    frames = {name: FRAMES[name].copy() for name in ("molecule", "atom")}
    for atoms in frames.values():
        atoms.info.update(charge=0, spin=1)
    model = orb_model("orbmol-v2")
    # charges in 1/r: the finite difference itself is good to 1e-5 eV/Å
    check_backbone(lambda: orb_calculator(model), frames, force_atol=1e-5, rtol=1e-6)
    backbone = tap(orb_calculator(model))
    prediction = backbone(frames["molecule"], ["energy"])
    assert prediction.features.shape[1] == SMALL["latent_dim"]
    assert backbone.feature_dim == SMALL["latent_dim"]
    with pytest.raises(BackboneError, match="Coulomb term"):
        backbone.differentiable(frames["molecule"])


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.array])
def test_numpy_numbers_of_charge_and_spin_are_read_as_python_s(kind):
    backbone = tap(orb_calculator(orb_model(dtype=torch.float32)))
    plain, atoms = rattled(), rattled()
    plain.info |= {"charge": 1, "spin": 2}
    atoms.info |= {"charge": kind(1), "spin": kind(2)}
    expected = backbone(plain, ["energy", "forces"])
    close(backbone(atoms, ["energy", "forces"]).forces, expected.forces, NETWORK)
    for got in backbone.predict_many([atoms, atoms]):
        close(got.forces, expected.forces, NETWORK)
    assert isinstance(atoms.info["charge"], np.generic | np.ndarray)
