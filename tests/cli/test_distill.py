"""`uqcalc distill`, with files only."""

import pytest
from ase.build import molecule
from ase.io import write
from builders import import_mace
from typer.testing import CliRunner

from uqcalc.cli import app
from uqcalc.types import DistilledHead


import_mace()


@pytest.fixture
def frames(tmp_path):
    made = [molecule("CH3OH") for _ in range(30)]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.05, seed=seed)
    write(tmp_path / "frames.xyz", made)
    return tmp_path / "frames.xyz"


def invoke(*words):
    return CliRunner().invoke(app, ["distill", *map(str, words)])


def test_distill_writes_a_head_and_prints_its_scores(frames, tmp_path):
    output = tmp_path / "head.safetensors"
    done = invoke(frames, "-o", output, "--epochs", 80, "--device", "cpu")
    assert done.exit_code == 0, done.output
    report = DistilledHead.load(output).card.report
    assert f"R² {report['r2']:.3f}" in done.stdout
    assert "trained on 27 frames, tested on 3" in done.stdout
    told = CliRunner().invoke(app, ["info", str(output)])
    assert told.exit_code == 0, told.output
    assert "Distilled head" in told.stdout
    assert "27, held out 3" in told.stdout


def test_no_other_file_is_replaced(frames):
    before = frames.read_bytes()
    done = invoke(frames, "-o", frames)
    assert done.exit_code == 1
    assert "another kind of file" in done.stderr
    assert frames.read_bytes() == before
