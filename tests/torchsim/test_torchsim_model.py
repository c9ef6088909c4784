"""A batch is judged as `ReliableCalculator` judges each of its systems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from builders import mace_calculator, tiny_probe
from closeness import NETWORK, close, host

import uqcalc
from uqcalc import Level, MaxForce, Policy, ReliableCalculator, Threshold, tap
from uqcalc.errors import BackboneError, ProbeError
from uqcalc.models.bundled import bare_calculator


pytest.importorskip("torch_sim")

import torch_sim as ts
from torch_sim.models.interface import SumModel
from torch_sim.models.lennard_jones import LennardJonesModel
from torchsim.batches import CPU, Reach, Spoiled, bundled, molecules, tiny

from uqcalc.torchsim import ReliableModel, numbered
from uqcalc.torchsim.systems import settle


NAMES = ("CH3OH", "H2O", "C6H6", "CH4")


@pytest.fixture(scope="module")
def model():
    return ReliableModel(bundled(), probe="auto")


@pytest.fixture(scope="module")
def calculator():
    return ReliableCalculator(bare_calculator(dtype="float64"), probe="auto")


def state_of(frames, model):
    return ts.initialize_state(frames, CPU, model.dtype)


def same(output, frames, calculator):
    """Assert that each system has the results of the calculator.

    Probabilities agree to 1e-5, other numbers to the rounding of the probe.
    """
    sizes = [len(frame) for frame in frames]
    for k, frame in enumerate(frames):
        theirs = calculator.assess(frame).results()
        theirs.pop("probe_importance", None)
        for key, value in theirs.items():
            ours = output[key].split(sizes)[k] if np.ndim(value) else output[key][k]
            relative = 0 if "reliabilit" in key else NETWORK
            np.testing.assert_allclose(
                host(ours), host(value), rtol=relative, atol=1e-5, err_msg=key
            )


def test_same_numbers_as_the_calculator_in_one_pass(model, calculator, monkeypatch):
    frames = molecules(*NAMES)
    frames[3].positions[1] += 1.0  # a C-H bond is broken
    state = state_of(frames, model)
    model.model(state)  # the first run of TorchScript functions has another rounding
    model.model(state)
    bare = model.model(state)
    calls = []
    handle = model.model.register_forward_hook(lambda *_: calls.append(1))
    output = model(state)
    handle.remove()
    assert len(calls) == 1
    for key, value in bare.items():
        assert torch.equal(output[key], value), key
    same(output, frames, calculator)
    assert {int(x) for x in output["reliability_level"]} >= {0, 2}
    assert not any(value.requires_grad for value in output.values())


def test_float32_gives_the_same_within_its_rounding(calculator):
    single = ReliableModel(bundled(torch.float32), probe="auto")
    frames = molecules(*NAMES)
    output = single(state_of(frames, single))
    for k, frame in enumerate(frames):
        theirs = calculator.assess(frame).results()["probe_reliability"]
        assert float(output["probe_reliability"][k]) == pytest.approx(theirs, abs=2e-3)


def test_maces_own_class_gives_the_same(calculator):
    """TorchSim's class from 0.6.1 on, which passes no features on."""
    from mace.calculators.mace_torchsim import MaceTorchSimModel

    from uqcalc.models.bundled import load_model

    network = load_model().to(torch.float64)
    model = ReliableModel(MaceTorchSimModel(network, device=CPU), probe="auto")
    frames = molecules(*NAMES)
    same(model(state_of(frames, model)), frames, calculator)


def test_integrators_store_the_extras(model):
    state = numbered(molecules("CH3OH", "H2O"), model)
    state = ts.nve_init(state, model, kT=0.01)
    assert state.probe_reliability.shape == state.reliability_level.shape == (2,)
    assert state.probe_reliabilities.shape == (9,)
    before = state.probe_reliability.clone()
    state = ts.nve_step(state, model, dt=0.05)
    layout = model.last.layout
    state = ts.nve_step(state, model, dt=0.05)
    assert model.last.layout is layout  # not copied to the host again
    assert not torch.equal(before, state.probe_reliability)
    assert state.uqcalc_system.tolist() == [0, 1]


def test_one_transfer_at_a_step_and_none_where_nothing_is_read(model, monkeypatch):
    from uqcalc.torchsim import model as module

    transfers = []
    fetch = module.fetch
    monkeypatch.setattr(module, "fetch", lambda t: transfers.append(1) or fetch(t))
    every = ReliableModel(model.model, probe="auto", interval=3)
    state = state_of(molecules(*NAMES), model)
    outputs = [every(state) for _ in range(5)]
    assert len(transfers) == 2
    levels = [output["reliability_level"].tolist() for output in outputs]
    assert levels[1] == levels[2] == levels[4] == [-1] * 4
    assert levels[0] == levels[3]
    assert outputs[1]["probe_reliability"].isnan().all()
    assert outputs[1]["probe_reliabilities"].isnan().all()
    assert outputs[1].keys() == outputs[0].keys()
    assert every.last is None


def test_another_batch_is_read_at_once(model):
    every = ReliableModel(model.model, probe="auto", interval=100)
    for names in (("CH4",), ("CH4", "H2O"), ("CH4",)):
        output = every(state_of(molecules(*names), model))
        assert (output["reliability_level"] >= 0).all()


def test_results_of_a_system_do_not_depend_on_its_batch(model):
    frames = molecules(*NAMES)
    together = model(state_of(frames, model))
    for k, frame in enumerate(frames):
        alone = model(state_of([frame], model))
        for key in ("probe_reliability", "probe_novelty"):
            close(alone[key][0], together[key][k], NETWORK)


def test_a_single_atom_is_never_reliable(model, calculator):
    lone = Atoms("H", [[0, 0, 0]])
    frames = [molecule("CH4"), lone]
    output = model(state_of(frames, model))
    assert output["reliability_level"][1] >= Level.SUSPECT
    same(output, frames, calculator)
    alone = numbered([lone, lone], model)  # as many atoms as systems
    alone.store_model_extras(model(alone))
    assert (alone.reliability_level >= Level.SUSPECT).all()
    assert "probe_reliability" in alone.atom_extras
    settle(alone, model.system_keys)
    assert alone.system_extras["probe_reliability"].shape == (2,)
    assert "probe_reliabilities" in alone.atom_extras


def test_nan_forces_of_one_system(calculator):
    broken = bundled()
    sound = ReliableModel(broken, probe="auto")
    frames = molecules(*NAMES)
    before = sound(state_of(frames, sound))
    broken.model = Spoiled(broken.model, 1)
    after = sound(state_of(frames, sound))
    assert after["reliability_level"][1] == Level.UNRELIABLE
    assert after["probe_reliability"].isnan().tolist() == [False, True, False, False]
    assert "forces" in sound.last.assessments[1].verdict.reasons[0]
    others = [0, 2, 3]
    close(after["probe_reliability"][others], before["probe_reliability"][others], 1e-5)
    assert torch.equal(
        after["reliability_level"][others], before["reliability_level"][others]
    )


def test_an_element_without_labels_is_unreliable_in_its_system_only():
    calc = mace_calculator()
    probe = tiny_probe(tap(calc), elements=[1, 6])
    model = ReliableModel(tiny(), probe=probe)
    output = model(state_of(molecules("CH4", "H2O"), model))
    assert output["probe_reliability"].isnan().tolist() == [False, True]
    assert output["reliability_level"][1] == Level.UNRELIABLE
    same(output, molecules("CH4", "H2O"), ReliableCalculator(calc, probe=probe))


def test_forces_that_vanish_by_symmetry_are_not_reliable():
    probe = tiny_probe(tap(mace_calculator()), bias=10.0)
    model = ReliableModel(tiny(stress=True), probe=probe)
    frames = [bulk("NaCl", "rocksalt", a=5.64, cubic=True) for _ in range(2)]
    frames[1].rattle(0.05, seed=1)
    output = model(state_of(frames, model))
    assert output["reliability_level"].tolist()[0] == Level.SUSPECT
    same(output, frames, ReliableCalculator(mace_calculator(), probe=probe))


def test_signals_of_features_and_forces():
    policy = Policy([Threshold("max_force", suspect=1e3, unreliable=1e4)])
    calc = ReliableCalculator(mace_calculator(), None, [MaxForce()], policy)
    model = ReliableModel(tiny(), None, [MaxForce()], policy)
    frames = molecules("CH4", "H2O")
    same(model(state_of(frames, model)), frames, calc)


def test_a_charge_that_the_model_does_not_read_is_suspect(model):
    state = state_of(molecules("CH4", "CH4"), model)
    state.system_extras["charge"] = torch.tensor([0.0, 1.0])
    output = model(state)
    levels = output["reliability_level"].tolist()
    assert levels[1] >= Level.SUSPECT > levels[0]


def test_in_a_sum_the_tapped_model_is_judged(model):
    other = LennardJonesModel(sigma=3.0, epsilon=0.01, device=CPU, dtype=torch.float64)
    joined = ReliableModel(SumModel(model.model, other), probe="auto")
    state = state_of(molecules("CH4", "H2O"), model)
    ours, alone = joined(state), model(state)
    close(ours["energy"], alone["energy"] + other(state)["energy"])
    close(ours["probe_reliability"], alone["probe_reliability"], 1e-5)
    results = joined.last.predictions[0].results
    assert results["energy"] == pytest.approx(float(ours["energy"][0]))


def test_models_that_cannot_be_judged_are_refused():
    with pytest.raises(BackboneError, match="MaceModel"):
        ReliableModel(LennardJonesModel(device=CPU))
    probe = tiny_probe(tap(mace_calculator(1)))
    with pytest.raises(ProbeError, match="belong to this backbone"):
        ReliableModel(tiny(), probe=probe)
    signals = [uqcalc.StressSpread()]
    with pytest.raises(ValueError, match="committee"):
        ReliableModel(tiny(), None, signals, Policy([Threshold("stress_spread", 1, 2)]))
    region = uqcalc.ProbeSignal(tiny_probe(tap(mace_calculator())), atoms=[0])
    with pytest.raises((ValueError, ProbeError)):
        ReliableModel(tiny(), None, [region])


def test_the_wrapped_model_is_left_as_it_was():
    inner = tiny()
    flags = [p.requires_grad for p in inner.model.parameters()]
    before = torch.get_default_dtype()
    ReliableModel(inner, None, [MaxForce()], Policy([Threshold("max_force", 1, 2)]))
    assert [p.requires_grad for p in inner.model.parameters()] == flags
    assert torch.get_default_dtype() is before


def test_disabled_model_adds_no_results_and_keeps_no_old_ones(model):
    off = ReliableModel(model.model, probe="auto", enabled=False)
    state = state_of(molecules("CH4"), model)
    assert off(state).keys() == model.model(state).keys()
    off.enabled = True
    assert (off(state)["reliability_level"] >= 0).all()
    off.enabled = False
    assert off(state)["reliability_level"].tolist() == [-1]
    assert off.last is None


def test_a_signal_that_is_not_due_leaves_no_old_value():
    class Seldom(Reach):
        interval = 2

    policy = Policy([Threshold("reach", suspect=10.0, unreliable=20.0)])
    model = ReliableModel(tiny(), None, [Seldom()], policy, sanity=False)
    state = state_of(molecules("CH4", "H2O"), model)
    found = [model(state)["reach"].isnan().tolist() for _ in range(3)]
    assert found == [[False] * 2, [True] * 2, [False] * 2]
    assert model.last.assessments[0].verdict.skipped == ()
