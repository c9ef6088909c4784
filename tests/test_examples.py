"""Every example runs as users run it, at a small size."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ase.io import read
from builders import import_mace, run_and_kill

from uqcalc import Probe, ReliableCalculator, open_model, run_loop


EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "watch_md.py": ["--steps", "5"],
    "guarded_relaxation.py": ["--steps", "3"],
    "screen_structures.py": ["--names", "CH4", "HCN"],
    "judge_trajectory.py": [str(EXAMPLES / "ethanol.xyz")],
    "fit_a_probe.py": ["--frames", "60", "--epochs", "3"],
    "from_labels_to_halting.py": ["--quick"],
    "sample_forces.py": ["--quick"],
    "zeolite_md.py": ["--runs", "3", "--normal", "20", "--steps", "6"],
    "lammps_md.py": ["--steps", "5"],
    "many_systems.py": ["--copies", "1", "--steps", "4"],
    "openmm_md.py": ["--steps", "5"],
}
NEEDS = {
    "fit_a_probe.py": "tblite",
    "from_labels_to_halting.py": "tblite",
    "sample_forces.py": "tblite",
    "zeolite_md.py": "orb_models",
    "lammps_md.py": "lammps",
    "many_systems.py": "torch_sim",
    "openmm_md.py": "openmmml",
}
SLOW = {"sample_forces.py"}


def test_no_example_is_left_out():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALL)


# the warning is about few labels
@pytest.mark.filterwarnings("ignore::uqcalc.errors.LabelWarning")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in SMALL
    ],
)
def test_example(name, tmp_path, monkeypatch, capsys):
    import_mace()
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name == "zeolite_md.py":
        monkeypatch.syspath_prepend(str(EXAMPLES))  # as for a script run from there
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name]])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_example_of_a_loop(tmp_path):
    """It continues after a kill. It is so short that the potential has large errors."""
    pytest.importorskip("tblite")
    folder = tmp_path / "loop"
    shutil.copytree(EXAMPLES / "loop", folder)
    subprocess.run([sys.executable, "prepare.py", "--quick"], cwd=folder, check=True)
    boundary = Probe.load(folder / "first.probe").card.boundary
    run = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    run["md"] |= {"steps": 60, "temperature_K": [300, 3000]}
    (folder / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    path = folder / "loop.yaml"
    loop = yaml.safe_load(path.read_text(encoding="utf-8"))
    loop |= {"runs": 2, "rounds": 1, "labels": 6, "held_out": 0.0}
    loop["train"] += " --steps 1"
    loop["refit"] = loop["refit"].replace("100 meV", f"{boundary} eV")
    path.write_text(yaml.safe_dump(loop), encoding="utf-8")
    command = [sys.executable, "-m", "uqcalc", "loop", str(path)]
    first = folder / "loop_rounds" / "01"
    run_and_kill(command, (first / "train.log").exists, within_s=900)
    assert not (first / "round.json").exists()
    before = (first / "labelled.xyz").stat().st_mtime_ns
    report = run_loop(path)
    assert (first / "labelled.xyz").stat().st_mtime_ns == before
    row, last = report.rounds
    assert row.model == f"mace:{folder / 'first.json'}"
    assert row.labelled > 0
    assert last.model == f"mace:{first / 'train' / 'model.json'}"
    assert last.steps > 0
    assert len(read(first / "train.xyz", ":")) == 40 + row.labelled
    assert len(read(first / "held_out.xyz", ":")) == 50
    model = open_model(f"mace:{first / 'train' / 'model.json'}")
    atoms = read(folder / "start.xyz")
    atoms.calc = ReliableCalculator(model, first / "refit" / "model.probe")
    assert atoms.calc.assess(atoms).readings
