"""Trajectories and databases of ASE as files of annotated frames."""

from __future__ import annotations

import sqlite3

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.constraints import FixBondLength
from ase.db.sqlite import SQLite3Database
from ase.io import read, write
from toys import POLICY, OfGeometry, ToyBackbone, copper

from uqcalc import MaxForce, ReliableCalculator, annotate_file, read_assessment
from uqcalc.annotating.copies import left_out_of, read_error
from uqcalc.annotating.tables import write_tables
from uqcalc.annotating.targets import target_of
from uqcalc.errors import RecordError
from uqcalc.files.structures import frames_of


ENDINGS = pytest.mark.parametrize("ending", ["traj", "db"])


def judged(base=None):
    risk = OfGeometry(lambda positions: np.abs(positions[1] - [0, 1.8, 1.8]).max())
    return ReliableCalculator(
        ToyBackbone(base or EMT()), signals=[risk, MaxForce()], policy=POLICY
    )


def given():
    """Return six frames with entries of the user; the fourth cannot be evaluated."""
    frames = [copper(seed, amount=0.05 * seed) for seed in range(6)]
    for row, frame in enumerate(frames):
        frame.info |= {"name": f"run {row}", "Cu": row, "list": [1, "a"]}
        frame.set_constraint(FixBondLength(0, 1))
    frames[3].positions[0] = np.nan
    return frames


@pytest.fixture
def source(tmp_path):
    write(tmp_path / "md.traj", given())
    return tmp_path / "md.traj"


def same(frame, other):
    np.testing.assert_array_equal(frame.numbers, other.numbers)
    np.testing.assert_allclose(frame.positions, other.positions, atol=1e-7)
    for name in frame.arrays:
        np.testing.assert_allclose(frame.arrays[name], other.arrays[name], atol=1e-7)
    ours, theirs = read_assessment(frame), read_assessment(other)
    assert ours.level == theirs.level
    assert read_error(frame) == read_error(other)
    for one, two in zip(ours.readings, theirs.readings, strict=True):
        np.testing.assert_allclose(one.risk, two.risk, rtol=1e-6, equal_nan=True)
        assert one.results.keys() == two.results.keys()
        for name, value in one.results.items():
            np.testing.assert_allclose(value, two.results[name], rtol=1e-6)


@ENDINGS
def test_a_file_holds_what_extended_xyz_holds_and_more(source, tmp_path, ending):
    plain, target = tmp_path / "out.xyz", tmp_path / f"out.{ending}"
    annotate_file(source, plain, judged())
    summary = annotate_file(source, target, judged())
    assert not summary.left_out
    found = list(frames_of(target))
    assert len(found) == 6
    for frame, other, start in zip(found, read(plain, ":"), given(), strict=True):
        assert set(other.arrays) <= {*frame.arrays}
        same(other, frame)
        np.testing.assert_array_equal(frame.positions, start.positions)
        assert frame.info["list"] == [1, "a"]
        assert len(frame.constraints) == 1


@ENDINGS
def test_an_interrupted_run_goes_on_and_a_repeat_changes_nothing(
    source, tmp_path, ending
):
    whole, target = tmp_path / f"whole.{ending}", tmp_path / f"out.{ending}"
    annotate_file(source, whole, judged())
    write(tmp_path / "begun.traj", given()[:4])
    annotate_file(tmp_path / "begun.traj", target, judged())
    if ending == "traj":  # a frame that a kill cut: ASE has not counted it yet
        with target.open("ab") as file:
            file.write(b"\x01" * 100)
    summary = annotate_file(source, target, judged())
    assert (summary.resumed_from, summary.frames) == (4, 6)
    for frame, other in zip(frames_of(target), frames_of(whole), strict=True):
        same(frame, other)
    before = target.read_bytes()
    again = annotate_file(source, target, judged())
    assert (again.resumed_from, again.levels) == (6, summary.levels)
    assert target.read_bytes() == before


class Stopping(EMT):
    """EMT that is stopped at the third frame, as by Ctrl-C."""

    calls = 0

    def calculate(self, *args):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        super().calculate(*args)


@ENDINGS
def test_frames_before_ctrl_c_are_in_the_file(source, tmp_path, ending):
    target = tmp_path / f"out.{ending}"
    with pytest.raises(KeyboardInterrupt):
        annotate_file(source, target, judged(Stopping()), batch_atoms=1)
    assert len(list(frames_of(target))) == 2


@ENDINGS
def test_other_file_is_refused_and_does_not_change(source, tmp_path, ending):
    for content in (given()[:2], None):
        target = tmp_path / f"out{content is None}.{ending}"
        if content is None:
            target.write_bytes(b"mine, and no frames" * 10)
        else:
            write(target, content)
        before = target.read_bytes()
        with pytest.raises(RecordError, match=r"target must|must be readable"):
            annotate_file(source, target, judged())
        assert target.read_bytes() == before


def test_a_database_is_searched_by_its_numbers(source, tmp_path):
    annotate_file(source, tmp_path / "out.db", judged())
    frames = list(frames_of(tmp_path / "out.db"))
    risks = [frame.info.get("max_force", np.nan) for frame in frames]
    limit = float(np.nanmedian(risks))
    expected = [i for i, risk in enumerate(risks) if risk > limit]
    with ase.db.connect(tmp_path / "out.db") as database:
        rows = list(database.select(f"max_force>{limit!r}"))
        assert [row.uqcalc_frame for row in rows] == expected
        assert rows[0].name == f"run {expected[0]}"
    chosen = frames_of(tmp_path / "out.db", slice(1, 6, 2))
    assert [frame.info["uqcalc_frame"] for frame in chosen] == [1, 3, 5]


@ENDINGS
def test_tables_are_those_of_extended_xyz(source, tmp_path, ending):
    annotate_file(source, tmp_path / "out.xyz", judged())
    annotate_file(source, tmp_path / f"out.{ending}", judged())
    texts = []
    for name in ("out.xyz", f"out.{ending}"):
        write_tables(tmp_path / name, frames=tmp_path / "f.csv")
        texts.append([row.split(",")[:5] for row in
                      (tmp_path / "f.csv").read_text().splitlines()])  # fmt: skip
    assert texts[0] == texts[1]


@ENDINGS
def test_arrays_of_any_shape_are_preserved_and_lost_entries_named(tmp_path, ending):
    frame = copper(0)
    frame.info["thing"] = object()
    frame.arrays["tensor"] = np.arange(36.0).reshape(4, 3, 3)
    frame.arrays["site"] = np.array(["a", "b", "top", "d"])
    with target_of(tmp_path / f"out.{ending}") as file:
        assert file.append(frame, "frame") == ("info 'thing'",)
    [found] = frames_of(tmp_path / f"out.{ending}")
    assert left_out_of(found) == ("info 'thing'",)
    for name in ("tensor", "site", "momenta"):
        np.testing.assert_array_equal(found.arrays[name], frame.arrays[name])


@ENDINGS
def test_a_frame_without_atoms_is_kept(tmp_path, ending):
    write(tmp_path / "md.traj", [copper(0), Atoms(), copper(1)])
    summary = annotate_file(tmp_path / "md.traj", tmp_path / f"out.{ending}", judged())
    assert [index for index, _ in summary.failed] == [1]
    assert [len(f) for f in frames_of(tmp_path / f"out.{ending}")] == [4, 0, 4]


def test_a_full_disk_ends_a_database_with_a_message_and_it_is_continued(
    source, tmp_path, monkeypatch
):
    target, written = tmp_path / "out.db", []
    write_row = SQLite3Database._write

    def full(self, *args):
        if len(written) == 2:
            raise sqlite3.OperationalError("database or disk is full")
        written.append(args)
        return write_row(self, *args)

    monkeypatch.setattr(SQLite3Database, "_write", full)
    with pytest.raises(RecordError, match=r"written, got .*out\.db \(database or disk"):
        annotate_file(source, target, judged())
    monkeypatch.undo()
    summary = annotate_file(source, target, judged())
    assert (summary.resumed_from, summary.frames) == (2, 6)
