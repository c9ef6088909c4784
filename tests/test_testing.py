"""The public contract checks find the faults that they test."""

from __future__ import annotations

import pickle
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from backbones.toys import ModuleCalculator, mace_on_shared_models
from builders import rattled, tiny_probe

from uqcalc import ForceSpread, MaxForce, ProbeSignal, UqcalcError, tap
from uqcalc.backbones.base import Capture
from uqcalc.signals.base import TensorReading
from uqcalc.testing import ContractError, check_backbone, check_signal, contract_frames
from uqcalc.types import Backbone, Prediction


FRAMES = [rattled("CH3OH"), rattled("H2O")]


class Plain(Backbone):
    """A short, correct backbone of a third party."""

    name = "plain"

    def __init__(self, calculator=None, identity="plain:0"):
        own = calculator or ModuleCalculator()
        super().__init__(own, own, feature_dim=5, fingerprint=identity)

    def note(self, output):
        return output.detach()

    @contextmanager
    def armed(self):
        captured = Capture([], [])

        def hook(_module, _args, output):
            captured.features.append(self.note(output))

        handle = self.model_calculator.model.readout.register_forward_hook(hook)
        yield captured
        handle.remove()


class KeepsGraph(Plain):
    def note(self, output):
        return output


class Stale(Plain):
    def note(self, output):
        kept = self.__dict__.setdefault("kept", {})
        return kept.setdefault(len(output), output.detach())


class Gossips(Plain):
    """Records without the lock, in a batch: passes of other threads are recorded."""

    def armed(self):
        time.sleep(0.02)
        return super().armed()

    def predict_many(self, frames, wanted=("energy", "forces")):
        with super().armed() as captured:
            time.sleep(0.06)
            for frame in frames:
                self.calculator.calculate(frame, ["energy", "forces"], ["positions"])
        rows = captured.features[: len(frames)]
        return [
            replace(self(frame, wanted), features=own)
            for frame, own in zip(frames, rows, strict=True)
        ]


class CountsRows(Plain):
    def note(self, output):
        return output.detach() + torch.arange(len(output))[:, None]


class PeeksAtCoordinates(Plain):
    """Features that are computed from ``frame(positions)``."""

    def armed(self):
        calculator = self.calculator
        self.note = lambda output: (
            output.detach()
            + torch.as_tensor(self.frame(calculator.atoms.positions))[:, None]
        )
        return super().armed()


class DependsOnOrigin(PeeksAtCoordinates):
    def frame(self, positions):
        return positions[:, 0]


class DependsOnOrientation(PeeksAtCoordinates):
    def frame(self, positions):
        return (positions - positions.mean(axis=0))[:, 0]


class RunsTwice(Plain):
    @contextmanager
    def armed(self):
        with super().armed() as captured:
            yield captured
        if self.calculator.atoms is not None:
            positions = torch.as_tensor(self.calculator.atoms.positions)
            self.calculator.forward(self.calculator.atoms, positions)


class ChangesTheModel(Plain):
    @contextmanager
    def armed(self):
        model = self.calculator.model
        with super().armed() as captured:
            for parameter in model.parameters():
                parameter.data = parameter.data * (1 + 1e-12)
            yield captured


class ShufflesBatches(Plain):
    def predict_many(self, frames, wanted=("energy", "forces")):
        alone = super().predict_many(frames, wanted)
        return [replace(p, features=p.features.flip(0)) for p in alone]


class PromisesCharges(Plain):
    def __init__(self):
        super().__init__()
        self.provides |= {"charges"}


class LeavesHook(Plain):
    @contextmanager
    def armed(self):
        self.calculator.model.register_forward_hook(lambda *_: None)
        with super().armed() as captured:
            yield captured


class NewEachTime(Plain):
    def __init__(self):
        super().__init__(identity=f"plain:{id(self)}")


class Writes(ModuleCalculator):
    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        atoms.info["energy_seen"] = self.results["energy"]


class NotConservative(ModuleCalculator):
    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = 1.01 * self.results["forces"]


@pytest.mark.parametrize(
    ("make", "clause"),
    [
        (KeepsGraph, "detached"),
        (Stale, "own geometry"),
        (Gossips, "threads"),
        (CountsRows, "permutation"),
        (DependsOnOrigin, "translation"),
        (DependsOnOrientation, "rotation"),
        (RunsTwice, "passes"),
        (ChangesTheModel, "results"),
        (ShufflesBatches, "batches"),
        (PromisesCharges, "provides"),
        (LeavesHook, "copies"),
        (NewEachTime, "fingerprint"),
        (lambda: Plain(Writes()), "untouched"),
        (lambda: Plain(NotConservative()), "forces"),
    ],
)
def test_each_fault_of_a_backbone_is_named(make, clause):
    with pytest.raises(ContractError) as caught:
        check_backbone(make, FRAMES)
    assert caught.value.clause == clause, caught.value
    assert str(caught.value).startswith(f"{clause}: ")
    assert isinstance(caught.value, (UqcalcError, AssertionError))


def test_right_backbones_pass():
    check_backbone(Plain, FRAMES)
    assert pickle.dumps(ModuleCalculator())  # needed for the clause "copies"

    class Turning(DependsOnOrientation):
        invariant_features = False  # declared, so it is allowed

    check_backbone(Turning, FRAMES)


def test_limits_are_the_callers():
    def make():
        return Plain(NotConservative())

    check_backbone(make, FRAMES, force_atol=1.0)
    with pytest.raises(ContractError, match=r"must be -dE/dx to 1e-12 eV/Å, got"):
        check_backbone(Plain, FRAMES, force_atol=1e-12)
    with pytest.raises(ContractError, match="at least one structure"):
        check_backbone(Plain, [])


def test_contract_frames_are_fresh_and_cover_the_boundaries():
    frames = contract_frames()
    frames["film"].positions += 1.0
    assert not np.array_equal(frames["film"].positions, contract_frames()["film"])
    periodic = {name: tuple(atoms.pbc) for name, atoms in frames.items()}
    assert periodic["film"] == (True, True, False)
    assert len(frames["atom"]) == 1


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    backbone = tap(mace_on_shared_models(0, 1))
    return backbone(rattled(), ["energy", "forces"])


@pytest.fixture(scope="module")
def probe_signal() -> ProbeSignal:
    return ProbeSignal(tiny_probe(tap(mace_on_shared_models(0, 1))))


class Spy:
    """A correct signal; each subclass breaks one rule."""

    name = "spy"
    requires = frozenset({"features"})

    def __call__(self, prediction):
        per_atom = self.read(prediction.features)
        return self.reading(per_atom)

    def read(self, features):
        return features.norm(dim=1)

    def reading(self, per_atom):
        return TensorReading(
            "spy", per_atom.max(), "", {"spy_atoms": per_atom}, "spy_atoms"
        )


class SwallowsNaN(Spy):
    def read(self, features):
        return features.nan_to_num().norm(dim=1)


class Scribbles(Spy):
    def read(self, features):
        return features.abs_().norm(dim=1)


class ManyRisks(Spy):
    def reading(self, per_atom):
        return replace(super().reading(per_atom), risk=per_atom)


class TakesAKey(Spy):
    def reading(self, per_atom):
        return replace(super().reading(per_atom), results={"energies": per_atom})


class WrongShape(Spy):
    def reading(self, per_atom):
        return TensorReading(
            "spy", per_atom.max(), "", {"spies": per_atom[:, None]}, "spies"
        )


class NoSuchKey(Spy):
    def reading(self, per_atom):
        return replace(super().reading(per_atom), per_atom_key="elsewhere")


class OtherName(Spy):
    def reading(self, per_atom):
        return replace(super().reading(per_atom), signal="somebody")


class Words(Spy):
    def reading(self, per_atom):
        return TensorReading("spy", per_atom.max(), "", {"why": "because"})


class BareNumber(Spy):
    def reading(self, per_atom):
        return per_atom.max()


class ListsNeeds(Spy):
    requires = ("features",)


class Alternates(Spy):
    calls = 0

    def read(self, features):
        self.calls += 1
        return features.norm(dim=1) * self.calls


@pytest.mark.parametrize(
    "signal", [Spy(), MaxForce(), ForceSpread()], ids=lambda s: s.name
)
def test_right_signals_pass(signal, prediction):
    check_signal(signal, prediction)


@pytest.mark.parametrize("importance", [True, False])
def test_probe_signal_passes(probe_signal, importance, prediction):
    check_signal(ProbeSignal(probe_signal.probe, importance=importance), prediction)


@pytest.mark.parametrize(
    ("make", "clause"),
    [
        (SwallowsNaN, "nan"),
        (Scribbles, "pure"),
        (Alternates, "pure"),
        (ManyRisks, "risk"),
        (TakesAKey, "results"),
        (Words, "results"),
        (WrongShape, "per atom"),
        (NoSuchKey, "per atom"),
        (OtherName, "reading"),
        (BareNumber, "reading"),
        (ListsNeeds, "requires"),
    ],
)
def test_each_fault_of_a_signal_is_named(make, clause, prediction):
    own = replace(prediction, features=prediction.features.clone())
    with pytest.raises(ContractError) as caught:
        check_signal(make(), own)
    assert caught.value.clause == clause, caught.value
