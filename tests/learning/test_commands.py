"""`uqcalc select` and `uqcalc label`: their files, and errors with a remedy."""

from __future__ import annotations

import numpy as np
import pytest
from ase.io import read, write
from toys import copper
from typer.testing import CliRunner

from uqcalc import annotated_copy
from uqcalc.annotating.descriptor import store_descriptor
from uqcalc.cli import app
from uqcalc.records import Assessment, Level, Reading, Verdict


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def flagged(tmp_path):
    """Two files of flagged frames, of 6 and 3 steps."""
    paths = []
    for name, count in (("one", 6), ("two", 3)):
        frames = []
        for step in range(count):
            assessment = Assessment(
                (Reading("probe", 0.5 + step / 20),), Verdict(Level.UNRELIABLE)
            )
            frame = annotated_copy(
                copper(step + 10 * count), assessment, {"energy": -1.0}
            )
            store_descriptor(frame, np.array([step, float(count)]), "toy:1")
            frame.info["step"] = step
            frames.append(frame)
        paths.append(tmp_path / f"{name}.xyz")
        write(paths[-1], frames)
    return paths


def test_flagged_frames_become_labels(tmp_path, flagged):
    chosen, labelled = tmp_path / "chosen.xyz", tmp_path / "labelled.xyz"
    done = invoke("select", *flagged, "-n", 4, "-o", chosen)
    assert done.exit_code == 0, done.output
    assert "Chosen: 4 of 9 candidates, from 2 of 2 events" in done.stdout
    assert (tmp_path / "chosen.png").stat().st_size > 1000
    first = chosen.read_bytes()
    other = tmp_path / "again.xyz"
    drawn = tmp_path / "p.svg"
    invoke("select", *flagged, "-n", 4, "-o", other, "--picture", drawn)
    assert other.read_bytes() == first
    assert drawn.exists()
    done = invoke(
        "label", chosen, "-o", labelled, "--reference", "ase.calculators.emt:EMT",
        "--workers", 0,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "4 frames" in done.stdout
    for before, after in zip(read(chosen, ":"), read(labelled, ":"), strict=True):
        np.testing.assert_allclose(before.positions, after.positions)
        assert after.info["uqcalc_event"] == before.info["uqcalc_event"]
        assert np.isfinite(after.info["REF_energy"])
        assert after.calc is None


def test_missing_inputs_are_named_with_their_option(tmp_path, flagged):
    plain = tmp_path / "plain.xyz"
    write(plain, copper())
    done = invoke("select", plain, "-o", tmp_path / "chosen.xyz")
    assert done.exit_code == 1
    assert "pass the calculator (--model" in done.stderr
    done = invoke("select", *flagged, "-o", flagged[0])
    assert done.exit_code == 2
    assert "output must be a new file" in done.stderr
    done = invoke("select", *flagged, "-o", tmp_path / "c.xyz", "--picture", "p.gif")
    assert "picture must end in .png, .svg or .pdf" in done.stderr
    assert not (tmp_path / "chosen.xyz").exists()
    target = tmp_path / "out.xyz"
    done = invoke("label", plain, "-o", target, "--reference", "dft", "--workers", 0)
    assert done.exit_code == 1
    assert "reference must be one of gfn2-xtb" in done.stderr
    assert not target.exists()


def test_failures_of_the_reference_give_status_one(tmp_path):
    write(tmp_path / "two.xyz", [copper(), copper(1)])
    module = tmp_path / "broken.py"
    module.write_text(
        "from ase.calculators.emt import EMT\n"
        "class Broken(EMT):\n"
        "    def calculate(self, *args, **kwargs):\n"
        "        raise RuntimeError('no convergence')\n"
    )
    done = invoke(
        "label", tmp_path / "two.xyz", "-o", tmp_path / "out.xyz",
        "--reference", f"{module}:Broken", "--workers", 0,
    )  # fmt: skip
    assert done.exit_code == 1
    assert "0, 1: RuntimeError: no convergence" in done.stdout
