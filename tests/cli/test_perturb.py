"""From labels to a perturbation, its card, judged frames and scores, by commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from ase.build import molecule
from ase.io import read, write
from builders import import_mace
from typer.testing import CliRunner

import uqcalc
from uqcalc.cli import app


def invoke(*words):
    import_mace()
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with labelled frames and a perturbation of the default model."""
    import_mace()
    place = tmp_path_factory.mktemp("perturb")
    backbone = uqcalc.tap(uqcalc.open_model("default"))
    rng = np.random.default_rng(0)
    frames = []
    for seed in range(8):
        atoms = molecule("CH4" if seed % 2 else "H2O")
        atoms.rattle(0.05, seed=seed)
        found = backbone(atoms, ["energy", "forces"])
        atoms.info["REF_energy"] = found.energy + 0.1 * rng.normal()
        noise = 0.3 * rng.normal(size=(len(atoms), 3))
        atoms.arrays["REF_forces"] = found.forces + noise
        frames.append(atoms)
    write(place / "labelled.xyz", frames)
    done = invoke(
        *("perturb", place / "labelled.xyz", "-o", place / "my.perturbation"),
        *("--epochs", 2, "--members", 3),
    )
    assert done.exit_code == 0, done.output
    assert "CRPS of the forces" in done.stdout
    return place


def test_card(folder):
    done = invoke("info", folder / "my.perturbation")
    assert done.exit_code == 0
    assert "held-out forces" in done.stdout


def test_annotate(folder, tmp_path):
    words = ("annotate", folder / "labelled.xyz", "-o", tmp_path / "judged.xyz")
    spread = ("--perturbation", folder / "my.perturbation", "--members", 3)
    done = invoke(*words, *spread, "--spread-limits", "1e-9", "2e-9")
    assert done.exit_code == 0, done.output
    judged = read(tmp_path / "judged.xyz", ":")
    assert all(frame.info["functional_force_spread"] > 0 for frame in judged)
    levels = {uqcalc.read_assessment(frame).level.name for frame in judged}
    assert levels == {"UNRELIABLE"}
    assert invoke(*words, "--spread-limits", "1", "2").exit_code == 2


@pytest.mark.filterwarnings("ignore::uqcalc.errors.LabelWarning")
def test_evaluate(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--perturbation", folder / "my.perturbation", "--members", 4)
    alone = invoke("evaluate", folder / "labelled.xyz", *words, "--json")
    assert alone.exit_code == 0, alone.output
    rows = json.loads(alone.stdout)["members"]
    assert [row["quantity"] for row in rows] == ["energy", "forces"]
    assert all(0 < row["crps"] <= row["mae"] * 1.5 for row in rows)
    assert (tmp_path / "my-labelled.json").exists()
    both = invoke("evaluate", "default", folder / "labelled.xyz", *words, "-o", "s")
    assert both.exit_code == 0, both.output
    assert "functional_spread (4 members), forces" in both.stdout
    report = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["report"]
    assert report["members"][1]["crps"] == pytest.approx(rows[1]["crps"], rel=1e-4)
    assert invoke("evaluate", folder / "labelled.xyz").exit_code == 2


def test_a_run_file_watches_the_spread(folder, tmp_path):
    molecule("CH4").write(tmp_path / "m.xyz", format="extxyz")
    section = {
        "perturbation": str(folder / "my.perturbation"),
        "suspect_eV_per_A": 50.0,
        "unreliable_eV_per_A": 99.0,
        "interval": 2,
        "members": 2,
    }
    run = {
        "structure": "m.xyz",
        "md": {"steps": 2, "temperature_K": 300},
        "functional_spread": section,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    done = invoke("run", tmp_path / "run.yaml")
    assert done.exit_code == 0, done.output
    steps = [r for r in uqcalc.read_log(tmp_path / "run.jsonl") if r["event"] == "step"]
    watched = ["functional_spread" in record["readings"] for record in steps]
    assert watched == [True, False, True]
    for key, value, words in (
        ("perturbation", "nowhere", "must be a file that exists"),
        ("unreliable_eV_per_A", 1.0, "must be at least suspect_eV_per_A"),
        ("members", 1, "must be at least 2"),
    ):
        (tmp_path / "bad.yaml").write_text(
            yaml.safe_dump(run | {"functional_spread": section | {key: value}}),
            encoding="utf-8",
        )
        bad = invoke("run", tmp_path / "bad.yaml")
        assert bad.exit_code == 1
        assert words in " ".join(bad.output.split())
