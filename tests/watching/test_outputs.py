"""A failed write does not end a run: one warning, and an entry in the end record."""

from __future__ import annotations

import contextlib
import resource

import numpy as np
import pytest
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet
from toys import BAD, GOOD, watched

from uqcalc import Monitor, read_log, relax
from uqcalc.errors import FileWarning, RecordError
from uqcalc.files.writing import GrowingFile, OneWriter, strict_json, whole


def verlet(atoms):
    return VelocityVerlet(atoms, 1 * units.fs)


@contextlib.contextmanager
def room_for(size):
    """No file of this process grows beyond ``size`` bytes: a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failed_record_leaves_no_partial_record(tmp_path):
    file = GrowingFile(tmp_path / "log")
    file.append("first\n")
    with room_for(10), pytest.raises(OSError, match="too large"):
        file.append("second, longer\n")
    assert file.path.read_text() == "first\n"
    file.append("third\n")
    assert file.path.read_text() == "first\nthird\n"


def test_incomplete_record_is_cut_before_the_next(tmp_path):
    file = GrowingFile(tmp_path / "log")
    file.append("first\n")
    file.path.write_text("first\nsec")
    file._whole = 6
    file.append("third\n")
    file.append("fourth\n")
    assert file.path.read_text() == "first\nthird\nfourth\n"


def test_full_disk_does_not_end_a_run_or_damage_a_file(tmp_path):
    log, flagged = tmp_path / "run.jsonl", tmp_path / "flagged.xyz"
    dynamics = verlet(watched(after=BAD))
    monitor = Monitor(dynamics, log=log, flagged=flagged, on_unreliable="warn")
    dynamics.run(2)
    size = max(log.stat().st_size, flagged.stat().st_size)
    with room_for(size + 300), pytest.warns(FileWarning, match="cannot be written"):
        dynamics.run(4)
    dynamics.run(2)  # there is room again
    steps = [r["step"] for r in read_log(log) if r["event"] == "step"]
    frames = [frame.info["step"] for frame in read(flagged, ":")]
    assert steps[-1] == frames[-1] == 8
    assert len(frames) + monitor.end["not_written"]["flagged frames"]["times"] == 9
    assert "Not written: flagged frames" in monitor.summary()
    assert dynamics.nsteps == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [(0, 1), ("it", object()), (("a", 1), 2), ("Lattice", "x"), ("a=b", b"x")],
)
def test_unusual_entries_do_not_end_a_run_or_a_relaxation(key, value, tmp_path):
    atoms = watched(after=BAD)
    atoms.info[key] = value
    atoms.info["comment"] = "a\nb"
    atoms.arrays["t"] = np.zeros((len(atoms), 3, 3))
    dynamics = verlet(atoms)
    flagged = tmp_path / "flagged.xyz"
    monitor = Monitor(dynamics, flagged=flagged, log=tmp_path / "log", patience=2)
    with pytest.warns(FileWarning, match="written without"):
        dynamics.run(5)
    assert monitor.halted
    frames = read(flagged, ":")
    assert [frame.info["comment"] for frame in frames] == ["a\nb"] * 2
    left_out = {f"info {key!r}": 2, "array 't'": 2}
    assert monitor.end["flagged_incomplete"] == left_out
    again = watched(after=BAD)
    again.info[key] = value
    again.rattle(0.1, seed=2)
    with pytest.warns(FileWarning, match="written without"):
        relax(again, flagged=tmp_path / "relax.xyz", steps=4)


def test_log_accepts_any_value():
    record = {
        1: np.float32(0.5), "a": np.arange(2), "n": np.nan, "b": b"x", "s": "\ud800",
        "i": np.int64(3), "o": object(), "t": (1, np.bool_(True)),
    }  # fmt: skip
    assert strict_json(record) == {
        "1": 0.5, "a": [0, 1], "n": None, "b": "<bytes>", "s": "?", "i": 3,
        "o": "<object>", "t": [1, True],
    }  # fmt: skip


def test_two_monitors_of_one_process_do_not_share_a_log(tmp_path):
    log = tmp_path / "run.jsonl"
    first = Monitor(verlet(watched(after=GOOD)), log=log)
    with pytest.raises(RecordError, match="another Monitor of this process"):
        Monitor(verlet(watched(after=GOOD)), log=log)
    first.dynamics.run(2)  # ends, and releases it
    second = Monitor(verlet(watched(after=GOOD)), log=log, mode="append")
    with pytest.raises(RecordError, match="another Monitor of this process"):
        first.dynamics.run(1)
    second.close()
    assert second.log.last_step == 2


def test_locks_leave_no_file_and_temporary_names_are_new(tmp_path):
    target = tmp_path / "log"
    with OneWriter(target) as writer:
        assert [p.name for p in tmp_path.iterdir()] == [".log.lock"]
        other = OneWriter(tmp_path / "other")
        del other
        again = writer
    del writer, again
    assert list(tmp_path.iterdir()) == []
    with whole(target) as one, whole(target) as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert [p.name for p in tmp_path.iterdir()] == ["log"]
