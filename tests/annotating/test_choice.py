"""Which frames are judged and written, and the tables of an annotated file."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import typer
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import read, write
from toys import POLICY, OfGeometry, ToyBackbone, copper
from typer.testing import CliRunner

from uqcalc import Level, ReliableCalculator, annotate_file, read_assessment
from uqcalc.annotating.selecting import Condition, parse_index
from uqcalc.annotating.tables import write_tables
from uqcalc.cli import app as whole_app
from uqcalc.cli.annotate import annotate as command
from uqcalc.errors import MissingExtraError, RecordError


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)


def judged():
    """Return copper's calculator; the risk of a frame grows with its number."""
    risk = OfGeometry(lambda positions: np.abs(positions[1] - [0, 1.8, 1.8]).max())
    return ReliableCalculator(ToyBackbone(EMT()), signals=[risk], policy=POLICY)


@pytest.fixture
def source(tmp_path):
    """Nine frames, of which the fifth cannot be evaluated."""
    frames = [copper(seed, amount=0.05 * seed) for seed in range(9)]
    frames[4].positions[0] = np.nan
    write(tmp_path / "md.xyz", frames)
    return tmp_path / "md.xyz"


def numbers(path):
    return [int(frame.info["uqcalc_frame"]) for frame in read(path, ":")]


@pytest.mark.parametrize("text", [":", "2:", ":4", "1:8:3", "::2", "-3:", "5", "-1"])
def test_an_index_takes_the_frames_that_a_list_would_give(source, tmp_path, text):
    target = tmp_path / "out.xyz"
    summary = annotate_file(source, target, judged(), index=text, batch_atoms=8)
    expected = list(range(9))[parse_index(text)]
    assert numbers(target) == expected
    assert summary.frames == len(expected)
    assert [index for index, _ in summary.failed] == [4] * (4 in expected)
    before = target.read_bytes()
    again = annotate_file(source, target, judged(), index=text)
    assert (again.resumed_from, target.read_bytes()) == (len(expected), before)


@pytest.mark.parametrize("text", ["", "a", "::-1", "::0", "1:2:3:4"])
def test_an_index_of_another_form_is_refused(text):
    with pytest.raises(RecordError, match="index must be"):
        parse_index(text)


def test_other_choices_of_frames_do_not_share_a_file(source, tmp_path):
    target = tmp_path / "out.xyz"
    annotate_file(source, target, judged(), index="::2")
    before = target.read_bytes()
    for other in ({}, {"index": "::4"}, {"index": "::2", "select": "level>=SUSPECT"}):
        with pytest.raises(RecordError, match="choice of frames"):
            annotate_file(source, target, judged(), **other)
    assert target.read_bytes() == before


def test_selected_frames_are_those_of_the_whole_file(source, tmp_path):
    whole, target = tmp_path / "whole.xyz", tmp_path / "out.xyz"
    annotate_file(source, whole, judged())
    frames = read(whole, ":")
    energies = [frame.info.get("predicted_energy", np.inf) for frame in frames]
    limit = float(np.median(energies))
    expected = [i for i, energy in enumerate(energies) if energy > limit]
    assert 1 < len(expected) < 8
    condition = f"predicted_energy>{limit!r}"
    summary = annotate_file(source, target, judged(), select=condition)
    assert numbers(target) == expected
    assert summary.passed == 9 - len(expected)
    assert f"{summary.passed} frames judged in this run do" in str(summary)
    # an incomplete file is continued after its last complete frame
    content = target.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    annotate_file(source, target, judged(), select=condition, batch_atoms=8)
    assert numbers(target) == expected


def test_empty_choice_of_frames_has_its_own_message(source, tmp_path):
    target = tmp_path / "out.xyz"
    summary = annotate_file(
        source, target, judged(), index=":3", select="flags_atoms<0"
    )
    assert (summary.frames, summary.passed) == (0, 3)
    assert "already in this file" not in str(summary)
    with pytest.raises(RecordError, match=r"index must choose .* got 100: for .*md"):
        annotate_file(source, tmp_path / "late.xyz", judged(), index="100:")


def test_levels_are_ordered_and_a_failed_frame_is_always_kept(source, tmp_path):
    whole, target = tmp_path / "whole.xyz", tmp_path / "out.xyz"
    annotate_file(source, whole, judged())
    levels = [read_assessment(frame).level for frame in read(whole, ":")]
    annotate_file(source, target, judged(), select="level<UNRELIABLE")
    expected = [i for i, level in enumerate(levels) if level < Level.UNRELIABLE]
    assert numbers(target) == sorted({*expected, 4})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("reliability", "condition must be NAME<VALUE"),
        ("reliability<low", "value of a condition"),
        ("level>=BAD", "level must be one of"),
    ],
)
def test_a_condition_of_another_form_is_refused(text, reason):
    with pytest.raises(RecordError, match=reason):
        Condition.parse(text)


def test_a_condition_on_an_unknown_result_names_those_that_exist(source, tmp_path):
    with pytest.raises(RecordError, match=r"this frame has .*'predicted_energy'"):
        annotate_file(source, tmp_path / "out.xyz", judged(), select="colour<1")


def rows_of(path):
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        return parquet.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(cell):
    return math.nan if cell in ("", None) else float(cell)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_hold_what_the_frames_hold(source, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    target = tmp_path / "out.xyz"
    per_frame, per_atom = tmp_path / f"f.{ending}", tmp_path / f"a.{ending}"
    annotate_file(source, target, judged(), index="1:")
    write_tables(target, frames=per_frame, atoms=per_atom)
    frames, rows, atoms = read(target, ":"), rows_of(per_frame), rows_of(per_atom)
    assert [int(row["frame"]) for row in rows] == list(range(1, 9))
    assert len(atoms) == sum(map(len, frames))
    start = 0
    for frame, row in zip(frames, rows, strict=True):
        assessment = read_assessment(frame)
        assert row["level"] == assessment.level.name
        assert bool(row["error"]) == (row["frame"] in (4, "4"))
        energy = frame.info.get("predicted_energy", math.nan)
        np.testing.assert_equal(number(row["predicted_energy"]), energy)
        own = atoms[start : start + len(frame)]
        start += len(frame)
        assert [one["element"] for one in own] == list(frame.symbols)
        forces = frame.arrays.get("predicted_forces", np.full((len(frame), 3), np.nan))
        found = [[number(one[f"predicted_forces_{k}"]) for k in "xyz"] for one in own]
        np.testing.assert_allclose(found, forces, rtol=1e-12, equal_nan=True)


def test_two_tables_in_one_file_are_refused_before_the_work(source, tmp_path):
    target, table = tmp_path / "out.xyz", str(tmp_path / "t.csv")
    arguments = ["annotate", str(source), "-o", str(target), "--table", table]
    result = CliRunner().invoke(whole_app, [*arguments, "--atoms-table", table])
    assert result.exit_code == 2
    assert "two files, got t.csv for both" in result.output
    assert not target.exists()
    annotate_file(source, target, judged())
    with pytest.raises(RecordError, match="two files"):
        write_tables(target, frames=table, atoms=table)


def test_flags_texts_and_names_of_columns_among_the_results_do_no_harm(tmp_path):
    pytest.importorskip("pyarrow")
    given = [copper(seed) for seed in range(3)]
    values = ({"stage": 1, "done": True}, {"stage": "late"}, {"frame": 7, "level": 3})
    for frame, more in zip(given, values, strict=True):
        frame.info |= more
        frame.arrays["chosen"] = np.arange(len(frame)) > 1
    write(tmp_path / "md.xyz", given)
    annotate_file(tmp_path / "md.xyz", tmp_path / "out.xyz", judged())
    table, atoms = tmp_path / "f.parquet", tmp_path / "a.parquet"
    write_tables(tmp_path / "out.xyz", frames=table, atoms=atoms)
    rows = rows_of(table)
    assert [row["frame"] for row in rows] == [0, 1, 2]
    assert [row["stage"] for row in rows] == [1.0, None, None]
    assert "done" not in rows[0]
    assert "chosen" not in rows_of(atoms)[0]


def test_frames_that_are_left_out_count_for_a_moving_cell_after_a_restart(tmp_path):
    """The last frame has the cell of the one before: the cell moved until then."""
    start = copper(0)
    del start.arrays["momenta"]  # frames of a relaxation
    given = []
    for row in range(8):
        frame = start.copy()
        frame.set_cell(start.cell * (1 + 0.005 * min(row, 6)), scale_atoms=True)
        given.append(frame)
    source, whole, target = (tmp_path / f"{n}.xyz" for n in ("md", "whole", "out"))
    # the rows 0, 6 and 7 are written
    for frame, kept in zip(given, [1, 0, 0, 0, 0, 0, 1, 1], strict=True):
        frame.info["kept"] = float(kept)
    write(source, given)
    annotate_file(source, whole, judged(), select="kept>0")
    assert numbers(whole) == [0, 6, 7]
    text = whole.read_text()
    target.write_text("".join(text.splitlines(keepends=True)[: 2 * (len(start) + 2)]))
    annotate_file(source, target, judged(), select="kept>0", batch_atoms=4)
    verdicts = [
        [read_assessment(frame).verdict for frame in read(path, ":")]
        for path in (whole, target)
    ]
    assert verdicts[0] == verdicts[1]
    assert any("the cell moves" in reason for reason in verdicts[0][-1].reasons)


def test_other_source_of_a_table_is_refused_and_does_not_change(source, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("mine")
    with pytest.raises(RecordError, match="annotated frames"):
        write_tables(source, frames=table)
    with pytest.raises(RecordError, match=r"\.csv or \.parquet"):
        write_tables(source, frames=tmp_path / "table.txt")
    assert table.read_text() == "mine"


def test_a_missing_pyarrow_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"uqcalc\[table\]"):
        write_tables(tmp_path / "absent.xyz", frames=tmp_path / "table.parquet")


def test_the_command_judges_a_part_and_writes_tables(tmp_path):
    waters = [molecule("H2O"), molecule("CH4"), molecule("NH3")]
    write(tmp_path / "md.xyz", waters)
    table, atoms_table = tmp_path / "frames.csv", tmp_path / "atoms.csv"
    arguments = [tmp_path / "md.xyz", "-o", tmp_path / "out.xyz", "--index", "::2"]
    arguments += ["--table", table, "--atoms-table", atoms_table, "--quiet"]
    found = CliRunner().invoke(app, [*map(str, arguments)])
    assert found.exit_code == 0, found.output
    assert [row["formula"] for row in rows_of(table)] == ["H2O", "H3N"]
    cells = [number(row["probe_reliability"]) for row in rows_of(table)]
    assert all(0 <= cell <= 1 for cell in cells)
    assert len(rows_of(atoms_table)) == 7
