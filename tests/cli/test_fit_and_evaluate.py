"""`uqcalc fit` and `uqcalc evaluate`, with files only."""

import json

import numpy as np
import pytest
from ase.build import molecule
from ase.io import write
from typer.testing import CliRunner

from uqcalc import Probe
from uqcalc.cli import app
from uqcalc.default import bare_calculator


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Errors of the bundled potential that grow with the distortion."""
    rng = np.random.default_rng(0)
    calculator = bare_calculator()
    frames = []
    for index in range(90):
        atoms = molecule(["CH4", "CH3OH", "NH3"][index % 3])
        amount = rng.uniform(0.01, 0.3)
        atoms.rattle(amount, rng=rng)
        sign = rng.choice([-1, 1], size=(len(atoms), 3))
        forces = calculator.get_forces(atoms) + amount * sign
        atoms.arrays["REF_forces"] = forces
        atoms.info["run"] = index // 3
        frames.append(atoms)
    path = tmp_path_factory.mktemp("data") / "labelled.xyz"
    write(path, frames)
    return path


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_fit_then_evaluate(data, tmp_path):
    probe = tmp_path / "my.probe"
    options = ("--group", "run", "--epochs", 15, "--device", "cpu")
    done = invoke("fit", data, "-o", probe, *options)
    assert done.exit_code == 0, done.output
    assert "AUROC" in done.stdout
    card = Probe.load(probe).card
    assert sum(card.training["groups"].values()) == 30
    assert (tmp_path / "my.png").is_file()
    seen = invoke("evaluate", probe, data, "-o", tmp_path / "again", "--device", "cpu")
    assert seen.exit_code == 0, seen.output
    report = json.loads((tmp_path / "again.json").read_text())["report"]
    assert report["structures"] == 90
    assert f"AUROC {report['auroc']:.3f}" in seen.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--forces-key", "dft"], "every one of the 90 frames must have a usable"),
        (["--model", "mase"], "model must be one of"),
        (["--target", "dipole"], "target must be 'forces' or 'energy'"),
    ],
)
def test_mistakes_end_with_a_message(data, tmp_path, words, message):
    done = invoke("fit", data, "-o", tmp_path / "my.probe", *words)
    assert done.exit_code == 1
    assert message in done.stderr
    assert isinstance(done.exception, SystemExit)  # no traceback
    assert list(tmp_path.iterdir()) == []
