"""Wrappers that share a model, in threads: the results of a serial run, no traces."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.mep import NEB
from ase.optimize import FIRE
from backbones.toys import ModuleCalculator, around, mace_on_shared_models
from builders import mace_calculator, rattled, salt, tiny_mace, tiny_probe
from toys import POLICY, OfGeometry, ToyBackbone, copper

from uqcalc import Committee, MaxForce, ReliableCalculator, RotationAverage, tap
from uqcalc.backbones.locks import held, models_in


FRAMES = [rattled("CH3OH", seed=seed, amount=0.1) for seed in range(12)]


@pytest.fixture(autouse=True)
def busy():
    """Let threads interrupt each other often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_threads(tasks, workers=4):
    """Run callables in a pool, all started at once, and return their results."""
    with ThreadPoolExecutor(workers) as pool:
        return [done.result(timeout=300) for done in [pool.submit(t) for t in tasks]]


def judged(calculator, frames):
    """Return energies, forces and risks with the calls of a usual script."""
    answers = []
    for frame in frames:
        atoms = frame.copy()
        atoms.calc = calculator
        risk = calculator.assess(atoms).readings[0].risk
        answers.append((atoms.get_potential_energy(), atoms.get_forces(), risk))
    return answers


def assert_same(ours, theirs, rtol):
    for (energy, forces, risk), (e, f, r) in zip(ours, theirs, strict=True):
        assert energy == pytest.approx(e, rel=rtol)
        np.testing.assert_allclose(forces, f, rtol=0, atol=rtol * np.abs(f).max())
        assert risk == pytest.approx(r, rel=1e-5)  # probes are float32


def state_of(calculator):
    """Return what taps could change: attributes, hooks, weights."""
    modules = [
        module
        for model in models_in(calculator)
        if isinstance(model, torch.nn.Module)
        for module in model.modules()
    ]
    hooks = [
        dict(value)
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("hooks")
    ]
    weights = [p.detach().clone() for module in modules for p in module.parameters()]
    return {*vars(calculator)}, [*map(id, modules)], hooks, weights


def assert_untouched(calculator, before):
    names, modules, hooks, weights = state_of(calculator)
    assert names == before[0]
    assert modules == before[1]
    assert hooks == before[2] == [{}] * len(hooks)
    for now, then in zip(weights, before[3], strict=True):
        assert torch.equal(now, then)


# the calculator, its wrapper, the frames, the tolerance
def wrap_mace(calculator):
    backbone = tap(calculator)
    return ReliableCalculator(backbone, tiny_probe(backbone))


def wrap_forces(calculator):
    return ReliableCalculator(tap(calculator), None, [MaxForce()], policy())


def policy():
    from uqcalc import Policy, Threshold

    return Policy([Threshold("max_force", 10.0, 20.0)])


@pytest.mark.parametrize("each", [20, pytest.param(250, marks=pytest.mark.slow)])
def test_a_thousand_evaluations_of_one_mace_equal_the_serial_ones(each):
    calculator = mace_calculator()
    expected = judged(wrap_mace(calculator), FRAMES)
    before = state_of(calculator)
    wrappers = [wrap_mace(calculator) for _ in range(4)]
    orders = [np.random.default_rng(i).integers(0, 12, each) for i in range(4)]

    def run(wrapper, order):
        return judged(wrapper, [FRAMES[i] for i in order])

    done = in_threads(
        [lambda w=w, o=o: run(w, o) for w, o in zip(wrappers, orders, strict=True)]
    )
    for answers, order in zip(done, orders, strict=True):
        assert_same(answers, [expected[i] for i in order], rtol=1e-9)
    assert_untouched(calculator, before)
    pickle.dumps(calculator)
    passes = [wrapper.backbone.passes for wrapper in wrappers]
    calculator.calculate(FRAMES[0], ["energy"], ["positions"])  # a bare pass
    assert [wrapper.backbone.passes for wrapper in wrappers] == passes


def test_many_threads_may_use_one_wrapper():
    wrapper = wrap_mace(mace_calculator())
    expected = judged(wrapper, FRAMES)
    wrapper.reset()
    jobs = [FRAMES[i % 12 : i % 12 + 1] for i in range(24)]

    def forces(frames):
        [frame] = frames
        return wrapper.get_property("forces", frame.copy())

    done = in_threads([lambda f=f: forces(f) for f in jobs])
    for index, found in enumerate(done):
        theirs = expected[index % 12][1]
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-9)


def chgnets():
    """Separate calculators around one network."""
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    with contextlib.redirect_stdout(io.StringIO()):
        model = CHGNet.load(use_device="cpu", verbose=False)
        return [CHGNetCalculator(model, use_device="cpu") for _ in range(4)]


def test_four_chgnets_around_one_network():
    import warnings

    calculators = chgnets()
    frames = [bulk("Cu") for _ in range(4)]
    for seed, frame in enumerate(frames):
        frame.rattle(0.1, seed=seed)
        frame.set_cell(frame.cell * (1 + 0.01 * seed), scale_atoms=True)
    expected = judged(wrap_forces(calculators[0]), frames)
    before, filters = state_of(calculators[1]), list(warnings.filters)
    wrappers = [wrap_forces(calculator) for calculator in calculators]
    done = in_threads([lambda w=w: judged(w, frames * 2) for w in wrappers])
    for answers in done:
        assert_same(answers, expected * 2, rtol=1e-5)
    assert_untouched(calculators[1], before)
    assert warnings.filters == filters


def test_two_precisions_at_once_leave_the_default_dtype():
    """MACE sets torch's default dtype in every pass, for all threads."""
    pairs = [
        (around([tiny_mace(seed=3, dtype=getattr(torch, d))], d), d)
        for d in ("float64", "float32")
    ]
    default = torch.get_default_dtype()
    expected = [judged(wrap_mace(c), FRAMES[:4]) for c, _ in pairs]
    wrappers = [wrap_mace(calculator) for calculator, _ in pairs]
    done = in_threads([lambda w=w: judged(w, FRAMES[:4] * 2) for w in wrappers])
    for answers, theirs, (_, dtype) in zip(done, expected, pairs, strict=True):
        assert_same(answers, theirs * 2, rtol=1e-9 if dtype == "float64" else 1e-4)
    assert torch.get_default_dtype() == default


def test_committees_and_averages_with_members_in_common_finish():
    """Members are locked in one order, for any order of the arguments."""
    one, other = mace_on_shared_models(0), mace_on_shared_models(1)

    def committee(*members):
        return wrap_forces_of(Committee(members))

    wrappers = [
        committee(one, other),
        committee(other, one),
        wrap_forces_of(RotationAverage(mace_on_shared_models(0), 2)),
        wrap_forces(other),
    ]
    expected = [judged(wrapper, FRAMES[:3]) for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.reset()
    done = in_threads([lambda w=w: judged(w, FRAMES[:3] * 2) for w in wrappers])
    for answers, theirs in zip(done, expected, strict=True):
        assert_same(answers, theirs * 2, rtol=1e-9)


def wrap_forces_of(backbone):
    return ReliableCalculator(backbone, None, [MaxForce()], policy())


def test_calculators_that_are_not_torch_keep_their_results_apart():
    """EMT writes every result into the same array of forces."""
    base = EMT()
    frames = [copper(seed) for seed in range(6)]

    def wrapper():
        signal = OfGeometry(lambda positions: float(np.abs(positions).sum()))
        return ReliableCalculator(ToyBackbone(base), None, [signal], POLICY)

    expected = judged(wrapper(), frames)
    done = in_threads(
        [lambda w=w: judged(w, frames * 10) for w in [wrapper() for _ in range(4)]]
    )
    for answers in done:
        assert_same(answers, expected * 10, rtol=1e-12)
    one, two = wrapper(), wrapper()
    one.get_property("forces", frames[0])
    two.get_property("forces", frames[1])  # serial, too
    np.testing.assert_array_equal(one.results["forces"], expected[0][1])


def test_models_that_share_a_part_do_not_run_at_once():
    """Two calculators with different root modules around one readout."""
    first, second = ModuleCalculator(), ModuleCalculator()
    second.model.readout = first.model.readout
    taps = [tap(c, module="model.readout") for c in (first, second)]
    inside = threading.Event()

    def enter():
        with taps[1].alone():
            inside.set()

    with taps[0].alone():
        thread = threading.Thread(target=enter)
        thread.start()
        assert not inside.wait(0.2)
    thread.join(10)
    assert inside.is_set()


def test_models_that_share_nothing_run_at_once():
    taps = [tap(ModuleCalculator(), module="model.readout") for _ in range(2)]
    inside = threading.Event()

    def enter():
        with taps[1].alone():
            inside.set()

    with taps[0].alone():
        thread = threading.Thread(target=enter)
        thread.start()
        assert inside.wait(10)
    thread.join(10)


def band(calculators):
    first, last = salt(1), salt(1)
    last.positions[0] += (0.8, 0.1, 0.0)
    images = [first, *[first.copy() for _ in range(3)], last]
    for image, calculator in zip(images, calculators, strict=True):
        image.calc = calculator
    return images


def test_a_parallel_band_is_the_serial_one():
    """ASE prints errors of its threads, and continues."""
    base = mace_calculator()
    paths = []
    for parallel in (False, True):
        images = band([wrap_mace(base) for _ in range(5)])
        neb = NEB(images, parallel=parallel, method="improvedtangent")
        neb.interpolate()
        FIRE(neb, logfile=None).run(fmax=1e-4, steps=2)
        paths.append(np.array([image.positions for image in images]))
        assert all(image.calc.assessment is not None for image in images[1:-1])
    np.testing.assert_allclose(paths[1], paths[0], rtol=0, atol=1e-9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_during_a_pass_leaves_the_child_free():
    thing, held_there, done = EMT(), threading.Event(), threading.Event()

    def hold():
        with held([thing]):
            held_there.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held_there.wait(30)
    child = os.fork()
    if child == 0:
        with held([thing]):
            os._exit(7)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 7


@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_no_grad_around_a_step_has_no_effect(mode, judged):
    """Forces are gradients; the bare calculator fails here."""
    atoms = FRAMES[0].copy()
    calculator = wrap_mace(mace_on_shared_models())
    calculator.enabled = judged
    with mode():
        forces = calculator.get_property("forces", atoms)
    again = wrap_mace(mace_on_shared_models()).get_property("forces", atoms)
    np.testing.assert_array_equal(forces, again)
