"""`certify_halting` bounds the share of runs that fail without a halt in time."""

import json
import math
import shutil
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet
from scipy import stats
from toys import Scripted, ToyBackbone, copper
from typer.testing import CliRunner

from uqcalc import Labels, Monitor, Policy, Threshold, certify_halting
from uqcalc.annotating.copies import annotated_copy
from uqcalc.cli import app
from uqcalc.errors import LabelError, RecordError
from uqcalc.info import file_info
from uqcalc.limits.halting import FACTORS, _loosest, _Tried
from uqcalc.limits.judgedruns import JudgedRun
from uqcalc.records import Assessment, Level, Reading
from uqcalc.types import HaltingGuarantee
from uqcalc.watching.trigger import Trigger


STEP, TOLERANCE = 5.0, 0.2
LIMITS = Policy([Threshold("probe", 0.2, 0.5), Threshold("flags", 1.0, 2.0)])


def judged(risks, error, **more):
    """A run whose levels are those of LIMITS."""
    rows = tuple({"probe": float(p), "flags": float(f)} for p, f in risks)
    levels = tuple(
        max(t.level(row[t.signal]) for t in LIMITS.thresholds) for row in rows
    )
    times = STEP * np.arange(len(rows))
    return JudgedRun("run", times, rows, levels, np.asarray(error, float), **more)


def noisy_run(rng, frames=40):
    """Half of the runs fail; P falls below 0.5 about then, early, late or never."""
    begin = rng.integers(8, 25) if rng.random() < 0.5 else frames
    seen = begin + rng.integers(-6, 26)
    time = np.arange(frames)
    probe = np.clip(
        0.25 + 0.4 * (time >= seen) + 0.1 * rng.normal(size=frames), 0, 0.99
    )
    error = 0.1 + 0.2 * (time >= begin)
    return judged(np.column_stack([probe, np.zeros(frames)]), error)


def tried(run):
    return _Tried.of(run, LIMITS, Trigger.usual(STEP), TOLERANCE, 25.0, 50.0)


def test_guarantee_holds_for_further_runs_with_its_confidence():
    rng = np.random.default_rng(0)
    pool = [tried(noisy_run(rng)) for _ in range(300)]
    truth = {f: np.mean([run.bad(f) for run in pool]) for f in FACTORS}
    shares = list(truth.values())
    assert np.all(np.diff(shares) >= 0)  # stricter limits never miss more
    assert shares[0] < 0.1 < shares[-1]  # so the choice of limits matters
    draws, on_average, broken = 150, [], 0
    for _ in range(draws):
        drawn = [pool[i] for i in rng.integers(0, len(pool), 40)]
        with suppress(LabelError):  # a refusal gives no guarantee
            broken += truth[_loosest(drawn, 0.1, 0.95)] > 0.1
        try:
            on_average.append(truth[_loosest(drawn, 0.1, None)])
        except LabelError:
            on_average.append(0.0)
    assert broken <= stats.binom.ppf(0.999, draws, 0.05)
    assert np.mean(on_average) <= 0.1 + 4 * np.std(on_average) / math.sqrt(draws)


def test_failures_and_halts_are_found_as_by_hand():
    error = [0.1, 0.3, 0.3, 0.1, np.nan, 0.3, 0.3, np.nan, 0.3, 0.3, 0.3, 0.1]
    run = judged([(0.1, 0)] * 12, error)
    assert run.failed_fs(TOLERANCE, 25.0) == 25.0
    assert run.failed_fs(TOLERANCE, 10.0) == 5.0
    assert run.failed_fs(0.4, 5.0) is None
    assert judged([(0.1, 0)] * 3, [0.1, np.inf, 0.1]).failed_fs(0.2, 25.0) == 5.0
    # flags alone act, from the fifth frame with two findings or more on
    flags = [0, 0, 0, 3, 3, 3, 3, 3, 0, 0, 0, 0]
    acts = judged([(0.1, f) for f in flags], error).acts_fs(LIMITS, Trigger.usual(STEP))
    assert [time for time, peak in acts if peak > 1][:1] == [35.0]
    # the monitor's own record counts, for any risks
    acted = judged([(0.1, 0)] * 12, error, acted_fs=10.0)
    halts = acted.acts_fs(LIMITS, Trigger.usual(STEP))
    assert [time for time, peak in halts if peak > 1] == [10.0]
    # UNRELIABLE for another reason than a limit, and NaN
    odd = judged([(np.nan, 0), (0.1, 0)], [0.1, 0.1])
    assert odd.severities(LIMITS) == [math.inf, pytest.approx(0.2)]


@pytest.mark.parametrize("factor", [1.0, 0.4])
def test_halts_are_those_of_a_monitor_with_these_limits(factor):
    rng = np.random.default_rng(3)
    trigger = Trigger.usual(STEP)
    for _ in range(20):
        run = noisy_run(rng)
        halt, acts = tried(run).halted_fs(factor), Trigger.usual(STEP)
        limits = Policy([Threshold("probe", 0.0, 0.5 * factor)])
        found = None
        for time, risks in zip(run.time_fs, run.risks, strict=True):
            reading = Reading("probe", risks["probe"])
            if acts(Assessment((reading,), limits((reading,)))) and found is None:
                found = time
        assert halt == found
    assert trigger.words() == "5 of 10 frames UNRELIABLE"


def test_own_limits_stay_if_they_suffice_and_others_get_stricter():
    late = [judged([(0.3, 0)] * 60 + [(0.6, 0)] * 20, [0.1] * 30 + [0.3] * 50)]
    good = [judged([(0.1, 0)] * 80, [0.1] * 80)] * 40
    found = certify_halting(good, tolerance="200 meV/angstrom", policy=LIMITS)
    assert (found.factor, found.bad, found.sound, found.sound_halted) == (1.0, 0, 40, 0)
    assert found.policy().thresholds[0].unreliable == 0.5
    found = certify_halting(good + late * 5, tolerance=0.2, policy=LIMITS)
    assert found.policy().thresholds[0].unreliable < 0.3
    assert (found.runs, found.failing, found.bad, found.sound_halted) == (45, 5, 0, 0)
    for part in ("at most 0.1", "95% confidence", "45 runs of 400 fs", "0 of 40 sound"):
        assert part in str(found)
    # with two such runs the own limits suffice at this number of runs
    loose = certify_halting(
        good + late, tolerance=0.2, policy=LIMITS, confidence=None, alpha=0.1
    )
    assert (loose.factor, loose.bad) == (1.0, 1)
    assert "on average" in str(loose)


def test_too_few_runs_are_refused_with_the_number_needed():
    run = judged([(0.1, 0)] * 20, [0.1] * 20)
    lost = judged([(0.1, 0)] * 60, [0.1] * 10 + [0.3] * 50)
    with pytest.raises(LabelError, match=r"at least 29 for alpha=0.1 .*: 9\).*got 28"):
        certify_halting([run] * 28, tolerance=0.2, policy=LIMITS)
    with pytest.raises(LabelError, match=r"failing runs must be at least 9 .* got 0"):
        certify_halting(
            [run] * 29,
            tolerance=0.2,
            policy=LIMITS,
            only_failing=True,
            confidence=None,
        )
    with pytest.raises(LabelError, match=r"got 20 of 40 at the strictest.*; fit a"):
        certify_halting(
            [lost, judged([(0.0, 0)] * 20, [0.1] * 20)] * 20,
            tolerance=0.2,
            policy=Policy([Threshold("probe", 0.2, 50.0)]),
        )
    with pytest.raises(ValueError, match=r"policy must be one and the same .* none"):
        certify_halting([run] * 29, tolerance=0.2)
    promised = Policy([Threshold("probe", 0.2, 0.5, guarantee="at most 5 %")])
    with pytest.raises(ValueError, match="must not be that of a probe's guarantee"):
        certify_halting([run] * 29, tolerance=0.2, policy=promised)
    slow = replace(run, time_fs=2 * run.time_fs)
    with pytest.raises(LabelError, match="equal times between frames, got 5 to 10 fs"):
        certify_halting([run] * 29 + [slow], tolerance=0.2, policy=LIMITS)
    with pytest.raises(ValueError, match="alpha and confidence"):
        certify_halting([run] * 29, tolerance=0.2, policy=LIMITS, alpha=0.0)


def watched_run(folder, name, risks, **settings):
    """Run copper under a monitor, and write its log and its errors."""
    from ase.calculators.emt import EMT
    from toys import POLICY, ReliableCalculator

    atoms = copper()
    policy = settings.pop("policy", POLICY)
    atoms.calc = ReliableCalculator(
        ToyBackbone(EMT()), signals=[Scripted(risks)], policy=policy, sanity=False
    )
    dyn = VelocityVerlet(atoms, STEP * units.fs)
    monitor = Monitor(dyn, log=folder / f"{name}.jsonl", **settings)
    dyn.run(len(risks) - 1)
    rows = [{"step": s, "error": 0.1 + 0.2 * (s >= 20)} for s in range(len(risks))]
    rows = rows[: monitor.step + 1]
    text = "\n".join(json.dumps(row) for row in rows[::2])
    (folder / f"{name}.errors.jsonl").write_text(text, encoding="utf-8")
    return monitor


def test_logs_are_certified_and_the_next_log_states_the_guarantee(tmp_path):
    risks = [0.0] * 22 + [1.0] * 10
    for number in range(9):
        own = [*risks[:-1], 1.0 + number / 100]  # no two runs are equal
        watched_run(tmp_path, f"{number}", own, on_unreliable="warn")
    paths = sorted(tmp_path.glob("?.jsonl"))
    with_errors = sorted(tmp_path.glob("*.jsonl"))
    found = certify_halting(with_errors, tolerance=TOLERANCE, confidence=None)
    (tmp_path / "a").mkdir()
    for name in ("3.jsonl", "3.errors.jsonl"):
        shutil.copy(tmp_path / name, tmp_path / "a")
    twice = [*paths, tmp_path / "a" / "3.jsonl"]
    with pytest.raises(LabelError, match="give each run once"):
        certify_halting(twice, tolerance=TOLERANCE, confidence=None)
    assert (found.factor, found.failing, found.bad) == (1.0, 9, 0)
    path = found.save(tmp_path / "halting.json")
    assert HaltingGuarantee.load(path) == found
    assert found.save(path) == path
    with pytest.raises(RecordError, match="over a halting guarantee, got"):
        found.save(paths[0])
    stress = (Threshold("probe_stress", 0.2, 0.5),)
    assert replace(found, moving_cell=stress).policy().moving_cell == stress
    new = watched_run(tmp_path, "new", risks, guarantee=found, policy=found.policy())
    assert new.halted
    assert str(found) in new.summary()
    header = (tmp_path / "new.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(header)["guarantee"] == str(found)
    rows = dict(file_info(tmp_path / "new.jsonl").rows)
    assert rows["guarantee"] == str(found)
    # a run that its monitor has halted counts, although it ends there
    halted = JudgedRun.from_log(tmp_path / "new.jsonl", {20: 0.1})
    assert halted.acted_fs == halted.time_fs[-1]
    again = certify_halting([*paths, halted], tolerance=TOLERANCE, confidence=None)
    assert (again.runs, again.cut, again.sound) == (10, 1, 0)
    other = Policy([Threshold("scripted", 0.3, 0.9)])
    with pytest.raises(ValueError, match=r"limit on scripted must be 0\.7"):
        watched_run(tmp_path, "b", risks, guarantee=found, policy=other)
    for setting in ({"patience": 2}, {"on_unreliable": "warn"}):
        with pytest.raises(ValueError, match="must"):
            watched_run(
                tmp_path, "c", risks, guarantee=found, policy=found.policy(), **setting
            )
    text = ["--tolerance", "0.2", "--on-average", "-o"]
    words = ["certify-halting", *paths, *text, tmp_path / "same.json"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert HaltingGuarantee.load(tmp_path / "same.json") == found


def test_logs_that_cannot_be_certified_are_refused(tmp_path):
    watched_run(tmp_path, "a", [0.0] * 5, log_every=2)
    with pytest.raises(RecordError, match="every step"):
        JudgedRun.from_log(tmp_path / "a.jsonl", {})
    watched_run(tmp_path, "b", [0.0] * 5)
    with pytest.raises(LabelError, match="got step 9"):
        JudgedRun.from_log(tmp_path / "b.jsonl", {9: 0.1})
    with pytest.raises(LabelError, match="label some"):
        JudgedRun.from_log(tmp_path / "b.jsonl", {})
    (tmp_path / "b.errors.jsonl").unlink()
    with pytest.raises(RecordError, match=r"b\.errors\.jsonl, got no such file"):
        certify_halting([tmp_path / "b.jsonl"], tolerance=0.2)
    (tmp_path / "b.errors.jsonl").write_text("0.1\n", encoding="utf-8")
    with pytest.raises(RecordError, match="line 1 of"):
        certify_halting([tmp_path / "b.jsonl"], tolerance=0.2)


def test_a_stress_error_counts_with_the_limits_of_a_moving_cell():
    """Only the probe of the stress detects the failure; its limit is scaled, too."""
    policy = Policy([Threshold("probe", 0.2, 0.5)], [Threshold("probe_stress", 0.2, 1)])
    row = {"probe": 0.1, "probe_stress": 0.1}
    rows = (row,) * 20 + (row | {"probe_stress": 0.8},) * 20
    time = STEP * np.arange(40)
    error = np.array([0.001] * 20 + [0.02] * 20)  # eV/Å³
    run = JudgedRun("run", time, rows, (Level.SUSPECT,) * 40, error)
    found = certify_halting(
        [run] * 29, target="stress", tolerance="1 GPa", policy=policy
    )
    assert found.tolerance == pytest.approx(units.GPa)
    assert (found.failing, found.bad) == (29, 0)
    assert found.moving_cell[0].unreliable == pytest.approx(found.factor)
    assert found.factor < 0.8
    assert "RMS stress error stays above 0.00624 eV/Å³" in str(found)
    assert HaltingGuarantee.from_dict(found.to_dict()) == found
    found.check(found.policy(), Trigger.usual(STEP), STEP)
    looser = Policy(found.thresholds, policy.moving_cell)
    with pytest.raises(ValueError, match="limit on probe_stress must be"):
        found.check(looser, Trigger.usual(STEP), STEP)
    # forces alone do not detect it
    with pytest.raises(LabelError, match="29 of 29 at the strictest"):
        certify_halting(
            [run] * 29,
            tolerance=0.01,
            policy=Policy([Threshold("probe", 0.2, 50.0)]),
        )
    with pytest.raises(ValueError, match="target must be one of forces, stress"):
        certify_halting([run] * 29, target="energy", tolerance=0.1, policy=policy)


def test_annotated_frames_have_the_errors_of_their_labels():
    frames = []
    for number in range(4):
        atoms = copper(number)
        reading = Reading("probe", 0.1 * number, results={"probe_novelty": 0.5})
        forces = np.ones((4, 3))
        copy = annotated_copy(
            atoms,
            Assessment((reading,), LIMITS((reading,))),
            {"energy": 0.0, "forces": forces},
        )
        if number != 2:
            copy.arrays["REF_forces"] = forces + 0.1 * number
        frames.append(copy)
    run = JudgedRun.from_frames(frames, timestep_fs=STEP)
    assert run.error == pytest.approx([0.0, 0.1, np.nan, 0.3], nan_ok=True)
    assert run.time_fs.tolist() == [0.0, 5.0, 10.0, 15.0]
    assert run.levels[3] is Level.SUSPECT
    assert run.risks[0]["probe_novelty"] == 0.5
    with pytest.raises(LabelError, match="timestep_fs"):
        JudgedRun.from_frames(frames)
    for number, frame in enumerate(frames):
        frame.info["predicted_stress"] = np.full(6, 0.1)
        frame.info["REF_stress"] = np.full(6, 0.1) - 0.01 * number
    labels = Labels("stress")
    run = JudgedRun.from_frames(frames, timestep_fs=STEP, labels=labels)
    assert run.error == pytest.approx([0.0, 0.01, 0.02, 0.03])
    del frames[1].info["predicted_stress"]
    with pytest.raises(LabelError, match="must have predicted_stress"):
        JudgedRun.from_frames(frames, timestep_fs=STEP, labels=labels)
