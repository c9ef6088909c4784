"""Special properties of MatGL: layers by kind of model, and the unit of the stress."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ase import units
from backbones.matgls import ELEMENTS, KINDS, matgl
from builders import rattled, salt
from closeness import NETWORK, close

from uqcalc import MaxForce, Policy, ReliableCalculator, Threshold, tap
from uqcalc.errors import BackboneError
from uqcalc.testing import contract_frames
from uqcalc.testing.instruments import counted_calls


# also hides a message of nvalchemi-toolkit-ops 0.5 at the import of matgl 4.1.2
pytest.importorskip("matgl.ext.ase")
from matgl import models


WANTED = ["energy", "forces"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_provides(kind):
    backbone = tap(matgl(kind))
    charges = {"charges"} if kind == "QET" else set()
    assert backbone.provides == charges | {
        "features",
        "energy",
        "forces",
        "conservative_forces",
        "stress",
        "conservative_stress",
    }
    atoms = salt()
    with counted_calls() as calls:
        got = backbone(atoms, WANTED)
    assert calls[kind] == 1
    assert got.features.shape == (8, KINDS[kind][1])
    if charges:
        np.testing.assert_array_equal(got.charges, got.results["charges"])
        assert got.charges.abs().max() > 0


@pytest.mark.parametrize("kind", ["TensorNet", "M3GNet", "CHGNet", "SO3Net"])
def test_features_rebuild_the_energy(kind):
    """The readout, applied by hand to the tapped features, gives the energy."""
    backbone = tap(matgl(kind, data_mean=0.5, data_std=2.0))
    got = backbone(rattled(), WANTED)
    readout = backbone.model_calculator.potential.model.final_layer
    with torch.no_grad():
        energies = readout(got.features)
    expected = 0.5 + 2.0 * float(energies.sum())
    close(got.energy, expected, NETWORK, of=len(got.numbers))  # 1 eV an atom


class TestStress:
    def test_in_gigapascal_stays_in_results_and_is_not_provided(self):
        atoms = salt()
        bare = matgl(unit="GPa")
        bare.calculate(atoms)
        pascals = tap(matgl(unit="GPa"))
        ours = pascals(atoms, WANTED)
        np.testing.assert_array_equal(ours.results["stress"], bare.results["stress"])
        assert "stress" not in pascals.provides
        theirs = tap(matgl())(atoms, WANTED)
        close(ours.conservative_stress, theirs.conservative_stress, NETWORK)
        close(ours.results["stress"] * units.GPa, theirs.results["stress"], NETWORK)

    def test_is_absent_if_the_potential_gives_none(self):
        backbone = tap(matgl(calc_stresses=False))
        assert not backbone.provides & {"stress", "conservative_stress"}
        got = backbone(salt(), WANTED)
        assert got.conservative_stress is None
        assert "stress" not in got.results


class TestPassLeavesNothing:
    def test_stored_layers_have_no_graph(self):
        """MatGL keeps layers with their graph, and cannot be copied after use."""
        calculator = matgl("M3GNet")
        model = calculator.potential.model
        tap(calculator)(rattled(), WANTED)
        layers = model.feature_dict
        assert not layers["final"].requires_grad
        assert not layers["gc_1"]["node_feat"].requires_grad
        assert not any(module._forward_hooks for module in model.modules())
        copy.deepcopy(calculator)


class TestBatch:
    def test_has_the_charge_of_each_frame(self):
        backbone = tap(matgl("QET"))
        frames = [salt(), rattled(), rattled("H2O")]
        frames[1].set_initial_charges([1.0, 0, 0, 0, 0, 0])
        together = backbone.predict_many(frames)
        assert backbone.passes == 1
        for many, frame in zip(together, frames, strict=True):
            one = backbone(frame, WANTED)
            close(many.energy, one.energy, NETWORK, of=len(frame))  # 1 eV an atom
            total = float(frame.get_initial_charges().sum())
            close(many.charges.sum(), total, NETWORK, of=many.charges)
            close(many.charges, one.charges, NETWORK)

    def test_is_not_made_where_the_calculator_has_a_state_of_its_own(self):
        calculator = matgl("QET")
        calculator.total_charge = torch.tensor(1.0)
        backbone = tap(calculator)
        charges = [p.charges for p in backbone.predict_many([salt(), rattled()])]
        assert backbone.passes == 2
        close([float(c.sum()) for c in charges], [1.0, 1.0], NETWORK)


def test_a_change_of_the_charge_is_evaluated():
    """ASE compares initial charges, so a change of them is evaluated."""
    atoms = rattled()
    atoms.calc = ReliableCalculator(
        matgl("QET"),
        signals=[MaxForce()],
        policy=Policy([Threshold("max_force", suspect=10.0, unreliable=20.0)]),
    )
    energies = [atoms.get_potential_energy()]
    atoms.set_initial_charges([1.0, 0, 0, 0, 0, 0])
    energies.append(atoms.get_potential_energy())
    atoms.info["note"] = "step 12"
    energies.append(atoms.get_potential_energy())
    assert atoms.calc.backbone.passes == 2
    assert energies[0] != energies[1] == energies[2]


class TestRefusals:
    def test_of_other_models(self):
        model = models.MEGNet(element_types=ELEMENTS)
        model.element_types, model.cutoff = ELEMENTS, 4.0
        calculator = matgl()
        calculator.potential.model = model
        with pytest.raises(BackboneError, match=r"one of \['CHGNet', .*got MEGNet"):
            tap(calculator)

    def test_of_compiled_models(self):
        calculator = matgl()
        model = calculator.potential.model
        calculator.potential.model = torch.compile(model, backend="eager")
        with pytest.raises(BackboneError, match="compile_model=False"):
            tap(calculator)

    @pytest.mark.parametrize("option", ["calc_forces", "debug_mode"])
    def test_of_potentials_without_forces(self, option):
        options = {option: option == "debug_mode", "calc_stresses": False}
        with pytest.raises(BackboneError, match="must give forces"):
            tap(matgl(**options))

    def test_of_films_before_any_pass(self):
        backbone = tap(matgl())
        with pytest.raises(BackboneError, match=r"MatGL, got \[True, True, False\]"):
            backbone(contract_frames()["film"], WANTED)
        assert backbone.passes == 0


class TestFingerprint:
    def test_tells_models_apart(self):
        names = {
            tap(matgl()).fingerprint,
            tap(matgl(seed=1)).fingerprint,
            tap(matgl("QET")).fingerprint,
            tap(matgl(data_mean=0.5)).fingerprint,
            tap(matgl(data_std=2.0)).fingerprint,
            tap(matgl(element_refs=[1.0, 2.0, 3.0, 4.0, 5.0])).fingerprint,
        }
        assert len(names) == 6

    def test_is_of_the_model_alone(self):
        doubled = matgl()
        doubled.potential.double()
        names = {
            tap(matgl()).fingerprint,
            tap(matgl(unit="GPa")).fingerprint,
            tap(doubled).fingerprint,
            tap(matgl(unit="GPa", use_voigt=True)).fingerprint,
        }
        assert len(names) == 1
