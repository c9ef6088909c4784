from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from ase.build import molecule

from uqcalc.defaults import shipped_probe
from uqcalc.errors import RunFileError
from uqcalc.runfile.file import RunFile, read_run_file
from uqcalc.runfile.opening import open_calculator
from uqcalc.runfile.sections import (
    MdSection,
    OutputSection,
    PolicySection,
    RelaxSection,
)
from uqcalc.types import Guarantee


EXAMPLE = Path(__file__).parents[2] / "examples" / "run.yaml"
MD = "structure: m.xyz\nmd: {steps: 5, temperature_K: 300}\n"
SECTIONS = {
    "md": MdSection,
    "relax": RelaxSection,
    "policy": PolicySection,
    "outputs": OutputSection,
}
KEYS = [f"{name}.{key}" for name, m in SECTIONS.items() for key in m.model_fields]


@pytest.fixture
def read(tmp_path):
    """Return a function from YAML to the run file, beside a structure."""
    molecule("H2O").write(tmp_path / "m.xyz")

    def from_text(text: str | bytes) -> RunFile:
        path = tmp_path / "heat.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_run_file(path)

    return from_text


def problems(read, text):
    with pytest.raises(RunFileError) as caught:
        read(text)
    return caught.value.problems


def test_omitted_keys_have_their_default(read, tmp_path):
    file = read(MD)
    assert (
        file.echo()
        == json.loads(json.dumps(file.echo()))
        == {
            "structure": "m.xyz",
            "frame": -1,
            "repeat": [1, 1, 1],
            "model": "default",
            "device": "auto",
            "md": {
                "ensemble": "nvt",
                "velocities": "new",
                "steps": 5,
                "timestep_fs": 0.5,
                "temperature_K": 300,
                "friction_per_fs": 0.01,
                "seed": 0,
            },
            "policy": {"on_unreliable": "halt"},
            "outputs": {
                "log": "heat.jsonl",
                "flagged": "heat_flagged.xyz",
                "max_flagged": 100,
                "last": "heat_last.xyz",
                "interval": 10,
            },
        }
    )
    assert file.at(file.outputs.log) == tmp_path / "heat.jsonl"


def test_an_empty_section_has_all_its_defaults(read):
    file = read("structure: m.xyz\nrelax:\npolicy:\n")
    assert file.relax == RelaxSection()
    assert file.policy.patience is None


def test_every_problem_is_named_at_once(read):
    text = """
structure: w.xyz
frmae: 0
repeat: [2, 2]
md:
  ensemble: nve
  temprature_K: 300
  temperature_K: [300, 600]
  steps: -5
  timestep_fs: 1e-3
  pressure_GPa: 1
  seed: "7"
policy: {suspect: 0.3, unreliable: 0.5, window: 10}
outputs:
  log: nowhere/x.jsonl
  trajectory: x.traj
"""
    expected = [
        "structure: must be a file that exists, relative to the run file, got 'w.xyz'",
        "repeat: must have at least 3 items, not 2, got [2, 2]",
        "md.steps: must be at least 1, got -5",
        "md.timestep_fs: must be a number, got '1e-3'; write it without quotes, and "
        "1.0e-3 for 1e-3 (text to YAML)",
        "md.temperature_K: must be one number for nve, which has no thermostat; use "
        "nvt for a ramp, got [300, 600]",
        "md.pressure_GPa: must be left out for nve; it is for npt, got 1",
        "md.seed: must be a whole number, got '7'; write it without quotes",
        "md.temprature_K: unknown key; did you mean temperature_K?",
        "policy.unreliable: must be at most suspect, which is 0.3, got 0.5",
        "policy.fraction: must be given together with window",
        "outputs.log: must be a file in a folder that exists, got 'nowhere/x.jsonl'",
        "outputs.trajectory: must end in .xyz or .extxyz, the format that keeps "
        "annotations, got 'x.traj'",
        "frmae: unknown key; did you mean frame?",
    ]
    assert sorted(problems(read, text)) == sorted(expected)


@pytest.mark.parametrize("key", KEYS)
def test_typo_in_a_key_gives_the_nearest_key(read, key):
    section, _, name = key.partition(".")
    typo = name[:-2] + name[-1] if len(name) > 4 else name + "s"
    text = f"structure: m.xyz\n{section}:\n  {typo}: 1\n"
    expected = f"{section}.{typo}: unknown key; did you mean {name}?"
    assert expected in problems(read, text)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Temperature_K: 300", "did you mean md.temperature_K?"),
        ("tempo: 3", "known here: structure, species, frame, repeat"),
        ("3: 4", "known here: structure"),
    ],
)
def test_a_key_may_be_of_another_section_or_of_none(read, line, expected):
    [problem] = problems(read, f"{MD}{line}\n")
    assert problem.startswith(f"{line.partition(':')[0]}: unknown key; ")
    assert expected in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("structure: m.xyz\n", "relax: must be given where md is left out"),
        (MD + "relax:\n", "relax: must be left out where md is given"),
        (
            "structure: m.xyz\nmd: {steps: 5}\n",
            "md.temperature_K: must be given for nv",
        ),
        (
            "structure: m.xyz\nmd: {steps: 5, ensemble: nve}\n",
            "md.temperature_K: must be given for velocities: new",
        ),
        (
            MD.replace("300", "[1, 2, 3]"),
            "md.temperature_K: must be a number above 0, o",
        ),
        (MD.replace("300", "-1"), "md.temperature_K: must be a number above 0, o"),
        (MD.replace("300", "[300, yes]"), "md.temperature_K: must be a number above"),
        (MD.replace("5", "true"), "md.steps: must be a whole number, got True"),
        (
            MD.replace("5", "5, timestep_fs: .nan"),
            "md.timestep_fs: must be a finite num",
        ),
        (MD.replace("5", "5, ensemble: NVT"), "md.ensemble: must be 'nve', 'nvt' or"),
        (
            "structure: m.xyz\nrelax: {pressure_GPa: 1}\n",
            "relax.pressure_GPa: must be left out unless cell: true",
        ),
        (
            MD + "policy: {window: 5, fraction: 0.5, patience: 2}\n",
            "policy.patience: must be left out where window and fraction are given",
        ),
        (
            MD + "policy: {suspect: 0.9, promise: true}\n",
            "policy.promise: must be left out where suspect is given",
        ),
        (MD + "policy: {promise: 0.9}\n", "policy.promise: must be true or false, got"),
        (MD + "outputs: {log: m.xyz}\n", "outputs: log must name another file than"),
        (MD + "outputs: {log: heat.yaml}\n", "outputs: log must name another file"),
        (MD + "outputs: {log: .}\n", "outputs.log: must be a file in a folder"),
        (MD + "md: [5]\n", "line 3: key md must be given once"),
        (MD + "policy: 7\n", "policy: must be a section of its own"),
        (
            MD + "policy: {halting_guarantee: none.json}\n",
            "policy.halting_guarantee: must be a file that exists",
        ),
        (
            MD + "policy: {halting_guarantee: m.xyz, suspect: 0.8}\n",
            "policy.halting_guarantee: must be left out where suspect is given",
        ),
        (
            MD + "policy: {halting_guarantee: m.xyz, on_unreliable: warn}\n",
            "policy.halting_guarantee: must be left out unless on_unreliable is halt",
        ),
        (
            "structure: m.xyz\nrelax:\npolicy: {bond_change_fs: 25}\n",
            "policy: bond_change_fs must be left out with relax: it is for md",
        ),
        (
            MD + "policy: {bond_change_fs: 0}\n",
            "policy.bond_change_fs: must be greater than 0",
        ),
        ("structure: m.xyz\nmd: {steps: 5\nrelax: 1\n", "line 3: "),
        ("a text", "must be lines of key: value, got 'a text'"),
        ("", "must be lines of key: value, got nothing"),
        (b"a: \xff\n", "must be text in UTF-8"),
    ],
)
def test_impossible_settings_are_refused(read, text, expected):
    [problem] = problems(read, text)
    assert problem.startswith(expected)


def test_a_file_that_is_not_there_is_an_error_of_the_same_kind(tmp_path):
    with pytest.raises(RunFileError, match="must be a file that exists") as caught:
        read_run_file(tmp_path / "none.yaml")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.problems) == (str(caught.value), caught.value.problems)


def test_files_of_potentials_are_looked_for_beside_the_run_file(read, tmp_path):
    (tmp_path / "my.model").touch()
    for name in ("mace:", ""):  # which `open_model` refuses without the prefix
        assert (
            read(f"{MD}model: {name}my.model\n").model_at()
            == f"{name}{tmp_path}/my.model"
        )
    assert read(MD).model_at() == "default"
    for name in ("mace:{}", "metatomic:{}", "orb:orb-v3:{}", "upet:{}", "uma:{}:omol"):
        found = read(f"{MD}model: '{name.format('my.model')}'\n")
        assert found.model_at() == name.format(f"{tmp_path}/my.model")
        assert found.read_files() == {"model": [tmp_path / "my.model"]}
    assert read(f"{MD}model: 'uma:uma-s-1:omol'\n").model_at() == "uma:uma-s-1:omol"


def test_a_ramp_is_linear_over_the_steps(read):
    md = read(MD.replace("300", "[300, 500]")).md
    assert [md.temperature_at(step) for step in (0, 1, 5, 9)] == [300, 340, 500, 500]
    assert read(MD).md.temperature_at(3) == 300


def test_the_example_is_valid_and_complete():
    file = read_run_file(EXAMPLE)
    assert file.md.temperature_K == (300, 600)
    assert file.outputs.log == "run.jsonl"


def test_guarantee_of_the_probe_is_the_policy_on_request(read, tmp_path):
    plain = shipped_probe("default").with_card(promise=None)
    plain.save(tmp_path / "my.probe")
    file = read(MD + "probe: my.probe\npolicy: {promise: true, unreliable: 0.1}\n")
    with pytest.raises(RunFileError, match=r"policy.promise: .* must have a guarantee"):
        open_calculator(file)
    made = Guarantee(
        0.84, 0.05, 0.95, 80, 60, 0, 0.05, 0.2, "eV/Å", plain.card.boundary
    )
    plain.with_card(promise=made.to_dict()).save(tmp_path / "my.probe")
    calc = open_calculator(file)
    [threshold] = calc.policy.thresholds
    assert threshold.guarantee == plain.card.meaning
    assert threshold.suspect == pytest.approx(0.16)
    assert threshold.unreliable == pytest.approx(0.9)


def test_several_probes_are_a_list_and_each_counts_for_its_use(read, tmp_path):
    bundled = shipped_probe("default")
    for target in ("energy", "stress"):
        bundled.with_card(target=target).save(tmp_path / f"{target}.probe")
    probes = "probe: [energy.probe, default, stress.probe]"
    file = read(f"{MD}{probes}\npolicy: {{suspect: 0.9}}\n")
    calc = open_calculator(file)
    names = [signal.name for signal in calc.signals[:3]]
    assert names == ["probe", "probe_energy", "probe_stress"]
    assert calc.policy.thresholds[0].suspect == pytest.approx(0.1)
    assert calc.policy.signals_for("moving_cell") == ("probe", "probe_stress")
    assert calc.policy.signals_for("energy") == ("probe_energy",)
    assert file.echo()["probe"] == ["energy.probe", "default", "stress.probe"]
    assert problems(read, MD + "probe: [default, none.probe]\n")[0].startswith(
        "probe: must be a file that exists"
    )
    assert problems(read, MD + "probe: [1]\n")[0].startswith(
        "probe: must be the name of a file, or a list of such names"
    )


def test_too_large_run_files_are_refused_before_reading(read):
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    [problem] = problems(read, MD + "\n".join(bomb))
    assert problem.startswith("line 4: alias *a0 must be replaced by its value")
    [problem] = problems(read, MD + "# " + "x" * 300_000)
    assert problem.startswith("must be at most 200000 bytes, got 300")
    [problem] = problems(read, "a: " + "[" * 50_000)
    assert "too deeply" in problem or "line 1" in problem
