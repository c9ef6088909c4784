"""Limits from normal runs halt the stated share of further runs."""

import math

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from scipy import signal, stats
from toys import ToyBackbone

from uqcalc import (
    MaxForce,
    Monitor,
    Policy,
    ReliableCalculator,
    Threshold,
    calibrate_threshold,
)
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.limits.runlimits import limits_of_runs, memory, run_rank, runs_needed
from uqcalc.types import RunLimits
from uqcalc.watching.trigger import Trigger


STEP = 5.0  # fs; windows of ten frames


def gaussian(rng, runs, frames, memory_fs):
    """AR(1) with a given memory, stationary from the start."""
    phi = math.exp(-STEP / memory_fs)
    noise = rng.normal(size=(runs, frames)) * math.sqrt(1 - phi**2)
    noise[:, 0] /= math.sqrt(1 - phi**2)
    return signal.lfilter([1], [1, -phi], noise, axis=1)


def test_number_of_runs_needed():
    assert [runs_needed(a) for a in (0.1, 0.05)] == [9, 19]
    assert [runs_needed(a, 0.95) for a in (0.1, 0.05)] == [29, 59]
    assert (run_rank(9, 0.1), run_rank(29, 0.1, 0.95), run_rank(59, 0.05, 0.95)) == (
        9, 29, 59,
    )  # fmt: skip
    # the order statistic by another route: at least 200 of 200 - r + 1 ... lie below
    rank = run_rank(200, 0.1, 0.95)
    covered = [stats.binom.cdf(r - 1, 200, 0.9) for r in (rank - 1, rank)]
    assert covered[0] < 0.95 <= covered[1]
    with pytest.raises(LabelError, match=r"at least 9 .* on average, got 8"):
        run_rank(8, 0.1)
    with pytest.raises(LabelError, match=r"at least 29 .* confidence 0.95, got 28"):
        run_rank(28, 0.1, 0.95)


@pytest.mark.parametrize("memory_fs", [20, 200])
def test_share_of_halted_normal_runs_is_as_stated(memory_fs):
    rng = np.random.default_rng(int(memory_fs))
    trigger, halted, exceeded, draws = Trigger.usual(STEP), [], 0, 25

    def scores(count):
        runs = gaussian(rng, count, 80, memory_fs).tolist()
        return np.array([trigger.peak(run) for run in runs])

    fresh, given = scores(250), scores(29 * draws)
    for part in np.split(given, draws):
        on_average = np.sort(part[:9])[run_rank(9, 0.1) - 1]
        halted.append(np.mean(fresh > on_average))
        exceeded += np.mean(fresh > np.sort(part)[run_rank(29, 0.1, 0.95) - 1]) > 0.1
    # on average 1 of 10; and with 29 runs more than that in one of twenty draws
    error = np.std(halted) / math.sqrt(draws) + math.sqrt(0.09 / 250)
    assert abs(np.mean(halted) - 0.1) < 4 * error
    assert exceeded <= stats.binom.ppf(0.999, draws, 0.05) + 1


def test_a_score_is_the_largest_limit_that_the_trigger_acts_on():
    rng = np.random.default_rng(0)
    run = rng.normal(size=200).tolist()
    trigger = Trigger(window=10, fraction=0.5)
    by_hand = max(sorted(run[max(0, i - 9) : i + 1])[-5] for i in range(4, 200))
    assert trigger.peak(run) == pytest.approx(by_hand, rel=1e-12)
    assert Trigger(3).peak(run) == max(min(run[i : i + 3]) for i in range(198))
    assert trigger.peak([math.nan] * 5 + run) == math.inf
    assert Trigger(3).peak([1.0, None, 2.0, None, 3.0]) == 1.0
    assert Trigger(3).peak([1.0, 2.0]) == -math.inf


def test_limits_state_their_guarantee_and_caught_runs():
    rng = np.random.default_rng(1)
    runs = gaussian(rng, 9, 200, 50).tolist()
    failing = [run[:100] + [9.0] * 100 for run in runs[:4]]
    found = limits_of_runs(
        runs, {"a": 2.0, "b": 0.5}, timestep_fs=STEP, failing=failing
    )
    score = max(Trigger.usual(STEP).peak(run) for run in runs)
    assert [t.unreliable for t in found.thresholds] == pytest.approx(
        [2 * score, 0.5 * score]
    )
    assert found.policy().signals == ("a", "b")
    for part in ("on average", "at most 0.1", "1000 fs", "4 of 4 failing", "k times"):
        assert part in str(found)
    sure = limits_of_runs(
        gaussian(rng, 29, 50, 50).tolist(), {"a": 1.0}, timestep_fs=STEP,
        confidence=0.95,
    )  # fmt: skip
    assert "with 95% confidence" in str(sure)
    assert "it is unknown how many it halts" in str(sure)
    with pytest.raises(LabelError, match="finite at the limit, got 9 of 9"):
        limits_of_runs([[1.0]] * 9, {"a": 1.0}, timestep_fs=STEP)
    with pytest.warns(LabelWarning, match=r"normal runs should all .*100 to 200"):
        limits_of_runs([*runs, runs[0][:100]], {"a": 1.0}, timestep_fs=STEP)


def test_one_run_is_cut_into_blocks_longer_than_its_memory():
    rng = np.random.default_rng(2)
    [run] = gaussian(rng, 1, 40_000, 100)
    exact = 0.5 + 1 / (math.exp(STEP / 100) - 1)  # the sum of a geometric series
    assert memory(run) == pytest.approx(exact, rel=0.25)
    with pytest.warns(LabelWarning, match="approximate"):
        found = limits_of_runs([run.tolist()], {"a": 1.0}, timestep_fs=STEP)
    assert found.blocks
    assert found.frames[0] >= 10 * 0.75 * exact
    assert "approximately" in str(found)
    with pytest.raises(LabelError, match="one run must be at least 9 blocks"):
        limits_of_runs([run[:500].tolist()], {"a": 1.0}, timestep_fs=STEP)
    assert memory(np.ones(10)) == 0.5


def copper(policy, seed, kelvin=300):
    """Return dynamics of copper, and a list for the frames of the run."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True).repeat(2)
    backbone = ToyBackbone(EMT())
    atoms.calc = ReliableCalculator(backbone, signals=[MaxForce()], policy=policy)
    thermalize_momenta(atoms, temperature_K=2 * kelvin, rng=rng)  # halves later
    dyn = Langevin(
        atoms, STEP * units.fs, temperature_K=kelvin, friction=0.05 / units.fs,
        fixcm=False, rng=rng,
    )  # fmt: skip
    frames = []
    dyn.attach(lambda: frames.append(atoms.copy()))
    return dyn, frames


def test_limits_from_real_runs_let_normal_ones_pass_and_halt_a_hot_one():
    anything = Policy([Threshold("max_force", 1e3, 1e3)])
    runs = []
    for seed in range(9):
        dyn, frames = copper(anything, seed)
        dyn.run(30)
        runs.append(frames)
    calc = dyn.atoms.calc
    found = calibrate_threshold(
        calculator=calc, signal="max_force", runs=runs, timestep_fs=STEP
    )
    assert isinstance(found, RunLimits)
    halted = []
    for seed, kelvin in [(s, 300) for s in range(20, 26)] + [(99, 1500)]:
        dyn, frames = copper(found.policy(), seed, kelvin)
        monitor = Monitor(dyn)
        dyn.run(30)
        halted.append(monitor.halted)
        forces = [EMT().get_property("forces", atoms) for atoms in frames]
        largest = [np.linalg.norm(f, axis=1).max() for f in forces]
        score = Trigger.usual(STEP).peak(largest)
        assert monitor.halted == (score > found.thresholds[0].unreliable)
    # the share that is halted is Beta(1, 9) over draws: 4 of 6 come in 1 of 90
    assert sum(halted[:-1]) <= 3
    assert halted[-1]
