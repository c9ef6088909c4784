"""A repeated `uqcalc annotate` without new work ends before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write
from typer.testing import CliRunner

from uqcalc.annotating import done as module
from uqcalc.annotating.done import Message, earlier_message, job_hash, write_record
from uqcalc.cli import app


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
from uqcalc.cli import app
app(sys.argv[1:], prog_name="uqcalc")
"""


def repeat(arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *arguments],
        capture_output=True,
        text=True,
    )


def test_repeat_prints_the_same_without_torch_and_detects_changed_files(tmp_path):
    bad = molecule("NH3")
    bad.positions[0] = np.nan
    write(tmp_path / "md.xyz", [molecule("H2O"), molecule("CH4"), bad])
    target, table = tmp_path / "out.xyz", tmp_path / "frames.csv"
    arguments = ["annotate", str(tmp_path / "md.xyz"), "-o", str(target)]
    arguments += ["--table", str(table), "--index", "0:3"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 1, first.output  # one frame could not be evaluated
    before = target.read_bytes()
    again = repeat(arguments)
    assert again.returncode == 1, again.stderr
    assert "All frames were already in this file; it is unchanged." in again.stdout
    for line in first.stdout.splitlines()[-3:]:
        assert line in again.stdout
    assert target.read_bytes() == before
    os.utime(table)  # perhaps edited: in doubt the work is repeated
    assert "torch" in repeat(arguments).stderr
    assert target.read_bytes() == before
    assert len(read(target, ":")) == 3


@pytest.fixture
def finished(tmp_path):
    """A source, an output, and the record of what was done."""
    source, output = tmp_path / "md.xyz", tmp_path / "out.xyz"
    source.write_bytes(bytes(range(256)) * 40)
    output.write_bytes(b"frames" * 100)
    return source, output


MESSAGE = Message(("frame", "why"), (("3", "far"),), "Frames: 4.", 1)


def test_record_counts_only_for_its_own_job(finished, monkeypatch):
    source, output = finished
    options = {"index": ":", "probe": ["a.probe"]}
    other = output.with_name("a.probe")
    other.write_bytes(b"probe")
    name = job_hash(source, options, [other])
    write_record(name, [output], MESSAGE)
    assert earlier_message(job_hash(source, options, [other]), [output]) == MESSAGE

    def seen():
        return earlier_message(job_hash(source, options, [other]), [output])

    options["index"] = "::2"
    assert seen() is None
    options["index"] = ":"
    assert seen() == MESSAGE
    for path in (source, output, other):
        content, times = path.read_bytes(), path.stat()
        for changed in (content[:-1], content[:-1] + b"!", content + b"!"):
            path.write_bytes(changed)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            assert seen() is None, path
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert seen() == MESSAGE
    monkeypatch.setattr(module, "_version", lambda _: "2.0")
    assert seen() is None


@pytest.mark.parametrize("text", ["", "{}", '{"message": 1}', "[1]", "\xff"])
def test_damaged_record_is_not_used(finished, text):
    source, output = finished
    name = job_hash(source, {}, [])
    write_record(name, [output], MESSAGE)
    output.with_name(".out.xyz.done").write_text(text, encoding="latin-1")
    assert earlier_message(name, [output]) is None


def test_sources_of_several_files_have_no_record(tmp_path):
    (tmp_path / "OUTCAR").write_text("energies")
    assert job_hash(tmp_path / "OUTCAR", {}, []) is None
    assert job_hash(tmp_path / "absent.xyz", {}, []) is None


def test_of_a_large_file_first_and_last_pieces_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 16)
    source = tmp_path / "md.xyz"
    content = bytearray(np.random.default_rng(0).bytes(16 * 1000 + 7))
    names = set()
    for place in (None, 0, len(content) - 1):
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        source.write_bytes(changed)
        os.utime(source, ns=(0, 0))
        names.add(job_hash(source, {}, []))
    assert len(names) == 3


def test_downloaded_weights_have_no_record(tmp_path):
    """The cache of a downloaded potential may change without notice."""
    from uqcalc.cli.annotate import _job_hash

    source = tmp_path / "md.xyz"
    source.write_text("1\n\nH 0 0 0\n")
    given = dict.fromkeys(["probe", "head", "perturbation", "table", "atoms_table"])
    output = tmp_path / "out.xyz"
    named = {"model": f"mace:{source}"}
    for model in ({"model": None}, {"model": "chgnet"}, named):
        assert _job_hash(source, output, given | model)[0] is not None
    assert _job_hash(source, output, given | {"model": "mace_mp:small"})[0] is None
