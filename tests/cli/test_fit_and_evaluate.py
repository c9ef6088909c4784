"""`uqcalc fit` and `uqcalc evaluate`, with files only."""

import json

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write
from typer.testing import CliRunner

from uqcalc import Probe
from uqcalc.cli import app
from uqcalc.labels.shipped import ShippedLabels
from uqcalc.models.bundled import bare_calculator


# 90 frames are few: warnings of labels are lines on the error stream
pytestmark = pytest.mark.filterwarnings("always::uqcalc.errors.LabelWarning")
FEW = "a probe should have at least 200 labelled structures, got 90"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return labelled(tmp_path_factory.mktemp("data"), seed=0)


def labelled(folder, *, seed):
    """Errors of the bundled potential that grow with the distortion."""
    rng = np.random.default_rng(seed)
    calculator = bare_calculator()
    frames = []
    for index in range(90):
        atoms = molecule(["CH4", "CH3OH", "NH3"][index % 3])
        amount = rng.uniform(0.01, 0.3)
        atoms.rattle(amount, rng=rng)
        sign = rng.choice([-1, 1], size=(len(atoms), 3))
        forces = calculator.get_forces(atoms) + amount * sign
        atoms.arrays["REF_forces"] = forces
        atoms.info["run"] = 100 * seed + index // 3
        frames.append(atoms)
    path = folder / "labelled.xyz"
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
    for ending in ("json", "png", "html"):
        assert f"my.probe.{ending}" in done.stdout
        assert (tmp_path / f"my.probe.{ending}").stat().st_size > 0
    assert f"warning: {FEW}" in done.stderr
    page = (tmp_path / "my.probe.html").read_text(encoding="utf-8")
    assert FEW in page
    options = ("--group", "run", "--device", "cpu")
    seen = invoke("evaluate", probe, data, "-o", tmp_path / "again", *options)
    assert seen.exit_code == 0, seen.output
    report = json.loads((tmp_path / "again.json").read_text())["report"]
    assert (report["structures"], report["groups"]) == (90, 30)
    assert (tmp_path / "again.html").is_file()
    assert f"AUROC {report['auroc']:.3f}" in " ".join(seen.stdout.split())
    piped = CliRunner().invoke(
        app,
        ["evaluate", str(probe), "-", "-o", "-", *options, "--exclude", "missing"],
        input=data.read_bytes() + b"1\nbare=T\nH 0 0 0\n",
    )
    assert piped.exit_code == 0, piped.stderr
    told = json.loads(piped.stdout)
    assert told["files"] == []
    assert told["report"]["auroc"] == report["auroc"]
    rows = told["structures"]
    assert [row["frame"] for row in rows] == list(range(90))
    boundary = told["card"]["boundary"]
    assert all(row["reliable"] == (row["error"] <= boundary) for row in rows)
    assert sum(row["reliable"] for row in rows) == round(90 * report["prevalence"])


def test_labels_are_added_to_a_probe_that_ships(data, tmp_path):
    probe = tmp_path / "mine.probe"
    options = ("--prior", "default", "--group", "run", "--device", "cpu")
    done = invoke("fit", data, "-o", probe, *options)
    assert done.exit_code == 0, done.output
    assert "added to the prior default.probe: log loss on left-out" in done.stdout
    seen = invoke("info", probe)
    assert "default.probe" in seen.stdout
    again = invoke("fit", data, "-o", probe, "--prior", probe, "--group", "run")
    assert again.exit_code == 1
    assert "has a prior; start from the original" in " ".join(again.stderr.split())


@pytest.fixture
def crystals(data, monkeypatch):
    """Labels of the package are replaced by molecules in cells, with another zero."""
    frames, calculator = read(data, ":"), bare_calculator()
    for atoms in frames:
        atoms.set_cell([9.0, 9.0, 9.0])
        atoms.pbc = True
        energy = calculator.get_potential_energy(atoms)
        atoms.info |= {
            "set": "mptrj-random-1k",
            "REF_energy": energy + 0.4 * len(atoms),
        }
    monkeypatch.setattr(ShippedLabels, "frames", lambda _: frames)
    return ("fit", "--labels", "pbe-crystals", "--model", "default", "--device", "cpu")


def test_labels_of_the_package_need_no_file(crystals, tmp_path):
    probe = tmp_path / "my.probe"
    done = invoke(*crystals, "-o", probe, "--group", "run", "--epochs", 15)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert "their energies differ by 400 meV/atom on average" in said
    assert "may follow another functional" in said
    card = Probe.load(probe).card
    assert card.boundary == 0.2
    assert card.description in " ".join(done.stdout.split())
    for part in ("PBE(+U)", "pbe-crystals", "training pool", "400 meV/atom"):
        assert part in card.description
    assert (tmp_path / "my.probe.html").is_file()


def test_labels_of_the_package_are_grouped_by_formula(crystals, tmp_path):
    done = invoke(*crystals, "-o", tmp_path / "my.probe")
    assert done.exit_code == 1
    assert "got 3 (CH4, CH4O, H3N)" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit", "by DATA or by --labels, got neither"),
        ("fit DATA --labels pbe-crystals", "or by --labels, got"),
        ("fit --labels pbe", "must be one of pbe-crystals, got 'pbe'"),
        ("fit --labels pbe-crystals", "must be used with --model"),
        ("fit --labels pbe-crystals --model chgnet --test DATA", "got --test"),
    ],
)
def test_either_a_file_or_labels_of_the_package(data, tmp_path, words, message):
    found = [data if word == "DATA" else word for word in words.split()]
    done = invoke(*found, "-o", tmp_path / "my.probe")
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_given_before_the_evaluation(data, tmp_path):
    """Also if an error about missing labels follows."""
    words = ("-o", tmp_path / "my.probe", "--forces-key", "dft", "--group", "run")
    done = invoke("fit", data, *words)
    assert done.stderr.startswith(f"warning: {FEW}")
    assert "must have a usable label" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (
            ["--forces-key", "dft", "--group", "run"],
            1,
            "every one of the 90 frames must have a usable",
        ),
        (["--model", "mase"], 2, "model must be one of"),
        (["--target", "dipole"], 2, "target must be one of forces"),
    ],
)
def test_mistakes_end_with_a_message(data, tmp_path, words, status, message):
    done = invoke("fit", data, "-o", tmp_path / "my.probe", *words)
    assert done.exit_code == status
    assert message in done.stderr
    assert isinstance(done.exception, SystemExit)  # no traceback
    assert list(tmp_path.iterdir()) == []


def test_output_is_checked_before_any_work(data, tmp_path):
    before = data.read_bytes()
    done = invoke("fit", data, "-o", data)
    assert done.exit_code == 1
    assert "probe must be written to a new file or over a probe, got" in done.stderr
    assert data.read_bytes() == before
    for command in (["fit", data], ["evaluate", "default", data]):
        done = invoke(*command, "-o", tmp_path / "nowhere" / "x")
        assert done.exit_code == 2
        assert "must be a file in an existing folder" in done.stderr


def test_scores_replace_scores_only(data, tmp_path):
    """Databases of ASE end in .json, as the scores do: the labels were replaced."""
    labels = tmp_path / "labels.json"
    write(labels, read(data, ":4"))
    before = labels.read_bytes()
    for words in (["fit", labels], ["evaluate", "default", labels]):
        done = invoke(*words, "-o", tmp_path / "labels", "-q")
        assert done.exit_code == 1
        assert "scores must be written to a new file or over scores" in done.stderr
    assert labels.read_bytes() == before
    for _ in range(2):
        done = invoke("evaluate", "default", data, "-o", tmp_path / "new", "-q")
        assert done.exit_code == 0, done.output


def test_a_probe_given_as_the_model_is_recognised(data, tmp_path):
    words = ["fit", data, "-o", tmp_path / "my.probe", "--device", "cpu"]
    done = invoke(*words, "--model", data)
    assert done.exit_code == 2
    assert "if MACE saved this file and you trust it, write mace:" in done.stderr
    assert "pass a probe with --probe" in done.stderr


def test_certify_puts_a_guarantee_on_the_card(data, tmp_path):
    probe, other = tmp_path / "my.probe", tmp_path / "other.probe"
    options = ("--group", "run", "--device", "cpu")
    boundary = ("--boundary", "150 meV/angstrom", "--quiet")
    done = invoke("fit", data, "-o", probe, *boundary, *options)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert f"warning: {FEW}" in done.stderr
    before = probe.read_bytes()
    asked = ("--tolerance", "0.12 eV/Å", "--risk", "0.4", "--confidence", "0.8")
    options += ("--cache", tmp_path / "features")
    done = invoke("calibrate", probe, data, "-o", other, *asked, *options)
    assert done.exit_code == 1
    assert done.stderr.startswith("uqcalc calibrate is now uqcalc certify")
    assert "75 of its own (frames " in done.stderr  # 15 frames for the test
    held_out = labelled(tmp_path, seed=1)
    done = invoke("certify", probe, held_out, "-o", other, *asked, *options)
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "features").glob("*.safetensors"))
    promise = Probe.load(other).card.promise
    assert promise["groups"] == 30
    assert promise["statement"] in done.stdout
    assert "err by more than 0.12 eV/Å" in done.stdout
    assert probe.read_bytes() == before
    done = invoke("certify", probe, held_out, *options)
    assert done.exit_code == 1
    assert "must rest on at least 59 groups" in done.stderr
    assert probe.read_bytes() == before
    words = ("annotate", held_out, "--guaranteed", "--device", "cpu", "-o")
    done = invoke(*words, tmp_path / "judged.xyz", "--probe", other)
    assert done.exit_code == 0, done.output
    frames = read(tmp_path / "judged.xyz", ":")
    names = ("probe_promised", "reliability_level", "flags_atoms")
    kept, levels, flagged = np.array([[f.info[n] for n in names] for f in frames]).T
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(levels == 0, (kept == 1) & (flagged == 0))
    words = ("annotate", held_out, "--promised", "--device", "cpu", "-o")
    done = invoke(*words, tmp_path / "none.xyz", "--probe", probe)
    assert done.exit_code == 1
    assert "--promised is now --guaranteed" in done.stderr
    assert "must have a guarantee" in done.stderr


def test_annotate_reads_and_writes_standard_streams(data, tmp_path):
    judged = tmp_path / "judged.xyz"
    done = invoke("annotate", data, "-o", judged, "--device", "cpu")
    assert done.exit_code == 0, done.output
    words = ["annotate", "-", "-o", "-", "--probe", "default", "--worst", "0"]
    piped = CliRunner().invoke(app, words, input=data.read_bytes())
    assert piped.exit_code == 0, piped.stderr
    assert piped.stdout_bytes == judged.read_bytes()
    assert "Frames in standard output: 90" in piped.stderr


def test_several_probes_are_evaluated_and_annotate_together(data, tmp_path):
    from uqcalc.defaults import shipped_probe

    bundled = shipped_probe("default")
    energy = tmp_path / "energy.probe"
    bundled.with_card(target="energy").save(energy)
    frames = read(data, ":12")
    calculator = bare_calculator()
    for frame in frames:
        frame.info["REF_energy"] = float(calculator.get_potential_energy(frame)) + 0.01
    some = tmp_path / "some.xyz"
    write(some, frames)
    options = ("--device", "cpu", "--json", "-o", tmp_path / "both")
    done = invoke("evaluate", "default", energy, some, *options)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [*found] == ["forces", "energy"]
    for target, result in found.items():
        assert str(tmp_path / f"both-{target}.json") in result["files"]
    twice = invoke("evaluate", "default", "default", some)
    assert twice.exit_code == 2
    assert "must have different targets" in " ".join(twice.stderr.split())
    judged = tmp_path / "judged.xyz"
    probes = ("--probe", "default", "--probe", energy)
    done = invoke("annotate", some, "-o", judged, *probes, "--use", "energy")
    assert done.exit_code == 0, done.output
    for frame in read(judged, ":"):
        assert {"probe_reliability", "probe_reliability_energy"} <= {*frame.info}
    assert invoke("annotate", some, "-o", judged, "--use", "md").exit_code == 2
