"""`run_loop`: rounds on disk, resumable, commands of the user under a contract."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ase.build import molecule
from ase.io import read, write
from builders import import_mace, run_and_kill
from typer.testing import CliRunner

import uqcalc
from uqcalc import Level, annotated_copy
from uqcalc.cli import app
from uqcalc.errors import LoopError, ProbeError, RecordError, RunFileError
from uqcalc.learning.loop import run_loop
from uqcalc.learning.loopfile import read_loop_file
from uqcalc.learning.rounds import Round
from uqcalc.policy import RUN
from uqcalc.records import Assessment, Reading, Verdict
from uqcalc.runfile import opening
from uqcalc.runfile.file import read_run_file
from uqcalc.watching.bondgraph import CHANGED


import_mace()
ALWAYS = {
    "suspect": 1.0,
    "unreliable": 1.0,
    "patience": 20,
    "on_unreliable": "harvest",
    "max_harvest": 3,
}
OPEN_ONCE = functools.cache(uqcalc.open_model)
TRAIN = """
import os, sys, time
time.sleep(float(os.environ.get("SLOW", "0")))
data, before, after, seed = sys.argv[1:]
with open(data) as file:
    count = file.read().count("REF_energy")
if "fail" in after:
    sys.exit("no memory")
with open("calls.txt", "a") as file:
    file.write(f"{before} {count} {seed}\\n")
for name in (after, after.replace(".model", ".weights")):
    with open(name, "w") as file:
        file.write("weights")
"""


@pytest.fixture(autouse=True)
def _models_are_opened_once(monkeypatch):
    monkeypatch.setattr(opening, "open_model", OPEN_ONCE)


def written(folder, *, policy=None, **content):
    """Write a loop whose runs are always UNRELIABLE, with an empty training."""
    molecule("CH3OH").write(folder / "m.xyz", format="extxyz")
    run = {
        "structure": "m.xyz",
        "md": {"steps": 40, "temperature_K": 600, "seed": 1},
        "policy": ALWAYS if policy is None else policy,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    (folder / "train.py").write_text(TRAIN, encoding="utf-8")
    loop = {
        "run": "run.yaml",
        "reference": "ase.calculators.emt:EMT",
        "train": f"{sys.executable} train.py"
        " {data} {model_in} {model_out} {seed}",
        "model": "default",  # the file of the training is not opened
        "rounds": 2,
        "workers": 0,
        "held_out": 0.0,
    } | content
    path = folder / "loop.yaml"
    path.write_text(yaml.safe_dump(loop), encoding="utf-8")
    return path


def calls(folder):
    return (folder / "calls.txt").read_text().splitlines()


def test_rounds_train_on_all_labels_so_far_and_end_by_the_rule(tmp_path):
    path = written(tmp_path)
    report = run_loop(path)
    assert [row.number for row in report.rounds] == [1, 2, 3]
    assert report.reason == "2 rounds are done"
    *labels, last = [row.labelled for row in report.rounds]
    assert min(labels) >= 1
    # the last model runs as well, but nothing is labelled or trained
    assert last == 0
    assert report.rounds[2].flagged > 0
    assert report.rounds[2].steps > 0
    models = [call.split() for call in calls(tmp_path)]
    assert [int(count) for _, count, _ in models] == [labels[0], sum(labels)]
    assert [int(seed) for *_, seed in models] == [1, 2]
    rounds = tmp_path / "loop_rounds"
    for number in ("01", "02"):
        names = {file.name for file in (rounds / number).iterdir()}
        assert {"chosen.png", "labelled.xyz", "train", "train.log"} <= names
        files = {file.name for file in (rounds / number / "train").iterdir()}
        assert files == {"model.model", "model.weights"}  # both have their own names
        run = yaml.safe_load((rounds / number / "run_1.yaml").read_text())
        assert run["md"]["seed"] == int(number)
    assert (rounds / "rounds.png").stat().st_size > 1000
    assert "meV/Å" in (rounds / "rounds.txt").read_text(encoding="utf-8")
    # done stages are not repeated
    assert str(run_loop(path)) == str(report)
    assert len(calls(tmp_path)) == 2
    more = written(tmp_path, rounds=3, budget=sum(labels))
    assert run_loop(more).reason == f"the budget of {sum(labels)} labels is spent"


def test_a_loop_that_is_stopped_goes_on_at_the_stage_that_failed(tmp_path):
    path = written(tmp_path, rounds=1)
    good = (tmp_path / "train.py").read_text()
    (tmp_path / "train.py").write_text("import sys; sys.exit('no memory')")
    with pytest.raises(LoopError, match="status 0, got 1: no memory; see"):
        run_loop(path)
    rounds = tmp_path / "loop_rounds"
    before = (rounds / "01" / "labelled.xyz").stat().st_mtime_ns
    assert not (rounds / "01" / "round.json").exists()
    (tmp_path / "train.py").write_text("pass")
    with pytest.raises(LoopError, match=r"must write {model_out}, got no file"):
        run_loop(path)
    (tmp_path / "train.py").write_text(good)
    assert len(run_loop(path).rounds) == 2
    assert (rounds / "01" / "labelled.xyz").stat().st_mtime_ns == before
    assert not list((rounds / "01").glob("partial_*"))


COMMAND = """
import pathlib, signal, sys
# a process that was started in the background ignores it
signal.signal(signal.SIGINT, signal.default_int_handler)
from uqcalc.learning.commands import run_command
trainer = "import os, subprocess, sys, time; "
trainer += "child = subprocess.Popen([sys.executable, '-c', 'import time; "
trainer += "time.sleep(600)']); print(os.getpid(), child.pid, flush=True); "
trainer += "time.sleep(600)"
words = f'{sys.executable} -c "{trainer}" {{model_out}}'
place = pathlib.Path.cwd()
run_command(words, place / "train" / "model", "model_out", {}, place)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_command_and_its_children_end_with_the_loop(tmp_path, name):
    loop = subprocess.Popen(
        [sys.executable, "-c", COMMAND], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    log = tmp_path / "train.log"
    deadline = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        assert loop.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running = [int(number) for number in log.read_text().splitlines()[1].split()]
    loop.send_signal(getattr(signal, name))
    try:
        loop.wait(30)
    finally:
        loop.kill()
        loop.wait()
    while any(is_alive(number) for number in running):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process):
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["run_1.jsonl", "train.log"])
def test_a_loop_that_is_killed_outright_goes_on(tmp_path, begun, monkeypatch):
    path = written(tmp_path, rounds=1)
    place = tmp_path / "loop_rounds" / "01"
    monkeypatch.setenv("SLOW", "5")

    def ready():
        file = place / begun
        return file.exists() and (begun == "train.log" or file.stat().st_size > 9000)

    run_and_kill([sys.executable, "-m", "uqcalc", "loop", str(path)], ready)
    assert not (place / "round.json").exists()
    monkeypatch.setenv("SLOW", "0")
    killed = run_loop(path)
    other = tmp_path / "whole"
    other.mkdir()
    whole = run_loop(written(other, rounds=1))
    for one, two in zip(killed.rounds, whole.rounds, strict=True):
        assert (one.steps, one.wrecked, one.chosen) == (
            two.steps,
            two.wrecked,
            two.chosen,
        )
    files = [
        folder / "labelled.xyz" for folder in (place, other / "loop_rounds" / "01")
    ]
    assert [len(read(file, ":")) for file in files] == [killed.rounds[0].labelled] * 2


def test_runs_of_a_round_differ_and_their_frames_are_events_of_their_own(tmp_path):
    path = written(tmp_path, rounds=2, runs=2)
    lines = []
    report = run_loop(path, say=lines.append)
    rounds = tmp_path / "loop_rounds"
    seeds = [
        yaml.safe_load((rounds / f"{r:02d}" / f"run_{k}.yaml").read_text())["md"][
            "seed"
        ]
        for r in (1, 2)
        for k in (1, 2)
    ]
    assert seeds == [1, 2, 3, 4]
    frames = read(rounds / "01" / "labelled.xyz", ":")
    assert {frame.info["uqcalc_run"] for frame in frames} == {1, 2}
    assert {frame.info["uqcalc_event"][0] for frame in frames} == {"1", "2"}
    assert report.rounds[0].steps == sum(
        json.loads((rounds / "01" / f"run_{k}.jsonl").read_text().splitlines()[-1])[
            "step"
        ]
        for k in (1, 2)
    )
    assert lines[0].startswith("round 1, run 1: ")
    assert any("Labelled by" in line for line in lines)


def test_a_run_that_ends_at_an_impossible_frame_is_counted(tmp_path):
    path = written(tmp_path, rounds=1)
    atoms = molecule("CH3OH")
    atoms.positions[1] = atoms.positions[0] + [0.05, 0, 0]  # two atoms at one position
    atoms.write(tmp_path / "m.xyz", format="extxyz")
    report = run_loop(path)
    assert report.rounds[0].wrecked == 1
    assert report.plot().get_xticklabels()[0].get_text().startswith("1\nof 1 runs 1 wr")


def test_a_run_that_ends_with_other_bonds_is_counted(tmp_path):
    path = written(tmp_path)
    one = Round(read_loop_file(path), 1, None, 30, print)
    one.folder.mkdir(parents=True)
    for number, doubts in enumerate([(), (f"{CHANGED}, broken: C0-H2",)], start=1):
        reading = Reading(RUN, 0.0, doubts=doubts, always=True)
        found = Assessment((reading,), Verdict(Level.SUSPECT))
        frame = annotated_copy(molecule("CH3OH"), found, {"energy": 0.0})
        write(one.folder / f"run_{number}_last.xyz", frame)
    assert [one.is_broken(number) for number in (1, 2)] == [False, True]


def test_a_loop_without_flagged_frames_is_done_at_once(tmp_path):
    report = run_loop(written(tmp_path, policy={"suspect": 0.0, "unreliable": 0.0}))
    assert report.reason == "nothing was flagged in 40 steps"
    assert not (tmp_path / "calls.txt").exists()
    report.plot()


def test_the_probe_gets_labels_that_the_training_has_not_seen(tmp_path):
    refit = f"{sys.executable} -c \"open(r'{{probe_out}}', 'w').write('{{labels}}')\""
    own = [molecule("CH3OH"), molecule("CH3OH")]
    own[1].info["uqcalc_event"] = "mine"
    write(tmp_path / "own.xyz", own)
    path = written(tmp_path, rounds=1, refit=refit, held_out=0.9, probe_data="own.xyz")
    with pytest.raises(ProbeError, match="complete safetensors"):  # the last runs
        run_loop(path)
    place = tmp_path / "loop_rounds" / "01"
    kept = (place / "refit" / "model.probe").read_text()
    assert kept == str(place / "held_out.xyz")
    # labels from before the loop come first, each with an event
    held = read(kept, ":")
    assert [f.info["uqcalc_event"] for f in held] == ["r0:e0", "mine"]
    # one event only: it stays with the training
    assert (
        len(read(place / "train.xyz", ":"))
        == json.loads((place / "round.json").read_text())["labelled"]
    )


def test_a_folder_of_another_loop_is_refused(tmp_path):
    path = written(tmp_path, rounds=1, policy={"suspect": 0.0, "unreliable": 0.0})
    run_loop(path)
    with pytest.raises(RecordError, match="with other seed; choose another folder"):
        run_loop(written(tmp_path, seed=3, policy={"suspect": 0.0, "unreliable": 0.0}))


def test_files_that_the_run_file_names_are_found_from_the_folder_of_a_round(tmp_path):
    (tmp_path / "mine.py").write_text("from ase.calculators.emt import EMT as mine")
    path = written(tmp_path, rounds=1, policy={"on_unreliable": "ask"})
    run = yaml.safe_load((tmp_path / "run.yaml").read_text())
    run["md"]["steps"] = 1
    run["ask"] = {"reference": "mine.py:mine"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    run_loop(path)
    copy = read_run_file(tmp_path / "loop_rounds" / "01" / "run_1.yaml")
    assert copy.ask.reference == f"{tmp_path / 'mine.py'}:mine"
    run["policy"] = {"halting_guarantee": "mine.py"}
    del run["ask"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    with pytest.raises(RunFileError, match="must leave out policy\\.halting_gua"):
        run_loop(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": "mace:{model_out}"}, "refit: must be given, since a probe is for"),
        ({"reference": "no.py:f"}, "reference: file of the reference must exist"),
        ({"reference": "ase.calculators.emt:F"}, "reference: reference must name a fu"),
    ],
)
def test_later_errors_are_reported_before_any_run(tmp_path, content, message):
    with pytest.raises(RunFileError, match=message):
        run_loop(written(tmp_path, **content))
    assert not (tmp_path / "loop_rounds").exists()


def test_mistake_in_a_command_can_be_corrected(tmp_path):
    wrong = f"{sys.executable} trian.py {{data}} {{model_in}} {{model_out}} {{seed}}"
    with pytest.raises(LoopError, match="train must end with status 0, got 2"):
        run_loop(written(tmp_path, rounds=1, train=wrong))
    log = tmp_path / "loop_rounds" / "01" / "train.log"
    assert log.read_text().startswith(f"$ {sys.executable} trian.py ")
    assert len(run_loop(written(tmp_path, rounds=1)).rounds) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": "train {data}"}, "train: must contain {model_out}"),
        ({"train": "train {out} {model_out}"}, "must use the placeholders data,"),
        ({"train": "train {model_out"}, "must have placeholders in braces"),
        ({"run": "absent.yaml"}, "run: must be a file that exists"),
        ({"held_out": 1.0}, "held_out: "),
        ({"label": 3}, "label: unknown key; known here: run, reference"),
    ],
)
def test_problems_of_the_file_are_reported_before_any_run(tmp_path, content, message):
    path = written(tmp_path, **content)
    with pytest.raises(RunFileError, match=message):
        read_loop_file(path)
    done = CliRunner().invoke(app, ["loop", str(path)])
    assert done.exit_code == 1
    assert not (tmp_path / "loop_rounds").exists()
