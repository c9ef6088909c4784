"""Every example runs as users run it, at a small size."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from builders import import_mace


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
