"""`tap` finds the one model, and refuses others with a reason."""

from __future__ import annotations

import importlib
import shutil
import sys

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.calculators.mixing import SumCalculator
from backbones.toys import ModuleCalculator, Springs, mace_on_shared_models
from builders import rattled

from uqcalc import MaxForce, Policy, ReliableCalculator, Threshold, tap
from uqcalc.errors import BackboneError
from uqcalc.testing import check_backbone


WANTED = ["energy", "forces"]


@pytest.mark.parametrize(
    ("calculator", "module", "message"),
    [
        (EMT(), None, r"can be tapped \(.*MACECalculator.*got EMT"),
        ("mace", None, "must be an ASE calculator, got str; pass an instance"),
        (None, None, "must be an ASE calculator, got NoneType"),
        (ModuleCalculator(), None, r'got ModuleCalculator.*module="model.readout"'),
        (ModuleCalculator(), "model.head", r"no 'head'.*\['readout', 'last'\]"),
        (ModuleCalculator(), "results", "got 'results', which is a dict"),
        (SumCalculator([Springs(), Springs()]), None, "got SumCalculator"),
    ],
)
def test_refusals(calculator, module, message):
    with pytest.raises(BackboneError, match=message):
        tap(calculator, module=module)


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("NequIPCalculator", "nequip.integrations.ase", "load the model uncompiled"),
        ("TPCalculator", "tensorpotential.calculator", "GRACE runs in TensorFlow"),
        ("DP", "deepmd.calculator", "an evaluation of their own"),
    ],
)
def test_calculators_without_descriptors_are_refused_with_the_reason(
    name, module, words
):
    kind = type(name, (EMT,), {"__module__": module})
    with pytest.raises(BackboneError, match=f"{name} cannot be tapped: .*{words}"):
        tap(SumCalculator([kind(), Springs()]))


def test_refuses_a_sum_of_two_models():
    both = SumCalculator([mace_on_shared_models(0), mace_on_shared_models(1)])
    with pytest.raises(
        BackboneError, match="one calculator that can be tapped, got 2 in Sum"
    ):
        tap(both)


def test_a_backbone_is_its_own_tap():
    backbone = tap(mace_on_shared_models(0))
    assert tap(backbone) is backbone


def test_module_with_other_rows_than_atoms_is_refused():
    backbone = tap(ModuleCalculator(), module="model.last")
    assert tap(ModuleCalculator(), module="model.readout.0").feature_dim is None
    assert backbone(rattled("H2O"), WANTED).features.shape == (3, 1)
    calculator = ModuleCalculator()
    calculator.model.readout.append(torch.nn.Flatten(0))
    calculator.model.last = torch.nn.Identity()
    with pytest.raises(BackboneError, match=r"must have shape \(3, .*one row for each"):
        tap(calculator, module="model.readout")(rattled("H2O"), WANTED)


def test_tap_that_is_called_twice_a_geometry_is_refused():
    calculator = ModuleCalculator()
    once = calculator.forward

    def twice(atoms, positions):
        return 0.5 * (once(atoms, positions) + once(atoms, positions))

    calculator.forward = twice
    with pytest.raises(BackboneError, match=r"called 1 time\(s\).*got 2"):
        tap(calculator, module="model.readout")(rattled("H2O"), WANTED)


class TestSum:
    """The user gets results of the sum; the tap reads the model."""

    def test_is_called_although_the_model_uses_its_cache(self):
        atoms = rattled()
        mace = mace_on_shared_models(0)
        backbone = tap(SumCalculator([mace, Springs()]))
        first = backbone(atoms, WANTED)
        second = backbone(atoms, WANTED)
        assert backbone.passes == 2
        assert torch.equal(first.features, second.features)
        moved = rattled(seed=5)
        moved.calc = mace
        moved.get_potential_energy()  # the user calls the part directly
        third = backbone(moved.copy(), WANTED)
        assert backbone.passes == 3
        assert torch.equal(
            third.features, tap(mace_on_shared_models(0))(moved, WANTED).features
        )

    def test_verdicts_of_a_sum_need_one_pass_a_geometry(self):
        calculator = ReliableCalculator(
            SumCalculator([mace_on_shared_models(0), Springs()]),
            signals=[MaxForce()],
            policy=Policy([Threshold("max_force", suspect=10.0, unreliable=20.0)]),
        )
        atoms = rattled()
        atoms.calc = calculator
        for _ in range(3):
            atoms.get_forces()
            atoms.get_potential_energy()
            atoms.rattle(0.01, seed=2)
        assert calculator.backbone.passes == 3


class TestSharing:
    """Many wrappers around one calculator, as in a band of images."""

    def test_each_wrapper_sees_its_own_pass_only(self):
        shared = mace_on_shared_models(0)
        wrappers = [tap(shared) for _ in range(3)]
        images = [rattled(seed=s) for s in range(3)]
        for _ in range(2):
            got = [w(a, WANTED) for w, a in zip(wrappers, images, strict=True)]
        assert [w.passes for w in wrappers] == [2, 2, 2]
        for image, prediction in zip(images, got, strict=True):
            alone = tap(mace_on_shared_models(0))(image, WANTED)
            assert torch.equal(prediction.features, alone.features)
            assert np.array_equal(prediction.forces, alone.forces)

    def test_pass_inside_an_armed_tap_is_not_recorded(self):
        shared = mace_on_shared_models(0)
        outer, inner = tap(shared), tap(shared)
        atoms, other = rattled(seed=1), rattled("H2O")
        with outer.armed() as captured:
            inner(other, WANTED)
            shared.calculate(atoms)
        assert [len(rows) for rows in captured.features] == [3, 6]
        assert inner.passes == 1
        assert outer.passes == 0


class TestThirdParty:
    """A package that declares an entry point is found by its metadata alone."""

    MODULE = """
from backbones.toys import ModuleCalculator
from uqcalc.backbones.base import Backbone
from uqcalc.backbones.hooks import listen_to_output

class TheirCalculator(ModuleCalculator):
    pass

class TheirBackbone(Backbone):
    name = "theirs"

    def __init__(self, calculator, model_calculator):
        super().__init__(
            calculator, model_calculator, feature_dim=5, fingerprint="theirs:0"
        )

    def armed(self):
        readout = self.model_calculator.model.readout
        return listen_to_output(readout, lambda output: output)
"""
    ENTRY_POINTS = "[uqcalc.backbones]\nTheirCalculator = their_uq:TheirBackbone\n"

    @pytest.fixture
    def theirs(self, tmp_path, monkeypatch):
        """Install it, as pip would: a module and a folder of metadata."""
        (tmp_path / "their_uq.py").write_text(self.MODULE, encoding="utf-8")
        metadata = tmp_path / "their_uq-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: their-uq\nVersion: 1.0\n", encoding="utf-8"
        )
        (metadata / "entry_points.txt").write_text(self.ENTRY_POINTS, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        yield importlib.import_module("their_uq")
        del sys.modules["their_uq"]

    def test_is_tapped(self, theirs):
        backbone = tap(theirs.TheirCalculator())
        assert type(backbone) is theirs.TheirBackbone
        assert backbone(rattled("H2O"), WANTED).features.shape == (3, 5)
        check_backbone(theirs.TheirCalculator, [rattled("H2O")])

    def test_is_tapped_inside_a_sum(self, theirs):
        own = theirs.TheirCalculator()
        backbone = tap(SumCalculator([own, Springs()]))
        assert type(backbone) is theirs.TheirBackbone
        assert backbone.model_calculator is own

    def test_is_named_if_nothing_is_found(self, theirs):
        with pytest.raises(BackboneError, match=r"TheirCalculator.* got EMT"):
            tap(EMT())

    def test_is_unknown_without_its_metadata(self, theirs, tmp_path):
        shutil.rmtree(tmp_path / "their_uq-1.0.dist-info")
        importlib.invalidate_caches()
        with pytest.raises(BackboneError, match="got TheirCalculator"):
            tap(theirs.TheirCalculator())
