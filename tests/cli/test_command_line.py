"""The command line itself: help, usage errors, streams; nothing here opens a model."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.resources import files

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from uqcalc.cli import app
from uqcalc.cli.examples import DOCUMENTATION, EXAMPLES, SUMMARIES
from uqcalc.cli.options import DEFECTS
from uqcalc.cli.template import RUN_FILE
from uqcalc.errors import MissingExtraError
from uqcalc.files.structures import count_frames
from uqcalc.labels.defects import DEFECTS as KNOWN_DEFECTS
from uqcalc.runfile.file import _SECTIONS, read_run_file


# Imports of these fail: messages must come without these slow imports.
LIGHT = """
import sys
for name in ("torch", "sklearn", "mace", "matplotlib"):
    sys.modules[name] = None
from uqcalc.cli import main
main()
"""


def invoke(*words, **options):
    return CliRunner().invoke(app, [str(word) for word in words], **options)


def light(*words, **options):
    """Run a command in a new process that cannot import torch."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", LIGHT, *map(str, words)],
        capture_output=True,
        text=True,
        **options,
    )


# ------------------------------------------------------------------- help


def test_version_and_the_module_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "uqcalc", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert re.fullmatch(r"uqcalc \d+\.\d+.*\n", done.stdout)


@pytest.mark.parametrize("command", ["", *SUMMARIES, "calibrate"])
def test_every_help_has_examples_and_a_link_and_fits_sixty_columns(command):
    words = [command] if command else []
    done = invoke(*words, "-h", terminal_width=60)
    assert done.exit_code == 0
    assert done.stdout == invoke(*words, "--help", terminal_width=60).stdout
    for line in EXAMPLES[command.replace("calibrate", "certify")]:
        assert line in done.stdout
    assert DOCUMENTATION in done.stdout
    assert done.stdout.isascii()
    assert max(len(line) for line in done.stdout.splitlines()) <= 60


def test_the_former_name_of_certify_is_hidden():
    assert "calibrate" not in invoke("--help").stdout


@pytest.mark.parametrize("command", SUMMARIES)
def test_examples_are_command_lines_that_can_be_read(command, tmp_path, monkeypatch):
    """The files that they read are made here; redirections and pipes are left out."""
    monkeypatch.chdir(tmp_path)
    names = "labelled dft frames test held_out mine start structure"
    names += " chosen" if command == "label" else " flagged one two"
    for name in (f"{name}.xyz" for name in names.split()):
        (tmp_path / name).touch()
    names = "my.probe my.model md.traj run.jsonl run.yaml loop.yaml my.perturbation"
    names += " run*.jsonl run*.xyz"  # the shell expands patterns
    for name in names.split():
        (tmp_path / name).touch()
    text = "\n".join(EXAMPLES[command]).replace("\\\n", " ")
    for line in text.splitlines():
        program, name, *words = shlex.split(re.split(r" [|<>] ", line)[0])
        assert program == "uqcalc"
        if "--template" in words:
            continue
        found = get_command(app).commands[name]
        found.make_context(name, words)  # raises if a word cannot be read


# ----------------------------------------------------------- errors of usage


def test_defects_are_those_of_the_library():
    assert set(DEFECTS) == set(KNOWN_DEFECTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit labelled.xyz --target dipole", "target must be one of forces, energy"),
        ("fit labelled.xyz --model mase", "model must be one of default, chgnet"),
        ("fit labelled.xyz --model mace:no.model", "must name a file that exists"),
        ("fit labelled.xyz --boundary 1kg", "boundary must be a number with a unit"),
        ("fit labelled.xyz --device gpu", "device must be auto, cpu, mps, cuda"),
        ("fit labelled.xyz --exclude bad", "defect to leave out must be one of"),
        ("fit labelled.xyz --species Xx", "species must be chemical symbols"),
        ("fit labelled.xyz -o no/my.probe", "must be a file in an existing folder"),
        ("fit no.xyz", "file must exist, got no.xyz"),
        ("evaluate no.probe labelled.xyz", "probe must be a file or one of default"),
        ("evaluate default no.xyz", "file must exist, got no.xyz"),
        ("certify default labelled.xyz", "a file must be given for the probe that"),
        ("certify default labelled.xyz --risk 2", "must be above 0 and below 1"),
        (
            "certify default labelled.xyz -o my.probe --tolerance 1kg",
            "tolerance must be a number with a unit",
        ),
        ("annotate labelled.xyz -o out.cif", "target must end in .xyz, .extxyz"),
        ("annotate labelled.xyz -o o.xyz --limits 2 1", "finite suspect <= unreliable"),
        ("attack labelled.xyz -o labelled.xyz --model orb:x", "must be a new file"),
        ("info no.probe", "got 'no.probe', which does not exist"),
        ("run no.yaml", "run file must exist, got no.yaml"),
        ("fit labelled.xyz --no-such-option", "No such option: --no-such-option"),
    ],
)
def test_errors_of_usage_end_with_status_2(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labelled.xyz").write_text("1\n\nH 0 0 0\n")
    done = invoke(*words.split())
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["labelled.xyz"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("fit labelled.xyz --model mase", 2, "model must be one of"),
        ("fit no.xyz", 2, "file must exist"),
        ("certify default labelled.xyz", 2, "a file must be given for the probe"),
        ("evaluate other.probe damaged.xyz", 1, "safetensors"),
        ("evaluate default damaged.xyz", 1, "must hold structures in a format"),
        ("annotate damaged.xyz -o out.cif", 2, "target must end in"),
        ("run run.yaml", 1, "unknown key"),
    ],
)
def test_errors_come_before_heavy_imports(words, status, message, tmp_path):
    (tmp_path / "labelled.xyz").write_text("1\n\nH 0 0 0\n")
    (tmp_path / "damaged.xyz").write_text("seven\n")
    (tmp_path / "other.probe").write_text("no probe")
    (tmp_path / "run.yaml").write_text("strcture: labelled.xyz\n")
    done = light(*words.split(), cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("release", [(3, 11), (3, 13)])
def test_missing_extra_gives_a_remedy(monkeypatch, release):
    """On Python 3.13 pip installs nothing for this extra; another Python is needed."""
    monkeypatch.setattr(sys, "version_info", (*release, 0, "final", 0))
    text = str(MissingExtraError("the model 'orb'", "orb-models", "orb"))
    assert text.endswith('pip install "uqcalc[orb]"')
    another = "this is Python 3.13: make an environment with Python 3.12"
    assert (another in text) == (release == (3, 13))


# ------------------------------------------------------------------ streams


def test_info_takes_shipped_names_and_prints_json():
    told = invoke("info", "chgnet")
    assert told.exit_code == 0
    assert "chgnet:" in told.stdout
    path = files("uqcalc") / "data" / "chgnet.probe"
    record = json.loads(invoke("info", path, "--json").stdout)
    assert record["kind"] == "probe"
    assert record["card"]["fingerprint"].startswith("chgnet:")
    assert json.loads(invoke("info", "chgnet", "--json").stdout) == record


def test_a_file_comes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chgnet").write_text("my notes")
    done = invoke("info", "chgnet")
    assert done.exit_code == 1
    assert "must be a probe" in done.stderr


def test_output_can_be_printed_in_any_encoding():
    env = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "60", "NO_COLOR": "1"}
    done = light("info", "default", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "eV/A" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert max(len(line) for line in done.stdout.splitlines()) <= 60
    done = light("fit", "nö.xyz", env=env)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_pipe_that_is_closed_gives_no_traceback():
    with subprocess.Popen(
        [sys.executable, "-c", LIGHT, "info", "default", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert told == b""


# ----------------------------------------------------------------- templates


def test_the_template_is_a_run_file(tmp_path):
    done = invoke("run", "--template")
    assert done.exit_code == 0
    (tmp_path / "run.yaml").write_text(done.stdout)
    (tmp_path / "structure.xyz").write_text("1\n\nH 0 0 0\n")
    assert read_run_file(tmp_path / "run.yaml").md.steps == 2000


def test_the_template_names_every_key_and_its_default():
    lines = RUN_FILE.splitlines()
    bare = "\n".join(re.sub(r"^(\s*)#(?=[a-z])", r"\1", line) for line in lines)
    given = yaml.safe_load(bare)
    samples = set(re.findall(r"#(\w+):.*# sample", RUN_FILE))
    for (*where,), model in _SECTIONS.items():
        section = given[where[0]] if where else given
        assert set(section) == set(model.model_fields)
        for name, field in model.model_fields.items():
            if f"#{name}:" not in RUN_FILE or name in samples:
                continue
            default = field.get_default(call_default_factory=True)
            if not field.is_required() and isinstance(default, (str, int, float, list)):
                assert section[name] == default, name


def test_frames_are_counted_where_that_is_quick(tmp_path):
    path = tmp_path / "frames.xyz"
    path.write_text("1\n\nH 0 0 0\n" * 3)
    assert count_frames(path) == 3
    path.write_text("99999999999\n\nH 0 0 0\n")  # an incomplete frame
    assert count_frames(path) == 0
    path.write_text("seven\n")
    assert count_frames(path) is None
    assert count_frames(tmp_path / "frames.dump") is None
