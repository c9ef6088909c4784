from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import units
from ase.build import molecule
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from builders import import_mace, run_and_kill
from closeness import FLOAT64, close
from typer import Typer
from typer.testing import CliRunner

import uqcalc
from uqcalc import Level, Monitor, read_assessment, read_log, run_file
from uqcalc.cli.run import HALTED, run
from uqcalc.defaults import shipped_probe
from uqcalc.errors import BackboneError, ModelError, RecordError, RunFileError
from uqcalc.runfile import opening
from uqcalc.runfile.file import read_run_file
from uqcalc.runfile.restart import Restart
from uqcalc.watching.eventlog import read_standing


import_mace()
OPEN_ONCE = functools.cache(uqcalc.open_model)
EXAMPLES = Path(__file__).parents[2] / "examples"
NVT = {"ensemble": "nvt", "steps": 8, "temperature_K": [300, 600], "seed": 4}
NVE = {"ensemble": "nve", "steps": 8, "temperature_K": 400, "seed": 4}
NPT = {"ensemble": "npt", "steps": 8, "temperature_K": 300, "barostat_fs": 200}
ALWAYS_BAD = {"suspect": 1.0, "unreliable": 1.0}


@pytest.fixture(autouse=True)
def _models_are_opened_once(monkeypatch):
    monkeypatch.setattr(opening, "open_model", OPEN_ONCE)


class Killed(BaseException):
    """Ends a run like a kill, at the end of a step."""


def written(folder, *, box=False, name="heat.yaml", **content):
    """Write a run file and the structure that it is for."""
    atoms = molecule("CH3CH2OH")
    if box:
        atoms.set_cell([6.0, 6.0, 6.0])
        atoms.set_pbc(True)
    atoms.write(folder / "m.xyz", format="extxyz")
    path = folder / name
    path.write_text(
        yaml.safe_dump({"structure": "m.xyz", "dtype": "float64"} | content)
    )
    return path


def killed(path, at):
    def progress(step, steps):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        run_file(path, progress=progress)


def last(path):
    return read(path.with_name(f"{path.stem}_last.xyz"))


def steps_of(records):
    return [record["step"] for record in records if record["event"] == "step"]


def content(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def by_hand(folder, task, rng):
    """Run the same molecular dynamics as a script would."""
    atoms = read(folder / "m.xyz")
    atoms.calc = OPEN_ONCE("default", device="auto", dtype="float64")
    thermalize_momenta(atoms, temperature_K=task["first_K"], rng=rng)
    if task["ensemble"] == "nve":
        Stationary(atoms)
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    else:
        dynamics = Langevin(
            atoms,
            0.5 * units.fs,
            temperature_K=task["first_K"],
            friction=0.01 / units.fs,
            fixcm=False,
            rng=rng,
        )
        dynamics.attach(
            lambda: dynamics.set_temperature(
                temperature_K=300 + 300 * dynamics.nsteps / 8
            )
        )
    dynamics.run(8)
    return atoms


@pytest.mark.parametrize(("md", "first_K"), [(NVT, 300), (NVE, 400)])
def test_a_run_is_what_a_script_would_have_done(tmp_path, md, first_K):
    outputs = {"trajectory": "frames.xyz", "interval": 3}
    path = written(tmp_path, md=md, outputs=outputs)
    done = run_file(path)
    assert (done.how, done.step, done.converged) == ("finished", 8, None)
    assert done.summary.startswith("Finished after 8 steps.")
    assert json.loads(json.dumps(done.to_dict()))["step"] == 8
    task = {"ensemble": md["ensemble"], "first_K": first_K}
    atoms = by_hand(tmp_path, task, np.random.default_rng(4))
    restart = Restart.load(tmp_path / "heat.jsonl.restart.npz")
    for ours, theirs in (
        (restart.state.positions, atoms.positions),
        (restart.state.momenta, atoms.get_momenta()),
    ):  # the rounding differs until TorchScript has optimised the potential
        close(ours, theirs, FLOAT64)
    np.testing.assert_allclose(last(path).positions, atoms.positions, atol=1e-8)
    np.testing.assert_allclose(last(path).get_momenta(), atoms.get_momenta(), atol=1e-8)

    frames = read(tmp_path / "frames.xyz", ":")
    assert [frame.info["step"] for frame in frames] == [0, 3, 6, 8]
    header, *records = read_log(tmp_path / "heat.jsonl")
    assert header["run"]["about"]["input"] == read_run_file(path).echo()
    assert steps_of(records) == list(range(9))
    level = read_assessment(frames[-1]).level
    assert records[8]["level"] == level.name


def test_a_relaxation_is_ases_own(tmp_path):
    path = written(tmp_path, relax={"optimizer": "FIRE", "fmax_eV_per_A": 0.3})
    done = run_file(path)
    assert (done.how, done.converged) == ("finished", True)
    atoms = read(tmp_path / "m.xyz")
    atoms.calc = OPEN_ONCE("default", device="auto", dtype="float64")
    dynamics = FIRE(atoms, logfile=None)
    assert dynamics.run(fmax=0.3)
    assert done.step == dynamics.nsteps
    np.testing.assert_allclose(last(path).positions, atoms.positions, atol=1e-8)
    assert done.summary.startswith(f"Converged after {done.step} steps.")


def test_a_relaxation_goes_on_from_the_saved_geometry(tmp_path):
    relax = {"fmax_eV_per_A": 0.02, "cell": True, "pressure_GPa": 5, "steps": 12}
    path = written(tmp_path, box=True, relax=relax, outputs={"interval": 4})
    killed(path, 6)
    done = run_file(path)
    assert (done.how, done.step, done.converged) == ("finished", 12, False)
    assert "Not converged after 12 steps." in done.summary
    assert "new run file with structure: heat_last.xyz" in done.summary
    assert steps_of(read_standing(tmp_path / "heat.jsonl")) == list(range(13))
    assert last(path).cell.volume < 0.99 * 6**3


@pytest.mark.parametrize("md", [NVT, NVE, NPT], ids=lambda md: md["ensemble"])
def test_killed_run_ends_like_an_uninterrupted_run(tmp_path, md):
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
        path = written(
            folder,
            box=True,
            md=md,
            policy=ALWAYS_BAD | {"on_unreliable": "warn", "patience": 2},
            outputs={"trajectory": "frames.xyz", "interval": 3},
        )
        if folder.name == "killed":
            killed(path, 5)
            assert steps_of(read_log(folder / "heat.jsonl")) == list(range(6))
            killed(path, 7)
        run_file(path)
    ends = [Restart.load(folder / "heat.jsonl.restart.npz").state for folder in folders]
    assert ends[0].step == ends[1].step == 8
    assert ends[0].generator == ends[1].generator
    for name in ("positions", "momenta", "cell"):
        ours, theirs = (getattr(end, name) for end in ends)
        close(ours, theirs, FLOAT64)
    if md is NPT:
        assert not np.allclose(np.diag(ends[0].cell), 6.0, atol=1e-4)
    logs = [list(read_standing(folder / "heat.jsonl")) for folder in folders]
    keys = [[(r["event"], r["step"], r.get("level")) for r in log] for log in logs]
    assert keys[0] == keys[1]
    assert [step for event, step, _ in keys[0] if event == "warning"] == [1, 3, 5, 7]
    for name in ("frames.xyz", "heat_flagged.xyz"):
        frames = [read(folder / name, ":") for folder in folders]
        shown = [[frame.info["step"] for frame in each] for each in frames]
        assert shown[0] == shown[1] == sorted(set(shown[0]))
    resumed = [
        r for r in read_log(folders[1] / "heat.jsonl") if r["event"] == "resumed"
    ]
    assert [record["step"] for record in resumed] == [3, 6]


VICTIM = "import sys, uqcalc; uqcalc.run_file(sys.argv[1])"


def test_a_run_that_is_killed_outright_is_ended_by_the_same_command(tmp_path):
    path = written(tmp_path, md=NVT | {"steps": 60}, outputs={"interval": 7})
    log = tmp_path / "heat.jsonl"
    run_and_kill(
        [sys.executable, "-W", "ignore", "-c", VICTIM, path],
        lambda: log.exists() and log.read_bytes().count(b"\n") >= 20,
    )
    killed_at = steps_of(read_log(log))[-1]
    done = run_file(path)
    assert (done.how, done.step) == ("finished", 60)
    assert steps_of(read_standing(log)) == list(range(61))
    [resumed] = [r for r in read_log(log) if r["event"] == "resumed"]
    assert resumed["step"] == killed_at - killed_at % 7
    assert f"This run continues from step {resumed['step']}" in done.summary


def test_two_runs_in_one_folder_have_separate_states(tmp_path):
    paths = [
        written(tmp_path, name=f"md.{kelvin}.yaml", md=NVT | {"temperature_K": kelvin})
        for kelvin in (300, 900)
    ]
    killed(paths[0], 5)
    run_file(paths[1])
    assert "run continues from step" in run_file(paths[0]).summary
    mine, other = (tmp_path / f"md.{kelvin}.jsonl.restart.npz" for kelvin in (300, 900))
    killed_again = written(tmp_path, name="third.yaml", md=NVT | {"seed": 9})
    killed(killed_again, 5)
    other.replace(tmp_path / "third.jsonl.restart.npz")
    with pytest.raises(RecordError, match="restart file must belong to this run"):
        run_file(killed_again)
    assert mine.exists()


def test_labels_of_the_structure_are_not_in_later_frames(tmp_path):
    path = written(tmp_path, md=NVE | {"steps": 2})
    atoms = molecule("CH3CH2OH")
    atoms.info.update(REF_energy=-1.0, charge=0)
    atoms.arrays["REF_forces"] = np.ones((len(atoms), 3))
    atoms.write(tmp_path / "m.xyz", format="extxyz")
    run_file(path)
    assert "charge" in last(path).info
    assert not [key for key in (*last(path).info, *last(path).arrays) if "REF" in key]


def test_halted_run_has_its_own_status_and_does_not_continue(tmp_path):
    app = Typer()
    app.command()(run)
    path = written(tmp_path, md=NVT, policy=ALWAYS_BAD | {"patience": 4})
    killed(path, 2)  # the row of UNRELIABLE frames continues after the kill
    result = CliRunner().invoke(app, [str(path)])
    assert result.exit_code == HALTED == 3
    assert "UNRELIABLE for 4 frames in a row at step 3" in result.output
    assert "structure: heat_last.xyz and, under md, velocities: keep" in result.output
    assert read_assessment(last(path)).level is Level.UNRELIABLE
    before = content(tmp_path)
    result = CliRunner().invoke(app, [str(path)])
    assert result.exit_code == HALTED
    assert "Nothing to do: this run has ended. Halted" in result.output
    assert content(tmp_path) == before

    path.write_text(path.read_text().replace("steps: 8", "steps: 9"))
    result = CliRunner().invoke(app, [str(path)])
    assert result.exit_code == 1
    assert "input.md.steps: 8 there, 9 here" in result.output
    before["heat.yaml"] = content(tmp_path)["heat.yaml"]
    assert content(tmp_path) == before

    again = {"steps": 1, "velocities": "keep", "temperature_K": 300}
    path = written(tmp_path, name="on.yaml", structure="heat_last.xyz", md=again)
    assert run_file(path).how == "finished"
    momenta = read(tmp_path / "heat_last.xyz").get_momenta()
    first = next(r for r in read_log(tmp_path / "on.jsonl") if r["event"] == "step")
    kinetic = (momenta**2 / last(path).get_masses()[:, None]).sum() / 2
    assert first["temperature_K"] == pytest.approx(kinetic / (13.5 * units.kB))


def test_a_run_that_has_ended_is_not_that_of_another_probe(tmp_path):
    probe = shipped_probe("default")
    probe.save(tmp_path / "my.probe")
    path = written(tmp_path, md=NVE | {"steps": 2}, probe="my.probe")
    run_file(path)
    assert run_file(path).summary.startswith("Nothing to do")
    probe.at(0.15).save(tmp_path / "my.probe")
    with pytest.raises(RecordError, match="with different probe_sha256"):
        run_file(path)


def test_a_run_whose_end_was_not_saved_writes_what_is_missing(tmp_path, monkeypatch):
    path = written(tmp_path, md=NVT, outputs={"interval": 3})
    close = Monitor.close

    def closed_and_killed(self):
        close(self)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "close", closed_and_killed)
        with pytest.raises(Killed):
            run_file(path)
    assert list(read_log(tmp_path / "heat.jsonl"))[-1]["event"] == "end"
    assert last(path).info["step"] == 6
    assert run_file(path).step == 8
    assert last(path).info["step"] == 8
    assert run_file(path).summary.startswith("Nothing to do")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"md": NVT, "frame": 3},
            "structure: must hold frame 3 in a format that ASE reads",
        ),
        (
            {"md": NVT, "structure": "heat.yaml"},
            "outputs: structure must name another file",
        ),
        (
            {"md": NVT, "repeat": [1, 2, 1]},
            "repeat: must be 1 along each direction without a",
        ),
        ({"md": NVT | {"velocities": "keep"}}, "md.velocities: must be new for a str"),
        ({"md": NPT}, r"md.ensemble: npt must have a structure that is periodic"),
        ({"relax": {"cell": True}}, "relax.cell: true must have a struct"),
    ],
)
def test_unsuitable_structure_is_refused_before_a_file_is_made(
    tmp_path, changes, expected
):
    path = written(tmp_path, **changes)
    with pytest.raises(RunFileError, match=expected):
        run_file(path)
    assert {p.name for p in tmp_path.iterdir()} == {"heat.yaml", "m.xyz"}


def test_unknown_element_is_refused_before_a_file_is_made(tmp_path):
    path = written(tmp_path, md=NVT)
    molecule("SH2").write(tmp_path / "m.xyz", format="extxyz")
    with pytest.raises(BackboneError, match="elements must be among"):
        run_file(path)
    assert {p.name for p in tmp_path.iterdir()} == {"heat.yaml", "m.xyz"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there_is_a_message(tmp_path):
    path = written(tmp_path, md=NVT, device="cuda")
    with pytest.raises(ModelError, match=r"must be auto or one of cpu.* got 'cuda'"):
        run_file(path)


@pytest.mark.parametrize("name", ["frames.xyz", "heat_last.xyz", "heat_flagged.xyz"])
def test_new_run_overwrites_no_file(tmp_path, name):
    path = written(tmp_path, md=NVT, outputs={"trajectory": "frames.xyz"})
    (tmp_path / name).write_text("my only copy")
    with pytest.raises(RecordError, match="must not exist"):
        run_file(path)
    assert (tmp_path / name).read_text() == "my only copy"
    assert not (tmp_path / "heat.jsonl").exists()


def test_a_state_that_is_not_of_this_log_is_not_used(tmp_path):
    path = written(tmp_path, md=NVT, outputs={"interval": 2})
    killed(path, 5)
    log = tmp_path / "heat.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(RecordError, match=r"ahead of the log.* step 4 .* at step 1"):
        run_file(path)
    log.unlink()
    for name in ("heat_last.xyz", "heat_flagged.xyz"):
        (tmp_path / name).unlink(missing_ok=True)
    assert run_file(path).step == 8  # a new run: the old state is deleted
    assert steps_of(read_log(log)) == list(range(9))


def test_the_example_runs(tmp_path):
    for name in ("run.yaml", "ethanol.xyz"):
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("steps: 2000", "steps: 20"))
    assert run_file(tmp_path / "run.yaml").how == "finished"
    frames = read(tmp_path / "run_frames.xyz", ":")
    assert [frame.info["step"] for frame in frames] == [0, 20]


def test_a_run_file_harvests_frames(tmp_path):
    path = written(
        tmp_path,
        md=NVT | {"steps": 60},
        policy=ALWAYS_BAD
        | {"on_unreliable": "harvest", "patience": 20, "max_harvest": 3},
    )
    outcome = run_file(path)
    frames = read(tmp_path / "heat_flagged.xyz", ":")
    steps = [frame.info["step"] for frame in frames]
    assert steps[0] == 19
    assert steps == sorted(steps)
    assert f"Harvested: {len(frames)} of at most 3 frames" in outcome.summary
    assert (outcome.how == "halted") is (len(frames) == 3)
    forbidden = written(
        tmp_path,
        name="other.yaml",
        md=NVT,
        policy={"on_unreliable": "warn", "max_harvest": 3},
        outputs={"flagged": None},
    )
    with pytest.raises(RunFileError, match="unless on_unreliable is harvest"):
        read_run_file(forbidden)
    nowhere = written(
        tmp_path,
        name="nowhere.yaml",
        md=NVT,
        policy={"on_unreliable": "harvest"},
        outputs={"flagged": None},
    )
    with pytest.raises(RunFileError, match="flagged must be a file where"):
        read_run_file(nowhere)


def guarantee(**changes):
    """A guarantee of halts for the probe's cutoff 0.4, with the usual trigger."""
    from uqcalc.types import HaltingGuarantee

    given = {
        "thresholds": (uqcalc.Threshold("probe", 0.2, 0.6),), "factor": 1.0,
        "needed_fs": 25.0, "window_fs": 50.0, "tolerance": 0.2, "lasting_fs": 25.0,
        "grace_fs": 100.0, "alpha": 0.1, "confidence": 0.95, "only_failing": False,
        "runs": 30, "failing": 9, "bad": 0, "sound": 21, "sound_halted": 0, "cut": 0,
        "length_fs": (100.0, 100.0),
    }  # fmt: skip
    return HaltingGuarantee(**(given | changes))


def test_a_run_file_has_a_guarantee_of_halts(tmp_path):
    made = guarantee()
    made.save(tmp_path / "halting.json")
    policy = {"halting_guarantee": "halting.json", "bond_change_fs": 25.0}
    path = written(tmp_path, md=NVT, policy=policy)
    outcome = run_file(path)
    assert str(made) in outcome.summary
    [header] = [r for r in read_log(tmp_path / "heat.jsonl") if r["event"] == "header"]
    assert header["guarantee"] == str(made)
    assert header["run"]["policy"]["thresholds"][0]["unreliable"] == 0.6
    # another guarantee under the same name is another run
    guarantee(alpha=0.2).save(tmp_path / "halting.json")
    with pytest.raises(RecordError, match="halting_guarantee"):
        run_file(path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"needed_fs": 10.0}, "policy: trigger must act after 10 of 50 fs"),
        (
            {"thresholds": (uqcalc.Threshold("force_delta", 0.1, 0.2),)},
            r"policy.halting_guarantee: policy must judge signals that run",
        ),
    ],
)
def test_a_guarantee_of_other_runs_is_refused_before_a_file_is_made(
    tmp_path, made, message
):
    guarantee(**made).save(tmp_path / "halting.json")
    path = written(tmp_path, md=NVT, policy={"halting_guarantee": "halting.json"})
    with pytest.raises(RunFileError, match=message):
        run_file(path)
    (tmp_path / "halting.json").write_text("{}")
    with pytest.raises(RunFileError, match="halting_guarantee: halting gua"):
        run_file(path)
    assert not (tmp_path / "heat.jsonl").exists()


REFERENCE = """
from ase.calculators.lj import LennardJones

def reference(directory="."):
    open(directory + "/was_here", "w").close()
    return LennardJones()
"""


def test_a_run_file_asks_a_reference(tmp_path):
    (tmp_path / "mine.py").write_text(REFERENCE)
    path = written(
        tmp_path,
        md=NVT,
        policy=ALWAYS_BAD | {"on_unreliable": "ask", "patience": 2},
        ask={"reference": "mine.py:reference", "max_calls": 3},
    )
    outcome = run_file(path)
    assert outcome.how == "halted"
    assert (
        "Wrong by the reference mine.py:reference: RMS force error" in outcome.summary
    )
    [frame] = read(tmp_path / "heat_labelled.xyz", ":")
    assert frame.info["step"] == 1
    assert {"REF_forces"} <= set(frame.arrays)
    assert (tmp_path / "heat_labelled_work" / "was_here").exists()
    assert run_file(path).summary.startswith("Nothing to do")


def test_a_run_file_rewinds(tmp_path):
    path = written(
        tmp_path,
        md=NVT,
        policy={"unreliable": 0.0, "suspect": 0.0, "on_unreliable": "rewind"},
        rewind={"max_rewinds": 2, "back_fs": 1.0},
    )
    assert run_file(path).how == "finished"
    [header] = [r for r in read_log(tmp_path / "heat.jsonl") if r["event"] == "header"]
    assert header["run"]["about"]["input"]["rewind"]["max_rewinds"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"policy": {"on_unreliable": "ask"}}, "ask: must be given where policy"),
        ({"ask": {"reference": "gfn2-xtb"}}, "ask: must be left out unless policy"),
        ({"rewind": {}}, "rewind: must be left out unless policy"),
        (
            {"policy": {"on_unreliable": "ask"}, "ask": {"reference": "b3lyp"}},
            "ask.reference: reference must be one of gfn2-xtb",
        ),
        (
            {"policy": {"on_unreliable": "ask"}, "ask": {"reference": "no.py:f"}},
            "ask.reference: file of the reference must exist",
        ),
        ({"outputs": {"labelled": "l.xyz"}}, "labelled must be left out unless"),
        ({"rewind": {"back_fs": -1.0}}, "rewind.back_fs: must be"),
        ({"ask": {"refrence": "x"}}, "did you mean reference?"),
    ],
)
def test_sections_of_other_actions_are_refused(tmp_path, content, message):
    with pytest.raises(RunFileError, match=re.escape(message)):
        read_run_file(written(tmp_path, md=NVT, **content))


def test_a_relaxation_is_not_rewound(tmp_path):
    policy = {"on_unreliable": "rewind"}
    with pytest.raises(RunFileError, match="rewind: must be left out with relax"):
        read_run_file(written(tmp_path, relax={"steps": 3}, policy=policy))
