"""Every example runs as users run it, at a small size."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ase.io import read
from builders import import_mace, run_and_kill

from uqcalc import run_loop


EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "watch_md.py": ["--steps", "5"],
    "guarded_relaxation.py": ["--steps", "3"],
    "screen_structures.py": ["--names", "CH4", "HCN"],
    "judge_trajectory.py": [str(EXAMPLES / "ethanol.xyz")],
    "fit_a_probe.py": ["--frames", "60", "--epochs", "3"],
    "from_labels_to_halting.py": ["--quick"],
    "zeolite_md.py": ["--runs", "3", "--normal", "20", "--steps", "6"],
}


def test_no_example_is_left_out():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALL)


# so few labels are what it warns of
@pytest.mark.filterwarnings("ignore::uqcalc.errors.LabelWarning")
@pytest.mark.parametrize("name", SMALL)
def test_example(name, tmp_path, monkeypatch, capsys):
    import_mace()
    if name in {"fit_a_probe.py", "from_labels_to_halting.py"}:
        pytest.importorskip("tblite")
    if name == "zeolite_md.py":
        pytest.importorskip("orb_models")
        monkeypatch.syspath_prepend(str(EXAMPLES))  # as for a script run from there
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name]])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out.strip()


def short_loop(folder):
    """Copy the example of a loop and make it short: the wreck is not the point."""
    shutil.copytree(EXAMPLES / "loop", folder)
    run = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    run["md"] |= {"steps": 60, "temperature_K": [300, 3000]}
    (folder / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    loop = yaml.safe_load((folder / "loop.yaml").read_text(encoding="utf-8"))
    loop |= {"runs": 2, "rounds": 2, "labels": 6, "held_out": 0.0}
    loop["train"] += " --steps 20"
    loop["refit"] = re.sub(r"--boundary '.*?'", "--epochs 2", loop["refit"])
    (folder / "loop.yaml").write_text(yaml.safe_dump(loop), encoding="utf-8")
    return folder / "loop.yaml"


@pytest.mark.slow
def test_example_of_a_loop(tmp_path):
    pytest.importorskip("tblite")
    path = short_loop(tmp_path / "loop")
    words = ["prepare.py", "--frames", "20", "--steps", "100", "--boundary", ""]
    subprocess.run([sys.executable, *words], cwd=path.parent, check=True)
    command = [sys.executable, "-m", "uqcalc", "loop", str(path)]
    first = path.parent / "loop_rounds" / "01"
    run_and_kill(command, (first / "train.log").exists)
    assert not (first / "round.json").exists()
    before = (first / "labelled.xyz").stat().st_mtime_ns
    report = run_loop(path)
    assert (first / "labelled.xyz").stat().st_mtime_ns == before
    assert [row.model for row in report.rounds] == [
        f"mace:{path.parent / 'first.json'}",
        f"mace:{first / 'train' / 'model.json'}",
    ]
    assert min(row.labelled for row in report.rounds) > 0
    frames = read(first / "train.xyz", ":")
    assert len(frames) == 40 + report.rounds[0].labelled
