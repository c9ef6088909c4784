"""Systems that become UNRELIABLE leave the batch, without effect on the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.io import read
from closeness import close

from uqcalc import Level, Policy, Threshold, read_assessment, read_log
from uqcalc.types import Trigger


pytest.importorskip("torch_sim")

from torch_sim.autobatching import BinningAutoBatcher, InFlightAutoBatcher
from torch_sim.integrators.md import MDState
from torchsim.batches import Reach, Spoiled, flying, molecules, tiny, ts

from uqcalc.torchsim import (
    ReliableModel,
    guard,
    numbered,
    reliable_convergence,
)
from uqcalc.watching.relaxation import Outcome


POLICY = Policy([Threshold("reach", suspect=3.0, unreliable=3.5)])
FS = 1e-3  # TorchSim's time steps are in ps
TEMPERATURE = 100.0
METAL = ts.units.UnitSystem.metal


@pytest.fixture
def model():
    return ReliableModel(tiny(), None, [Reach()], POLICY, sanity=False)


def flock(model):
    """Three pairs of atoms: one separates by about 0.2 Å a step, two hardly move."""
    frames = [flying(0.8, 0.0), flying(1.0, 1.0), flying(0.9, 0.0)]
    momenta = np.concatenate([frame.get_momenta() for frame in frames])
    return MDState.from_state(
        numbered(frames, model),
        momenta=torch.from_numpy(momenta),
        energy=torch.zeros(3),
        forces=torch.zeros(6, 3),
    )


def recorded(model, integrator, steps, **more):
    """The states of a run without a guard."""
    init, step = ts.integrators.INTEGRATOR_REGISTRY[integrator]
    options = {"kT": torch.tensor(TEMPERATURE * METAL.temperature, dtype=torch.float64)}
    options["dt"] = torch.tensor(FS * METAL.time, dtype=torch.float64)
    state = init(state=flock(model), model=model, **options, **more)
    found = [state.clone()]
    for _ in range(steps):
        state = step(state=state, model=model, **options)
        found.append(state.clone())
    return found


def run(model, guarded, steps, state=None, **options):
    return ts.integrate(
        flock(model) if state is None else state,
        model,
        integrator=guarded,
        n_steps=steps,
        temperature=TEMPERATURE,
        timestep=FS,
        **options,
    )


def rows(state, system):
    return state.positions.detach()[state.system_idx == system]


@pytest.mark.parametrize("patience", [1, 3])
def test_a_system_leaves_at_its_last_reliable_state(model, patience, tmp_path):
    free = recorded(model, ts.Integrator.nve, 25)
    reach = [float((rows(s, 1)[1] - rows(s, 1)[0]).norm()) for s in free]
    bad = next(k for k, x in enumerate(reach) if x > 3.5)
    good = max(k for k, x in enumerate(reach[:bad]) if x <= 3.0)
    guarded = guard(
        ts.Integrator.nve,
        trigger=Trigger(patience),
        log=tmp_path / "run.jsonl",
        flagged=tmp_path / "flagged.xyz",
    )
    final = run(model, guarded, 25)
    left = guarded.left
    assert list(left) == [1]
    assert (left[1].step, left[1].kept_step) == (bad + patience - 1, good)
    assert left[1].kept_level is Level.RELIABLE
    close(rows(final, 1), rows(free[good], 1))
    for name in ("momenta", "forces"):
        ours, theirs = (getattr(s, name)[2:4] for s in (final, free[good]))
        close(ours, theirs)
    for system in (0, 2):
        close(rows(final, system), rows(free[25], system))
    assert final.uqcalc_system.tolist() == [0, 1, 2]
    assert int(final.reliability_level[1]) == Level.RELIABLE
    guarded.close()
    records = list(read_log(tmp_path / "run.jsonl"))
    [record] = [r for r in records if r["event"] == "left"]
    assert (record["system"], record["step"], record["to_step"]) == (
        1, bad + patience - 1, good,
    )  # fmt: skip
    assert "reach" in record["reason"]
    levels = [r["level"] for r in records if r["event"] == "level" and r["system"] == 1]
    assert levels == ["RELIABLE", "SUSPECT", "UNRELIABLE"]
    [frame] = read(tmp_path / "flagged.xyz", ":")
    assert (frame.info["system"], frame.info["step"]) == (1, bad + patience - 1)
    assert read_assessment(frame).level is Level.UNRELIABLE
    assert frame.get_distance(0, 1) == pytest.approx(reach[bad + patience - 1], 1e-5)


def test_the_model_is_not_run_for_systems_that_left(model):
    guarded = guard(ts.Integrator.nve, trigger=Trigger(1))
    sizes = []
    model.model.register_forward_pre_hook(
        lambda _, args: sizes.append(args[0].n_systems)
    )
    run(model, guarded, 25)
    step = guarded.left[1].step
    assert sizes == [3] * (step + 1) + [2] * (25 - step)


def test_a_run_ends_quietly_when_every_system_has_left():
    policy = Policy([Threshold("reach", suspect=0.1, unreliable=0.2)])
    model = ReliableModel(tiny(), None, [Reach()], policy, sanity=False)
    guarded = guard(ts.Integrator.nve, trigger=Trigger(2))
    final = run(model, guarded, 5)
    assert {left.kept_step for left in guarded.left.values()} == {0}
    assert {left.kept_level for left in guarded.left.values()} == {Level.UNRELIABLE}
    assert final.n_systems == 3


def test_the_chain_of_a_thermostat_leaves_and_stays_with_its_system(model):
    slow = {"tau": 100.0}  # so that the pair continues to separate
    free = recorded(model, ts.Integrator.nvt_nose_hoover, 25, **slow)
    guarded = guard(ts.Integrator.nvt_nose_hoover, trigger=Trigger(1))
    final = run(model, guarded, 25, init_kwargs=slow)
    kept = guarded.left[1].kept_step
    for name in ("positions", "momenta", "masses"):
        ours = getattr(final.chain, name)
        assert len(ours) == 3
        close(ours[1], getattr(free[kept].chain, name)[1])
        for system in (0, 2):
            close(ours[system], getattr(free[25].chain, name)[system])


def test_numbers_stay_with_systems_through_batches_of_batches(model):
    batcher = BinningAutoBatcher(
        model, memory_scales_with="n_atoms", max_memory_scaler=2
    )
    guarded = guard(ts.Integrator.nve, trigger=Trigger(1))
    final = run(model, guarded, 25, autobatcher=batcher)
    assert list(guarded.left) == [1]
    assert final.uqcalc_system.tolist() == [0, 1, 2]
    whole = guard(ts.Integrator.nve, trigger=Trigger(1))
    close(final.positions, run(model, whole, 25).positions)


def test_nan_takes_a_system_out_at_once(model):
    init, step = ts.integrators.INTEGRATOR_REGISTRY[ts.Integrator.nve]
    count, inner = [], model.model

    def failing(state, model, **options):
        count.append(1)
        if len(count) == 3:
            inner.model = Spoiled(inner.model, 2)
        return step(state=state, model=model, **options)

    guarded = guard((init, failing), trigger=Trigger(50))
    final = run(model, guarded, 6)
    assert list(guarded.left) == [2]
    assert (guarded.left[2].step, guarded.left[2].kept_step) == (3, 2)
    for name in ("positions", "momenta", "forces", "energy"):
        assert torch.isfinite(getattr(final, name)).all()


def test_trajectory_files_continue_for_systems_that_left(model, tmp_path):
    names = [tmp_path / f"{k}.h5" for k in range(3)]
    reporter = ts.TrajectoryReporter(names, state_frequency=1)
    guarded = guard(ts.Integrator.nve, trigger=Trigger(1))
    run(model, guarded, 20, trajectory_reporter=reporter)
    left = guarded.left[1]
    with ts.TorchSimTrajectory(names[1]) as file:
        frames = [file.get_array("positions", k, k + 1)[0] for k in range(21)]
    close(frames[20], frames[left.kept_step])
    assert not np.allclose(frames[left.step - 1], frames[left.kept_step])


def test_a_moving_cell_without_a_verdict_on_the_stress_is_not_reliable():
    from builders import mace_calculator, salt, tiny_probe

    from uqcalc import tap

    probe = tiny_probe(tap(mace_calculator()), bias=10.0)
    model = ReliableModel(tiny(stress=True), probe, flags=False)
    guarded = guard(ts.Integrator.npt_langevin_isotropic)
    state = numbered([salt(), salt(seed=2)], model)
    final = run(model, guarded, 2, state, external_pressure=0.0)
    assert final.reliability_level.tolist() == [Level.RELIABLE] * 2  # of the forces
    assert set(guarded.levels.values()) == {Level.SUSPECT}


def test_runs_that_cannot_be_guarded_are_refused(model):
    with pytest.raises(TypeError, match="pair"):
        guard("verlet")
    with pytest.raises(ValueError, match="numbered"):
        run(model, guard(ts.Integrator.nve), 1, molecules("H2O"))
    state = numbered(molecules("H2O"), model)
    with pytest.raises(TypeError, match="ReliableModel"):
        run(model.model, guard(ts.Integrator.nve), 1, state)
    used = guard(ts.Integrator.nve)
    run(model, used, 1)
    with pytest.raises(ValueError, match="one run"):
        run(model, used, 1)


FORCES = ts.generate_force_convergence_fn(0.5)


def optimised(model, converged, **options):
    frames = molecules("CH4", "H2O", "CH3OH", amount=0.05)
    return ts.optimize(
        numbered(frames, model),
        model,
        optimizer=ts.Optimizer.fire,
        convergence_fn=converged,
        max_steps=60,
        steps_between_swaps=2,
        **options,
    )


@pytest.mark.filterwarnings("ignore:All systems have reached the maximum number")
@pytest.mark.parametrize("swaps", [False, True])
def test_outcomes_of_an_optimisation(swaps, tmp_path):
    reach = {0: 1.8, 1: 1.6, 2: 3.0}  # about the sizes of the three molecules
    limit = (reach[0] + reach[2]) / 2
    policy = Policy([Threshold("reach", suspect=limit, unreliable=limit)])
    model = ReliableModel(tiny(), None, [Reach()], policy, sanity=False)
    options = {}
    if swaps:
        options["autobatcher"] = InFlightAutoBatcher(
            model, memory_scales_with="n_atoms", max_memory_scaler=8
        )
    log = tmp_path / "relax.jsonl"
    converged = reliable_convergence(FORCES, model, trigger=Trigger(2), log=log)
    final = optimised(model, converged, **options)
    converged.close()
    assert final.uqcalc_system.tolist() == [0, 1, 2]
    found = {n: ended.outcome for n, ended in converged.systems.items()}
    assert found[2] in {Outcome.LEFT, Outcome.CONVERGED_UNRELIABLE}
    assert {found[0], found[1]} <= {Outcome.CONVERGED, Outcome.NOT_CONVERGED}
    assert sum(converged.counts().values()) == 3
    events = [r["event"] for r in read_log(log)]
    ends = [e for e in events if e in {o.value for o in Outcome} | {"left"}]
    assert len(ends) == len(
        [o for o in found.values() if o is not Outcome.NOT_CONVERGED]
    )


@pytest.mark.filterwarnings("ignore:All systems have reached the maximum number")
def test_judging_an_optimisation_costs_no_pass_and_changes_nothing(model):
    passes = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    bare = optimised(model, FORCES)
    count = len(passes)
    ours = optimised(model, reliable_convergence(FORCES, model))
    assert len(passes) == 2 * count
    close(ours.positions, bare.positions)
