from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from builders import run_and_kill
from hypothesis import given, settings, strategies as st
from toys import copper

from uqcalc import read_log
from uqcalc.errors import RecordError
from uqcalc.watching.eventlog import EventLog, read_standing
from uqcalc.watching.flagged import FrameFile


HEADER = {"run": {"policy": {"limits": (0.1, 0.2)}, "sizes": {1: -0.5}}}


def step(number, **more):
    return {"event": "step", "step": number, **more}


def test_records_come_back_and_the_run_is_continued(tmp_path):
    path = tmp_path / "run.jsonl"
    log = EventLog(path, HEADER, "append")
    assert log.last_step is None
    log.write(step(0, text='Å \\ " \n', value=0.1 + 0.2))
    log.write(step(7))
    again = EventLog(path, HEADER, "append")  # tuples and integer keys are no change
    assert again.last_step == 7
    rows = list(read_log(path))
    assert [row["event"] for row in rows] == ["header", "step", "step", "header"]
    assert rows[1]["text"] == 'Å \\ " \n'
    assert rows[1]["value"] == 0.1 + 0.2


@given(st.binary(max_size=30).filter(lambda torn: b"\n" not in torn))
@settings(max_examples=30, deadline=None)
def test_text_after_the_last_newline_is_cut(tmp_path_factory, torn):
    path = tmp_path_factory.mktemp("torn") / "run.jsonl"
    EventLog(path, HEADER, "append").write(step(3))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert [row.get("step") for row in read_log(path)] == [None, 3]
    assert EventLog(path, HEADER, "append").last_step == 3
    assert path.read_bytes().startswith(whole)
    assert [row["event"] for row in read_log(path)] == ["header", "step", "header"]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5)), max_size=5))
@settings(deadline=None, max_examples=40)
def test_repeated_steps_occur_once(tmp_path_factory, sessions):
    path = tmp_path_factory.mktemp("again") / "run.jsonl"
    standing, reached = {}, 0
    for session, (start, steps) in enumerate([(0, 4), *sessions]):
        log = EventLog(path, HEADER, "append")
        start = min(start, reached)
        standing = {n: s for n, s in standing.items() if n < start}
        for number in range(start, start + steps + 1):
            log.write(step(number, session=session))
            log.write({"event": "warning", "step": number})
            standing[number], reached = session, number
    rows = list(read_standing(path))
    steps = [(r["step"], r["session"]) for r in rows if r["event"] == "step"]
    assert steps == sorted(standing.items())
    warned = [row["step"] for row in rows if row["event"] == "warning"]
    assert warned == sorted(standing)


def test_numbers_that_json_lacks_become_null_at_any_depth(tmp_path):
    path = tmp_path / "run.jsonl"
    log = EventLog(path, HEADER, "append")
    nested = {"a": [math.nan, {"b": -math.inf}], "c": (1.0, np.float64("inf"))}
    log.write(step(0, nested=nested))
    row = json.loads(
        path.read_text(encoding="utf-8").splitlines()[-1],
        parse_constant=lambda token: pytest.fail(token),
    )
    assert row["nested"] == {"a": [None, {"b": None}], "c": [1.0, None]}


def test_another_run_is_refused_with_both_values(tmp_path):
    path = tmp_path / "run.jsonl"
    EventLog(path, HEADER, "append")
    before = path.read_bytes()
    other = {"run": {"policy": {"limits": (0.1, 0.3)}, "sizes": {1: -0.5}, "x": "y"}}
    with pytest.raises(
        RecordError, match=r'limits\.1: 0\.2 there, 0\.3 here; x: null there, "y" here'
    ):
        EventLog(path, other, "append")
    with pytest.raises(RecordError, match="must not exist in mode 'new'"):
        EventLog(path, HEADER, "new")
    assert path.read_bytes() == before
    many = {"run": HEADER["run"] | {f"entry {i}": i for i in range(10)}}
    with pytest.raises(RecordError, match=r"entry 5: .*; and 4 other entries; choose"):
        EventLog(path, many, "append")


@pytest.mark.parametrize(
    "content", [b"my only copy", b"two\nlines", b'{"event": "step"}\n', b"[]\n{", b"3"]
)
def test_other_files_are_refused_and_do_not_change(tmp_path, content):
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    with pytest.raises(RecordError):
        EventLog(path, HEADER, "append")
    assert path.read_bytes() == content
    if content != b"3":  # an incomplete frame of three atoms has this form
        with pytest.raises(RecordError, match="must be XYZ"):
            FrameFile(path, 5, "append")
        assert path.read_bytes() == content


def test_damage_before_the_end_is_named(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('{"event": "header"}\n{"oops\n{}\n', encoding="utf-8")
    with pytest.raises(RecordError, match=r"line 2 of .*run\.jsonl must be a JSON rec"):
        list(read_log(path))


def flagged_frame(seed):
    frame = copper(seed)
    frame.info["uqcalc"] = "an assessment"
    return frame


def written(folder, steps=4):
    path = folder / "run.jsonl"
    log = EventLog(path, {"run": {"a": 1}}, "append")
    for step in range(steps):
        log.write({"event": "step", "step": step, "readings": {"probe": 0.25 * step}})
    return path


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10**6), change=st.integers(1, 255))
def test_a_changed_byte_is_noticed(tmp_path_factory, place, change):
    path = written(tmp_path_factory.mktemp("log"))
    sound = list(read_log(path))
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    found = []
    try:
        for record in read_log(path):
            found.append(record)
    except RecordError:
        assert found == sound[: len(found)]
    else:  # the last line end alone: as a run that was killed there
        assert found == sound[:-1]
        assert place % len(content) == len(content) - 1


@pytest.mark.parametrize("order", [[0, 1, 3, 4], [0, 2, 1, 3, 4], [1, 2, 3, 4]])
def test_a_missing_or_moved_record_is_noticed(tmp_path, order):
    path = written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(RecordError, match="a record is missing"):
        list(read_log(path))


def test_checksums_go_on_in_a_continued_log_and_are_not_added_to_an_old_one(tmp_path):
    path = written(tmp_path)
    EventLog(path, {"run": {"a": 1}}, "append").write({"event": "step", "step": 4})
    steps = [r["step"] for r in read_log(path) if r["event"] == "step"]
    assert steps == [0, 1, 2, 3, 4]
    old = tmp_path / "old.jsonl"
    old.write_text('{"event": "header", "run": {"a": 1}}\n', encoding="utf-8")
    EventLog(old, {"run": {"a": 1}}, "append").write({"event": "step", "step": 0})
    assert [r["event"] for r in read_log(old)] == ["header", "header", "step"]
    assert "crc32" not in old.read_text(encoding="utf-8")


def test_incomplete_frame_is_cut(tmp_path):
    path = tmp_path / "flagged.xyz"
    file = FrameFile(path, 10, "append")
    for seed in range(2):
        assert file.append(flagged_frame(seed))
    whole = path.read_bytes()
    size = len(whole) // 2
    for end in range(size, len(whole), 37):
        path.write_bytes(whole[:end])
        assert FrameFile(path, 10, "append").written == 1
        assert path.read_bytes() == whole[:size]
    path.write_bytes(whole)
    again = FrameFile(path, 3, "append")
    assert again.written == 2
    assert not again.append(flagged_frame(2))
    assert again.append(flagged_frame(3), final=True)
    assert not again.append(flagged_frame(4), final=True)
    assert again.left_out == 2
    frames = read(path, ":")
    np.testing.assert_allclose(
        frames[2].positions, flagged_frame(3).positions, atol=1e-8
    )
    assert len(frames) == 3


def test_other_frames_are_refused(tmp_path):
    path = tmp_path / "water.xyz"
    copper(0).write(path)
    before = path.read_bytes()
    with pytest.raises(RecordError, match="must carry an assessment"):
        FrameFile(path, 5, "append")
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", [".", "nowhere/run.jsonl"])
def test_a_path_that_cannot_be_written_is_refused_before_the_run(tmp_path, name):
    with pytest.raises(RecordError, match="file in an existing folder"):
        FrameFile(tmp_path / name, 5, "append")
    with pytest.raises(RecordError, match="file in an existing folder"):
        EventLog(tmp_path / name, {"run": {}}, "append")


VICTIM = """
import sys
sys.path.insert(0, sys.argv[1])
from ase import units
from ase.md.verlet import VelocityVerlet
from toys import watched
from uqcalc import Monitor
dynamics = VelocityVerlet(watched(), 0.5 * units.fs)
Monitor(dynamics, log=sys.argv[2])
dynamics.run(10**9)
"""


def test_a_killed_run_leaves_a_log_that_is_whole(tmp_path):
    path = tmp_path / "run.jsonl"
    here = str(Path(__file__).parents[1])  # where builders.py is
    run_and_kill(
        [sys.executable, "-c", VICTIM, here, str(path)],
        lambda: path.exists() and path.read_bytes().count(b"\n") >= 50,
    )
    *lines, rest = path.read_bytes().split(b"\n")
    rows = [json.loads(line) for line in lines]
    steps = [row["step"] for row in rows if row["event"] == "step"]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 49
    assert not rest.endswith(b"}")
    assert [row["event"] for row in rows].count("end") == 0


def test_a_second_process_cannot_write_the_same_log(tmp_path):
    """The first process continues; after its end or a kill the log is free."""
    header = {"run": {"formula": "CH4"}}
    first = EventLog(tmp_path / "run.jsonl", header, "append")
    code = (
        "import sys; from uqcalc.watching.eventlog import EventLog\n"
        "log = EventLog(sys.argv[1], {'run': {'formula': 'CH4'}}, 'append')\n"
        "log.write({'event': 'step', 'step': 7})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "file must have one writer, got" in done.stderr
    first.write({"event": "step", "step": 0})
    again = EventLog(tmp_path / "run.jsonl", header, "append")  # in this process
    assert again.last_step == 0
    del first, again
    subprocess.run(command, check=True)
    steps = [r["step"] for r in read_log(tmp_path / "run.jsonl") if "step" in r]
    assert steps == [0, 7]
