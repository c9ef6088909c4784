"""A run file that watches Force Delta: with a head, with and without a probe."""

from __future__ import annotations

import functools

import pytest
import yaml
from ase.build import molecule
from builders import import_mace

import uqcalc
from uqcalc import LabelWarning, distill, read_log, run_file
from uqcalc.errors import RunFileError
from uqcalc.runfile import opening
from uqcalc.runfile.file import read_run_file


import_mace()
OPEN_ONCE = functools.cache(uqcalc.open_model)
LIMITS = {"suspect_eV_per_A": 50.0, "unreliable_eV_per_A": 99.0}


@pytest.fixture(autouse=True)
def _models_are_opened_once(monkeypatch):
    monkeypatch.setattr(opening, "open_model", OPEN_ONCE)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    frames = [molecule("CH3OH") for _ in range(25)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    with pytest.warns(LabelWarning, match="should reproduce the forces"):  # short fit
        made = distill(frames, OPEN_ONCE("default"), epochs=2, hidden=8)
    return made.save(tmp_path_factory.mktemp("head") / "head.safetensors")


def written(folder, **content):
    molecule("CH3OH").write(folder / "m.xyz", format="extxyz")
    path = folder / "run.yaml"
    md = {"ensemble": "nvt", "steps": 4, "temperature_K": 300}
    path.write_text(yaml.safe_dump({"structure": "m.xyz", "md": md} | content))
    return path


def test_both_signals_are_watched_and_logged(tmp_path, head):
    section = LIMITS | {"head": str(head), "interval": 2}
    run_file(written(tmp_path, force_delta=section))
    steps = [r for r in read_log(tmp_path / "run.jsonl") if r["event"] == "step"]
    watched = [set(record["readings"]) for record in steps]
    assert watched == [
        {"probe", "sanity", "flags"} | ({"force_delta"} if step % 2 == 0 else set())
        for step in range(5)
    ]


def test_a_model_without_a_probe_may_be_watched_by_force_delta_alone(
    tmp_path, head, monkeypatch
):
    path = written(
        tmp_path, model="mace_off:small", force_delta=LIMITS | {"head": str(head)}
    )
    monkeypatch.setattr(opening, "open_model", lambda *_, **__: OPEN_ONCE("default"))
    calc = opening.open_calculator(read_run_file(path))
    assert [signal.name for signal in calc.signals] == [
        "force_delta",
        "sanity",
        "flags",
    ]


@pytest.mark.parametrize(
    ("section", "more", "expected"),
    [
        (LIMITS | {"head": "nowhere"}, {}, "force_delta.head: must be a file"),
        (LIMITS | {"suspect_eV_per_A": 100.0}, {}, "must be at least suspect"),
        ({}, {}, "force_delta.suspect_eV_per_A: must be given"),
        (
            LIMITS,
            {"model": "mace_off:small", "policy": {"suspect": 0.5}},
            "policy: must leave out suspect, unreliable and promise",
        ),
        (
            LIMITS,
            {"model": "mace_off:small", "policy": {"promise": True}},
            "policy: must leave out suspect, unreliable and promise",
        ),
    ],
)
def test_impossible_settings_are_refused(tmp_path, section, more, expected):
    path = written(tmp_path, force_delta=section, **more)
    with pytest.raises(RunFileError) as caught:
        opening.open_calculator(read_run_file(path))
    assert expected in str(caught.value)


def test_weights_of_orb_are_looked_for_beside_the_run_file(tmp_path):
    path = written(tmp_path, model="orb:orb-v2:w.ckpt", force_delta=LIMITS)
    assert read_run_file(path).model_at() == f"orb:orb-v2:{tmp_path / 'w.ckpt'}"
